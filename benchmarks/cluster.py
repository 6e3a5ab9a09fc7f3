"""Holdfast as one of those that are measured: a local cluster with one volume of two replicas."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.harness.cluster import CommandFailedError, RunningCluster

from benchmarks.peers import PeerError, Server
from holdfast.errors import HoldfastError

REPLICAS = 2


NVME = """
[transport]
driver = "nvme-tcp"
[transport.nvme-tcp]
listen = "127.0.0.1"
port = 0
"""
TRANSPORTS = {"tcp": "", "nvme-tcp": NVME}
"""What every node's configuration says of the transport, by its name."""


@contextlib.contextmanager
def holdfast(folder: Path, size: int, *, config: str = "") -> Iterator[Server]:
    """Three nodes with default settings, so lz4 on; used through the primary's node."""
    try:
        with RunningCluster(folder / "cluster", nodes=REPLICAS + 1, config=config) as cluster:
            cluster.create("bench", str(size), replicas=REPLICAS)
            pids = tuple(cluster.pid(name) for name in cluster.names)
            uri = cluster.url("bench", cluster.primary("bench"))
            yield Server(uri, pids, copies=REPLICAS + 1)
    except (CommandFailedError, HoldfastError) as error:
        raise PeerError(str(error)) from error


@contextlib.contextmanager
def holdfast_nvme(folder: Path, size: int) -> Iterator[Server]:
    """The same with the transport `nvme-tcp` and its default settings, so both digests on."""
    with holdfast(folder, size, config=NVME) as server:
        yield server
