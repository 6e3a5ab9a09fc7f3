"""Replication by another transport than the usual one: chosen by a volume, by a copy, by a cluster."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Callable

import pytest
from tests.harness.cluster import CommandFailedError, RunningCluster
from tests.harness.faults import through
from tests.harness.nbd import Command, NbdConnection
from tests.harness.waiting import wait_until

from holdfast_transport_nvmeof.initiator import NvmeTcpHost
from holdfast_transport_nvmeof.logpages import LogPage
from holdfast_transport_nvmeof.namespace import AnaState

Start = Callable[..., RunningCluster]
MIB = 1 << 20
FAILOVER_S_MAX = 6.0
BESIDE_THE_WRITER = 32 * MIB
BESIDE = '[transport]\nalso = ["nvme-tcp"]\n[transport.nvme-tcp]\nport = 0\n'
FRONTEND = '[frontend.nvme-tcp]\nlisten = "127.0.0.1:0"\ndiscovery_listen = ""\n'
ALONE = '[transport]\ndriver = "nvme-tcp"\n[transport.nvme-tcp]\nport = 0\n'


def carried(cluster: RunningCluster, node: str, transport: str) -> int:
    """Return the bytes that a node has sent and received by a transport."""
    text = cluster.node(node).client().metrics()
    found = re.findall(
        rf'^holdfast_transport_bytes_plain_\w+_total{{transport="{transport}"}} (\S+)$',
        text,
        re.MULTILINE,
    )
    return int(sum(map(float, found)))


def survives_its_primary(cluster: RunningCluster) -> None:
    """Kill the primary under a checking writer, bring it back, compare all copies."""
    victim = cluster.primary("db")
    story = through(
        cluster,
        "db",
        lambda c, _: c.kill(victim),
        writing_at=cluster.bystanders("db")[0],
        blocks=4096,
        repair=lambda c, _: c.start(victim),
    )
    assert story.is_good, str(story)
    assert story.after["primary"] != victim
    assert story.outcome.longest_pause_s <= FAILOVER_S_MAX, str(story)


async def used_by_two_paths(*uris: str) -> list[int]:
    """Write by the first path, read by the second one; return what each says that it is worth."""
    worth = []
    async with contextlib.AsyncExitStack() as stack:
        for number, uri in enumerate(uris):
            host = await NvmeTcpHost.connect_uri(uri, queues=2, digests=3, host_id=bytes(16))
            stack.push_async_callback(host.aclose)
            if number == 0:
                await host.write(BESIDE_THE_WRITER, b"w" * MIB)
            assert await host.read(BESIDE_THE_WRITER, MIB) == b"w" * MIB
            page = await host.log_page(LogPage.ASYMMETRIC_NAMESPACE_ACCESS, 40)
            worth.append(page[32])
    return worth


def test_a_volume_chooses_nvme_tcp_and_outlives_its_primary(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=4, config=BESIDE + FRONTEND)
    made = cluster.create("db", "64MiB", "--transport", "nvme-tcp")
    assert made["transport"] == "nvme-tcp"
    url = ("volume", "url", "db", "--frontend", "nvme-tcp", "--node")
    nodes = (cluster.primary("db"), cluster.bystanders("db")[0])
    paths = [cluster.do(*url, node).strip() for node in nodes]
    worth = asyncio.run(used_by_two_paths(*paths))
    assert worth == [AnaState.OPTIMIZED, AnaState.NON_OPTIMIZED]
    wait_until(lambda: not cluster.show("db")["attached"], 20, "the hosts leaving")
    survives_its_primary(cluster)
    assert carried(cluster, cluster.primary("db"), "nvme-tcp") > 8 * MIB


def test_one_copy_by_nvme_tcp_beside_one_by_tcp(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=3, config=BESIDE)
    cluster.create("db", "64MiB", "--node", "n1", "--transport", "n2=nvme-tcp")
    with NbdConnection(cluster.url("db", "n1"), timeout_s=60) as volume:
        volume.call(Command.WRITE, 0, data=b"x" * 16 * MIB)
    assert carried(cluster, "n2", "nvme-tcp") > 16 * MIB
    assert carried(cluster, "n3", "nvme-tcp") == 0
    # What n2 misses travels to it when it is back, and not much more.
    cluster.kill("n2")
    wait_until(lambda: cluster.replicas("db") == ["n3"], 20, "the drop of n2")
    with NbdConnection(cluster.url("db", "n1"), timeout_s=60) as volume:
        volume.call(Command.WRITE, 0, data=b"z" * MIB)
    cluster.start("n2")
    cluster.wait_healthy("db")
    copy = cluster.copy_on("db", "n2")
    assert copy is not None
    assert MIB <= copy["sync"]["bytes_sent"] < 4 * MIB, copy
    cluster.verify("db")
    # While it is in use: the links are opened anew, the copies stay in sync.
    changed = cluster.ask("volume", "set", "db", "--transport", "n2=", "--transport", "n3=nvme-tcp")
    assert changed["transports"] == {"n3": "nvme-tcp"}
    with NbdConnection(cluster.url("db", "n1"), timeout_s=60) as volume:
        wait_until(lambda: carried(cluster, "n3", "nvme-tcp") > 0, 20, "the change of transport")
        volume.call(Command.WRITE, 0, data=b"y" * 16 * MIB)
    assert carried(cluster, "n3", "nvme-tcp") > 16 * MIB
    cluster.wait_healthy("db")
    cluster.verify("db")


def test_a_cluster_that_knows_no_other_transport(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=4, config=ALONE)
    cluster.create("db", "64MiB")
    survives_its_primary(cluster)
    assert carried(cluster, cluster.primary("db"), "nvme-tcp") > 8 * MIB


def test_a_transport_that_no_node_runs_is_refused(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=1)
    with pytest.raises(CommandFailedError, match="No node runs the transport 'nvme-tcp'"):
        cluster.create("db", "64MiB", "--transport", "nvme-tcp", replicas=0)
    with pytest.raises(CommandFailedError, match="no node 'n7'"):
        cluster.create("db", "64MiB", "--transport", "n7=tcp", replicas=0)
