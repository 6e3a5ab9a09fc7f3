"""Bad input from every side: a sentence that says what to do, no traceback, nothing else disturbed."""

import os
import random
import re
import shutil
import socket
import struct
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.harness.cluster import Json, Result, RunningCluster, holdfast
from tests.harness.nbd import Command, NbdConnection
from tests.harness.waiting import wait_until

Start = Callable[..., RunningCluster]
MIB = 1 << 20
SLOT_BYTES = 4096
"""Of a superblock; a file has two."""


def sentence(result: Result, *, code: int | None = None, says: str = "") -> str:
    """Check that a failed command told its failure as people would; return what it told."""
    assert result.code != 0, result.out
    if code is not None:
        assert result.code == code, result.err
    assert "Traceback" not in result.err + result.out
    # A node in the foreground writes its log to the same place.
    lines = [line for line in result.err.strip().splitlines() if not line.startswith("{")]
    assert 1 <= len(lines) <= 8, result.err
    assert lines[0].startswith("holdfast: "), result.err
    assert "Something unexpected" not in lines[0], result.err
    assert re.search(r"[.?!]$", lines[0].strip()) or len(lines) > 1, lines[0]
    assert says.lower() in result.err.lower(), result.err
    return result.err


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    """A cluster that nothing in these tests may harm; each looks afterwards."""
    folder = tmp_path_factory.mktemp("shared") / "cluster"
    with RunningCluster(folder, nodes=3) as cluster:
        cluster.create("kept", "16MiB")
        yield cluster


@pytest.fixture
def unharmed(shared: RunningCluster) -> Iterator[RunningCluster]:
    """The same, with a volume whose bytes are checked when the test is over."""
    mark = random.randbytes(4096)
    pids = {name: shared.pid(name) for name in shared.names}
    uri = shared.url("kept")
    with NbdConnection(uri) as volume:
        volume.call(Command.WRITE, 4096, data=mark)
        yield shared
        # The connection from before still works, and so do the nodes.
        assert volume.call(Command.READ, 4096, 4096) == mark
    assert {name: shared.pid(name) for name in shared.names} == pids
    shared.wait_healthy("kept", 20)
    for name in shared.names:
        assert "Traceback" not in shared.node(name).log.read_text(), f"in the log of {name}"


# --- the command line -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["volume", "show", "kep"], 5, "kept"),
        (["volume", "create", "kept", "--size", "1GiB"], 6, "kept"),
        (["volume", "create", "x", "--size", "much"], 2, "size"),
        (["volume", "create", "x", "--size", "-1GiB"], 2, "size"),
        (["volume", "create", "x", "--size", "0"], 2, "Nearest: 4KiB"),
        (["volume", "create", "x", "--size", "513"], 2, "Nearest: 4KiB"),
        (["volume", "create", "x", "--size", "100MB"], 2, "Nearest: 97656KiB or 100000256"),
        (["volume", "resize", "kept", "--size", "100MB"], 2, "Nearest: 97656KiB or 100000256"),
        (["volume", "create", "x", "--size", "99999TiB"], 2, "Nearest: 64TiB"),
        (["volume", "create", "x"], 2, "--size"),
        (["volume", "create", "a/b", "--size", "1MiB"], 2, "name"),
        (["volume", "create", "", "--size", "1MiB"], 2, "name"),
        (["volume", "create", "x", "--size", "1MiB", "--replicas", "6"], 2, "replicas"),
        (["volume", "create", "x", "--size", "1MiB", "--replicas", "-1"], 2, "replicas"),
        (["volume", "create", "x", "--size", "1MiB", "--policy", "hart"], 4, "hard"),
        (["volume", "create", "x", "--size", "1MiB", "--set", "grace=3"], 2, "grace_s"),
        (["volume", "create", "x", "--size", "1MiB", "--set", "grace_s=soon"], 2, "grace_s"),
        (["volume", "create", "x", "--size", "1MiB", "--set", "grace_s=-1"], 2, "grace_s"),
        (["volume", "create", "x", "--size", "1MiB", "--node", "n9"], 5, "n9"),
        (["volume", "create", "x", "--size", "1MiB", "--transport", "n9=tcp"], 5, "n9"),
        (["volume", "create", "x", "--size", "1MiB", "--transport", "smoke"], 2, "smoke"),
        (["volume", "create", "x", "--size", "1MiB", "--read-from", "moon"], 2, "moon"),
        (["volume", "create", "x", "--size", "1MiB", "--member-missing-timeout", "inf"], 2, "inf"),
        (["volume", "create", "x", "--size", "1MiB", "--replicator", "x"], 4, "Built in: lockstep"),
        (["volume", "create", "x", "--size", "1MiB", "--replicator", "md"], 2, "[replicator.md]"),
        (["volume", "set", "kept"], 2, "nothing"),
        (["volume", "set", "kept", "--policy", "soften"], 4, "soft"),
        (["volume", "set", "kept", "--replicas", "nine"], 2, "replicas"),
        (["volume", "set", "kept", "--set", "nonsense=1"], 2, "nonsense"),
        (["volume", "resize", "kept", "--size", "1MiB"], 6, "cannot shrink"),
        (["volume", "delete", "nothing"], 5, "nothing"),
        (["volume", "url", "kept", "--node", "n9"], 5, "n9"),
        (["volume", "import", "kept", "/nonexistent"], 5, "/nonexistent"),
        (["volume", "import", "kept", "/"], 2, "Is a directory"),
        (["volume", "import", __file__, "kept"], 2, f"holdfast volume import kept {__file__}"),
        (["volume", "show", "a/b"], 5, "no volume 'a/b'"),
        (["volume", "remove", "kept"], 2, "Perhaps `holdfast volume delete`?"),
        (["volume", "set", "kept", "--size", "1GiB"], 2, "Perhaps `holdfast volume resize`?"),
        (["volume", "zero", "kept", "--offset", "0", "--length", "0"], 2, "one or more"),
        (["node", "undrain", "n1"], 2, "Perhaps `holdfast node uncordon`?"),
        # The kernel says that it has a page, and ends after a few bytes.
        (["volume", "import", "kept", "/sys/class/net/lo/mtu"], 7, "Volume kept may hold only"),
        (["volume", "export", "kept", "/nonexistent/file"], 5, "/nonexistent/file cannot"),
        (["volume", "zero", "kept", "--offset", "1", "--length", "2"], 2, "multiples of 512"),
        (["volume", "zero", "kept", "--offset", "16MiB", "--length", "1MiB"], 2, "beyond the end"),
        (["volume", "verify", "nothing"], 5, "nothing"),
        (["volume", "detach", "kept"], 5, "attach"),
        (["volume", "promote", "kept", "n9"], 5, "n9"),
        (["volume", "move", "kept", "n1", "n9"], 5, "n9"),
        (["volume", "evict", "kept", "n9"], 5, "n9"),
        (["node", "start", "n9"], 5, "n9"),
        (["node", "frobnicate"], 2, "frobnicate"),
        (["up", "--nodes", "0"], 2, "nodes"),
        (["up", "--nodes", "2"], 2, "nodes"),
        (["plugin", "check", "nothing"], 4, "nothing"),
        (["config", "check", "--config", "/nonexistent.toml"], 3, "/nonexistent.toml"),
        (["config", "show", "--config", "/x.toml", "--node", "n1"], 2, "--config and --node"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_on_the_command_line_is_a_sentence(
    shared: RunningCluster, words: list[str], code: int, says: str
) -> None:
    sentence(shared.run(*words), code=code, says=says)


def test_a_file_that_is_larger_than_the_volume_is_not_imported(
    shared: RunningCluster, tmp_path: Path
) -> None:
    image = tmp_path / "image"
    with image.open("wb") as file:
        file.truncate(17 * MIB)
    sentence(shared.run("volume", "import", "kept", str(image)), code=6, says="--size 17MiB")


def test_a_copy_that_only_its_own_node_can_have_anew_is_taken_out(unharmed: RunningCluster) -> None:
    status = unharmed.ask("volume", "show", "kept")
    node = next(copy["node"] for copy in status["copies"] if copy["role"] == "replica")
    told = unharmed.do("volume", "evict", "kept", node)
    # The new one may be there already when the answer is given, or a moment later.
    assert re.search(r"has no copy on n\d any more|is taken out, and a new one is made", told), told


def test_nothing_is_imported_under_another_client(unharmed: RunningCluster, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"new!" * 128)
    home = unharmed.ask("volume", "show", "kept")["attached"]
    # That node would let it in, for all its clients share one session.
    told = sentence(unharmed.run("volume", "import", "kept", image, "--node", home), code=6)
    assert f"Volume kept is in use by a client of node {home}" in told
    with NbdConnection(unharmed.url("kept", home)) as beside:
        assert not beside.call(Command.READ, 0, 512).startswith(b"new!")
        unharmed.do("volume", "import", "kept", image, "--force")
        assert beside.call(Command.READ, 0, 512) == image.read_bytes()


def test_after_all_those_mistakes_the_cluster_is_as_it_was(unharmed: RunningCluster) -> None:
    names = [volume["name"] for volume in unharmed.ask("volume", "list")["volumes"]]
    assert names == ["kept"]


def test_a_failure_as_json_is_one_object(shared: RunningCluster) -> None:
    result = shared.run("--json", "volume", "show", "nothing")
    assert result.code == 5
    assert result.err.lstrip().startswith("{")


# --- configuration --------------------------------------------------------------------------------

GOOD = """
[node]
name = "a"
data = ["{data}"]
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[node\n", "line 1"),
        ('[node]\nname = "a"\n', "data"),
        ('[node]\nnam = "a"\ndata = ["/tmp"]\n', "name"),
        (GOOD + "[transport.tcp]\nport = 'x'\n", "transport.tcp.port"),
        (GOOD + "[transport.tcp]\nprot = 1\n", "port"),
        (GOOD + "[transport.tcp]\nport = 70000\n", "70000"),
        (GOOD + "[transport]\ndriver = 'tpc'\n", "tcp"),
        (GOOD + "[state]\ndriver = 'etcd'\n", "etcd"),
        (GOOD + "[frontend.nbd]\nlisten = 'nowhere'\n", "frontend.nbd"),
        (GOOD + "[timing]\nlease_s = 0.1\n", "lease"),
        (GOOD + "[unknown]\nx = 1\n", "unknown"),
    ],
    ids=lambda value: value.strip().splitlines()[-1],
)
def test_a_broken_configuration_is_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(text.replace("{data}", str(tmp_path / "data")))
    for words in (("config", "check"), ("node", "run")):
        told = sentence(holdfast(*words, "--config", path), says=says)
        assert str(path) in told, words


def test_a_configuration_that_is_no_text_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_bytes(b"\xff\xfe\0")
    sentence(holdfast("node", "run", "--config", path), says=str(path))
    sentence(holdfast("node", "run", "--config", tmp_path), says=str(tmp_path))


@pytest.mark.parametrize("which", ["transport", "frontend"])
def test_a_port_in_use_is_a_sentence(start_cluster: Start, which: str) -> None:
    cluster = start_cluster(nodes=2)
    settings = cluster.node("n2").settings()
    cluster.stop("n2")
    if which == "transport":
        port = settings["transport"]["tcp"]["port"]
    else:
        port = int(settings["frontend"]["nbd"]["listen"].rpartition(":")[2])
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind(("127.0.0.1", port))
        squatter.listen()
        sentence(cluster.run("node", "start", "n2"), says=str(port))
        # Without the supervisor's look beforehand, the node itself must say it.
        config = cluster.node("n2").config
        sentence(holdfast("node", "run", "--config", config), says=str(port))
    cluster.start("n2")


# --- data directories -----------------------------------------------------------------------------


def copy_folders(cluster: RunningCluster, node: str) -> list[Path]:
    return sorted(path.parent for path in cluster.node(node).data.rglob("superblock"))


def filled(cluster: RunningCluster, name: str, replicas: int = 2) -> bytes:
    cluster.create(name, "16MiB", replicas=replicas)
    mark = random.randbytes(MIB)
    with NbdConnection(cluster.url(name)) as volume:
        volume.call(Command.WRITE, MIB, data=mark)
        volume.call(Command.FLUSH)
    return mark


def holds(cluster: RunningCluster, name: str, mark: bytes) -> None:
    with NbdConnection(cluster.url(name)) as volume:
        assert volume.call(Command.READ, MIB, MIB) == mark


def damage(cluster: RunningCluster, node: str, slots: tuple[int, ...], data: bytes) -> None:
    (folder,) = copy_folders(cluster, node)
    with (folder / "superblock").open("r+b") as file:
        for slot in slots:
            file.seek(slot * SLOT_BYTES)
            file.write(data)


def test_one_damaged_superblock_slot_is_made_good(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=3)
    mark = filled(cluster, "db")
    replica = cluster.replicas("db")[0]
    cluster.stop(replica)
    damage(cluster, replica, (0,), b"\xff" * SLOT_BYTES)
    cluster.start(replica)
    cluster.wait_healthy("db")
    holds(cluster, "db", mark)
    cluster.verify("db")


@pytest.mark.parametrize("which", ["damaged", "newer", "foreign"])
def test_a_copy_that_cannot_be_opened_is_told_and_nothing_is_lost(
    start_cluster: Start, which: str
) -> None:
    """The node runs on without it, another volume of the same node works, the copy is made anew."""
    cluster = start_cluster(nodes=3)
    mark = filled(cluster, "db")
    replica = cluster.replicas("db")[0]
    cluster.stop(replica)
    (folder,) = copy_folders(cluster, replica)
    if which == "damaged":
        damage(cluster, replica, (0, 1), b"\0" * SLOT_BYTES)
    elif which == "newer":
        # Whole as a later version would write it: the sum over the slot is right.
        slot = bytearray(struct.pack("<8sII", b"HFCOPYSB", 999, 0).ljust(SLOT_BYTES, b"\1"))
        slot[12:16] = zlib.crc32(slot).to_bytes(4, "little")
        damage(cluster, replica, (0, 1), bytes(slot))
    else:
        for path in folder.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        (folder / "holiday.jpg").write_bytes(b"not ours")
    cluster.start(replica)
    log = cluster.node(replica).log
    wait_until(lambda: str(folder) in log.read_text(), 10, f"{folder} in the log")
    assert "Traceback" not in log.read_text()
    assert which != "newer" or "999" in log.read_text(), "the newer format is not told"
    holds(cluster, "db", mark)
    if which == "foreign":
        assert (folder / "holiday.jpg").read_bytes() == b"not ours", "a stranger's file was removed"
    other = filled(cluster, "other", replicas=1)
    holds(cluster, "other", other)
    # What is there is not touched; when it is out of the way, a new copy is made.
    cluster.stop(replica)
    folder.rename(cluster.dir / "aside")
    cluster.start(replica)
    cluster.wait_healthy("db")
    holds(cluster, "db", mark)
    cluster.verify("db")


def test_an_unreadable_data_directory_is_a_sentence(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=3)
    cluster.stop("n3")
    data = cluster.node("n3").data
    aside = data.with_name("aside")
    data.rename(aside)
    data.write_text("a file where a folder is to be")
    told = sentence(cluster.run("node", "start", "n3"), says=str(data))
    assert "n3" in told
    data.unlink()
    aside.rename(data)
    cluster.start("n3")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system takes root")
def test_a_full_disk_costs_a_copy_and_no_data(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=3)
    mark = filled(cluster, "db")
    replica = cluster.replicas("db")[0]
    cluster.stop(replica)
    data = cluster.node(replica).data
    mount = ["mount", "-t", "tmpfs", "-o", "size=24M,mode=700", "tmpfs", str(data)]
    aside = data.with_name("aside")
    data.rename(aside)
    data.mkdir()
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount")
    try:
        # Holes stay holes, or there would be room for all that is ever written.
        subprocess.run(["cp", "-a", "--sparse=always", f"{aside}/.", str(data)], check=True)
        # What else lies there leaves room for a few MiB.
        used = shutil.disk_usage(data)
        (data / "ballast").write_bytes(bytes(max(0, used.free - 4 * MIB)))
        cluster.start(replica)
        cluster.wait_healthy("db")
        noise = random.Random(1)
        with NbdConnection(cluster.url("db"), timeout_s=60) as volume:
            for offset in range(2 * MIB, 16 * MIB, MIB):
                volume.call(Command.WRITE, offset, data=noise.randbytes(MIB))
        wait_until(lambda: replica not in cluster.replicas("db"), 30, "the full copy to be dropped")
        said = " ".join(str(event) for event in events(cluster, "db"))
        assert "space" in said.lower(), said
        holds(cluster, "db", mark)
        cluster.stop(replica)
    finally:
        cluster.run("node", "stop", replica)
        subprocess.run(["umount", "-l", str(data)], check=True)


def events(cluster: RunningCluster, name: str) -> list[str]:
    return cluster.do("--json", "volume", "events", name).splitlines()


# --- the wire -------------------------------------------------------------------------------------


def rubbish() -> dict[str, bytes]:
    dice = random.Random(11)
    return {
        "nothing": b"",
        "one byte": b"\0",
        "zeros": bytes(1 << 16),
        "ones": b"\xff" * (1 << 16),
        "noise": dice.randbytes(1 << 18),
        "http": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        "tls": bytes.fromhex("16030100a5010000a10303") + dice.randbytes(160),
        "nbd greeting": b"NBDMAGICIHAVEOPT\0\3",
        "nbd huge option": struct.pack(">IQII", 3, 0x49484156454F5054, 7, 0xFFFFFFFF),
        "nbd truncated go": struct.pack(">IQII", 3, 0x49484156454F5054, 7, 64) + b"\0\0",
        "nbd no such option": struct.pack(">IQII", 3, 0x49484156454F5054, 999, 0),
        "nbd flags": b"\xff\xff\xff\xff",
    }


def throw(port: int, data: bytes) -> None:
    """Send rubbish and stay until the server has had enough, or for a moment."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(65536):
                pass
        except OSError:
            pass


@pytest.mark.parametrize("kind", rubbish())
def test_rubbish_on_any_port_disturbs_nobody(unharmed: RunningCluster, kind: str) -> None:
    node: Json = unharmed.node(unharmed.primary("kept")).settings()
    for port in (
        node["transport"]["tcp"]["port"],
        int(node["frontend"]["nbd"]["listen"].rpartition(":")[2]),
    ):
        throw(port, rubbish()[kind])


def test_a_bad_request_on_a_good_connection_disturbs_nobody(unharmed: RunningCluster) -> None:
    """Out of range, oversized, unknown, and then a broken header."""
    with NbdConnection(unharmed.url("kept", unharmed.primary("kept"))) as volume:
        size = volume.size_bytes
        for offset, length in ((size, 4096), (size - 4096, 8192), ((1 << 64) - 4096, 4096)):
            with pytest.raises(OSError, match="failed"):
                volume.call(Command.READ, offset, length)
        assert volume.call(Command.READ, 0, 512)
        volume.send(Command.READ, 0, 4096)
        volume.receive()
        volume._socket.sendall(b"\xaa" * 28)
        with pytest.raises((ConnectionError, TimeoutError)):
            volume.receive()


def test_many_connections_that_say_nothing_disturb_nobody(unharmed: RunningCluster) -> None:
    node: Json = unharmed.node(unharmed.primary("kept")).settings()
    ports = (
        node["transport"]["tcp"]["port"],
        int(node["frontend"]["nbd"]["listen"].rpartition(":")[2]),
    )
    silent = [
        socket.create_connection(("127.0.0.1", port), timeout=5)
        for port in ports
        for _ in range(100)
    ]
    try:
        with NbdConnection(unharmed.url("kept", unharmed.primary("kept"))) as volume:
            assert len(volume.call(Command.READ, 0, 4096)) == 4096
    finally:
        for connection in silent:
            connection.close()
