"""A user's layout, run through the loss of nodes and zones in the simulator."""
