"""A cluster on virtual time, from one seed: the machines of `sync/` under every fault we can name."""
