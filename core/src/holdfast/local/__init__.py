"""What core does with this very machine: files, sockets, clocks. Nothing inward imports it."""
