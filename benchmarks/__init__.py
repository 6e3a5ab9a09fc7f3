"""Programs that measure, and never judge: they print figures and ratios and end with exit code 0.

`python -m benchmarks` compares Holdfast with what people would use instead, on the same machine in
interleaved rounds; `benchmarks.faults` measures pauses, `benchmarks.idle` what an idle cluster costs,
`benchmarks.soak` does random faults for as long as asked. `copy_store.py` and `transport.py` measure
one part each.
"""
