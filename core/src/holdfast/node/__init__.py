"""A node: what runs on one machine and serves its copies, groups, frontends and control API."""
