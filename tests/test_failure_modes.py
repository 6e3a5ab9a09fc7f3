"""The failure modes' table and what ends a shortage, on real processes; every cell in virtual time is
`core/tests/test_failure_modes.py`'s part.

One cluster of four nodes without a spare has a volume of three replicas for each mode. Nodes are killed
one after the other; after each loss every volume is tried, within its grace and after it.
"""

import errno
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack

import attrs
import pytest
from tests.harness.cluster import RunningCluster
from tests.harness.nbd import Command, NbdConnection
from tests.harness.waiting import wait_until

Start = Callable[..., RunningCluster]
BLOCK = b"x" * 4096
GRACE_S = 3
REPLICAS = 3
DETECTED_S = 6.0
"""A loss is in the record by then, on a busy machine too."""


@attrs.frozen
class Mode:
    """A volume of one mode, and what its table says by online replicas."""

    policy: str
    options: Mapping[str, object]
    access: tuple[str, str, str, str]
    """With 0, 1, 2 and 3 replicas online, after the grace."""


GRACE = {"grace_s": GRACE_S}
RO, RW = "read-only", "read-write"
MODES = {
    "hard": Mode("hard", GRACE, (RO, RO, RO, RW)),
    "soft": Mode("soft", GRACE, (RO, RO, RW, RW)),
    "threshold": Mode("threshold", {**GRACE, "threshold": 1}, (RO, RW, RW, RW)),
    "alwayson": Mode("alwayson", {}, (RW, RW, RW, RW)),
    "v1-hard": Mode("v1-hard", {}, ("none", "none", "none", RW)),
    "v1-soft": Mode("v1-soft", {}, ("error", RW, RW, RW)),
    "v1-alwayson": Mode("v1-alwayson", {}, (RW, RW, RW, RW)),
    "suspend": Mode("hard", {**GRACE, "on_shortage": "suspend"}, ("suspended",) * 3 + (RW,)),
    "resume": Mode("soft", {**GRACE, "auto_resume": True}, (RO, RO, RW, RW)),
}
ERRNOS = {RW: (0, 0), RO: (0, errno.EPERM), "error": (0, errno.EIO), "none": (errno.EIO, errno.EIO)}
"""Access to the errno of a read and of a write."""


def tried(volume: NbdConnection) -> tuple[int, int]:
    """Return the errno of a read and of a write."""
    found = []
    for command, length, data in ((Command.READ, len(BLOCK), b""), (Command.WRITE, 0, BLOCK)):
        cookie = volume.send(command, 0, length, data)
        reply = volume.receive()
        assert reply.cookie == cookie
        found.append(reply.errno)
    return found[0], found[1]


def has_answer(volume: NbdConnection) -> bool:
    return volume.has_reply(0.2)


@pytest.fixture
def cluster(start_cluster: Start) -> RunningCluster:
    """Return a cluster with a volume for each mode whose primary is on the first node."""
    cluster = start_cluster(nodes=REPLICAS + 1)
    client = cluster.node("n1").client()
    for name, mode in MODES.items():
        client.create_volume(
            name=name,
            size_bytes=4 << 20,
            replicas=REPLICAS,
            policy=mode.policy,
            policy_options=mode.options,
        )
    for name in MODES:
        cluster.wait_healthy(name)
        if cluster.primary(name) != "n1":
            client.promote(name, "n1")
    return cluster


def wait_access(cluster: RunningCluster, name: str, access: str) -> None:
    wait_until(lambda: cluster.show(name)["access"] == access, 15, f"{name} to be {access}")


def test_cells_of_the_table_and_how_a_shortage_ends(cluster: RunningCluster) -> None:
    with ExitStack() as stack:
        volumes = {
            name: stack.enter_context(NbdConnection(cluster.url(name, "n1"))) for name in MODES
        }
        for volume in volumes.values():
            assert tried(volume) == (0, 0)
        waits: set[str] = set()
        cells = len(MODES)
        for online in (2, 1, 0):
            lose_one(cluster, f"n{online + 2}", online, volumes, waits)
            cells += len(MODES)
        assert cells == 36
        changes_are_refused_with_the_reason(cluster)
        the_replicas_come_back(cluster, volumes)


def lose_one(
    cluster: RunningCluster,
    node: str,
    online: int,
    volumes: Mapping[str, NbdConnection],
    waits: set[str],
) -> None:
    """Kill a node; try every volume within its grace and after it."""
    before = {name: cluster.show(name)["access"] for name in MODES}
    # The grace begins later than this, when the loss is known.
    began = time.monotonic()
    cluster.kill(node)
    wait_until(lambda: all(lost(cluster, name, online) for name in MODES), DETECTED_S, "the loss")
    served = [n for n, m in MODES.items() if m.options and before[n] == RW and n not in waits]
    found = {name: tried(volumes[name]) for name in served}
    if time.monotonic() - began < GRACE_S:
        assert set(found.values()) <= {(0, 0)}, f"within the grace: {found}"
    known = time.monotonic()
    for name, mode in MODES.items():
        wait_access(cluster, name, mode.access[online])
    time.sleep(max(0.0, known + GRACE_S + 1 - time.monotonic()))  # Whatever is to change has.
    for name, mode in MODES.items():
        assert cluster.show(name)["access"] == mode.access[online], name
        if mode.access[online] != "suspended":
            assert tried(volumes[name]) == ERRNOS[mode.access[online]], (name, online)
        elif name not in waits:
            volumes[name].send(Command.WRITE, 0, data=BLOCK)
            waits.add(name)
            assert not has_answer(volumes[name]), "a suspended volume answers nothing"


def lost(cluster: RunningCluster, name: str, online: int) -> bool:
    copies = cluster.show(name)["copies"]
    replicas = [c for c in copies if c["role"] == "replica" and c["state"] != "offline"]
    return len(replicas) == online


def the_replicas_come_back(cluster: RunningCluster, volumes: Mapping[str, NbdConnection]) -> None:
    """What resumes by itself does so; the rest needs a new attachment."""
    cluster.up()
    for name in MODES:
        wait_until(lambda n=name: len(cluster.replicas(n)) == REPLICAS, 30, "the replicas")  # type: ignore[misc]
    assert volumes["suspend"].receive().errno == 0, "it went on by itself"
    for name in ("v1-hard", "v1-soft", "resume", "suspend"):
        wait_access(cluster, name, RW)
        assert tried(volumes[name]) == (0, 0), name
    for name in ("hard", "soft", "threshold"):
        assert tried(volumes[name]) == ERRNOS[RO], "still refused when the replicas are back"
        assert cluster.show(name)["health"] == "read-only"
        helps = cluster.ask("explain", name)["help"]
        assert any("Attach it anew" in each["sentence"] for each in helps)
        volumes[name].close()
        with NbdConnection(cluster.url(name, "n1")) as anew:
            assert tried(anew) == (0, 0), name
        cluster.wait_healthy(name)
    made = cluster.run("volume", "create", "warned", "--size", "4MiB", "--replicas", "3")
    assert "needs 5 nodes" in made.out + made.err


def changes_are_refused_with_the_reason(cluster: RunningCluster) -> None:
    """What the present state does not satisfy is not taken."""
    refused = cluster.run("volume", "set", "alwayson", "--policy", "hard")
    assert refused.code == 6, refused.out
    assert "3" in refused.err
    cluster.do("volume", "set", "alwayson", "--policy", "v1-alwayson")
    assert cluster.show("alwayson")["policy"] == "v1-alwayson"
