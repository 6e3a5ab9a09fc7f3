"""Programs that use Holdfast from outside, as an application and an operator would.

Shared by the tests that need real processes and by `benchmarks/`. Nothing here imports what it
checks: the NBD client is its own, so that a mistake of ours is not made twice and cancels out.
"""
