"""The replicator `md`: volumes whose copies Linux MD keeps equal over NVMe-oF.

`model` is what the cluster agrees on, `observed` what a node sees, `planner` turns the two into steps
and edits of the record without touching anything, `agent` carries them out in a loop, `driver` is
what a node opens.
"""
