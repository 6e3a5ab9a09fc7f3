"""The rules that keep data, as state machines without I/O.

Nothing in this package opens a socket or a file, reads a clock, draws a random number or waits. A
machine takes an event and the time and returns effects; the node's pump carries them out, and so do
the simulator and the explorer. `docs/protocol.md` states the rules R1 to R12 and the invariants.
"""
