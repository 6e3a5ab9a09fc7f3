"""Unmodified NBD clients against our frontend, which runs in a process of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
NBDSH = ("/usr/bin/python3", "-m", "nbd")
"""What the nbdsh script does, with the Python that python3-libnbd is for."""
MIB = 1 << 20
DEADLINE_S = 60


def need(*tools: str) -> None:
    """Skip when a tool is missing, but never where everything must run."""
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        sentence = (
            f"{' and '.join(missing)} not installed (apt: libnbd-bin python3-libnbd qemu-utils fio)"
        )
        if os.environ.get("CI") == "true":
            pytest.fail(sentence)
        pytest.skip(sentence)


def run(*command: str, ok: bool = True) -> str:
    """Run a client and return its output; both streams when it is meant to fail."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False)
    assert (done.returncode == 0) is ok, done.stdout + done.stderr
    return done.stdout if ok else done.stdout + done.stderr


class Server:
    """The frontend's process and what may be asked of it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.address = self._line()

    def uri(self, name: str = "db") -> str:
        return f"nbd://{self.address}/{name}"

    def tell(self, *words: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()
        return self._line()

    def served(self, name: str = "db") -> dict[str, int]:
        served: dict[str, int] = json.loads(self.tell("served", name))
        return served

    def _line(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        assert line, "the server ended"
        return line


@pytest.fixture
def server() -> Iterator[Server]:
    command = [sys.executable, str(HERE / "nbd_server.py"), "db=64MiB", "other=32MiB", "big=3TiB"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        try:
            yield Server(process)
            process.stdin.write("quit\n")
            process.stdin.flush()
            assert process.wait(DEADLINE_S) == 0
        finally:
            process.kill()


def test_nbdinfo_sees_what_is_offered(server: Server) -> None:
    need("nbdinfo")
    (export,) = json.loads(run("nbdinfo", "--json", server.uri()))["exports"]
    assert export["export-size"] == 64 * MIB
    assert export["contexts"] == ["base:allocation"]
    limits = [export[f"block_size_{which}"] for which in ("minimum", "preferred", "maximum")]
    assert limits == [512, 65536, 32 * MIB]
    offered = ("cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero")
    assert all(export[f"can_{what}"] for what in offered)
    assert not export["is_read_only"]


def test_nbdinfo_lists_every_volume_and_names_none_that_is_not(server: Server) -> None:
    need("nbdinfo")
    listed = json.loads(run("nbdinfo", "--list", "--json", f"nbd://{server.address}/"))
    assert [export["export-name"] for export in listed["exports"]] == ["big", "db", "other"]
    assert "No such file" in run("nbdinfo", server.uri("nix"), ok=False)


def test_nbdinfo_maps_holes(server: Server) -> None:
    need("nbdinfo", "nbdsh")
    run(*NBDSH, "-u", server.uri(), "-c", f"h.pwrite(b'x' * 65536, {62 * MIB})")
    extents = json.loads(run("nbdinfo", "--map", "--json", server.uri()))
    assert [(e["length"], e["type"]) for e in extents] == [
        (62 * MIB, 3),
        (65536, 0),
        (2 * MIB - 65536, 3),
    ]


def test_the_end_of_a_volume_of_terabytes_is_reached(server: Server) -> None:
    need("nbdsh")
    script = """
end = h.get_size()
assert end == 3 << 40
h.pwrite(b"e" * 512, end - 512)
assert h.pread(1024, end - 1024) == bytes(512) + b"e" * 512
h.trim((4 << 30) - 512, end - (4 << 30) + 512)
assert h.pread(512, end - 512) == bytes(512)
"""
    run(*NBDSH, "-u", server.uri("big"), "-c", script)


def test_nbdcopy_in_and_out_returns_the_same_file(server: Server, tmp_path: Path) -> None:
    need("nbdcopy")
    source, back = tmp_path / "source", tmp_path / "back"
    source.write_bytes(os.urandom(3 * MIB) + bytes(8 * MIB) + os.urandom(53 * MIB))
    run("nbdcopy", "--flush", str(source), server.uri())
    assert server.served()["FLUSH"] >= 1
    run("nbdcopy", server.uri(), str(back))
    assert back.read_bytes() == source.read_bytes()
    run("nbdcopy", server.uri(), server.uri("other"), ok=False)


def test_nbdcopy_zeroes_and_trims_what_is_empty(server: Server, tmp_path: Path) -> None:
    need("nbdcopy", "nbdinfo")
    source = tmp_path / "source"
    source.write_bytes(os.urandom(64 * MIB))
    run("nbdcopy", str(source), server.uri())
    source.write_bytes(b"")
    os.truncate(source, 64 * MIB)
    run("nbdcopy", str(source), server.uri())
    assert server.served()["ZERO"] >= 1
    assert json.loads(run("nbdinfo", "--map", "--json", server.uri()))[0]["length"] == 64 * MIB


def test_qemu_img_converts_and_compares(server: Server, tmp_path: Path) -> None:
    need("qemu-img")
    source = tmp_path / "source"
    source.write_bytes(os.urandom(MIB) + bytes(30 * MIB) + os.urandom(MIB))
    raw = ["-f", "raw", "-O", "raw"]
    run("qemu-img", "convert", "-n", *raw, str(source), server.uri("other"))
    said = run("qemu-img", "compare", "-f", "raw", "-F", "raw", str(source), server.uri("other"))
    assert "identical" in said
    run("qemu-img", "convert", *raw, server.uri("other"), str(tmp_path / "back"))
    assert (tmp_path / "back").read_bytes() == source.read_bytes()
    mapped = json.loads(run("qemu-img", "map", "-f", "raw", "--output=json", server.uri("other")))
    assert sum(e["length"] for e in mapped if e["data"]) == 2 * MIB


def test_qemu_io_writes_reads_flushes_discards_and_zeroes(server: Server) -> None:
    need("qemu-io")
    said = run(
        *("qemu-io", "-f", "raw", "-d", "unmap"),
        *("-c", "write -P 0xab 1M 1M", "-c", "read -P 0xab 1M 1M", "-c", "flush"),
        *("-c", "write -f -P 0xcd 512 512", "-c", "read -P 0xcd 512 512"),
        *("-c", "discard 1M 512k", "-c", "read -P 0 1M 512k"),
        *("-c", "write -z 1536k 512k", "-c", "read -P 0 1536k 512k"),
        *("-c", "write -z -u 2M 64k", "-c", "aio_write -P 1 4M 1M", "-c", "aio_flush"),
        server.uri(),
    )
    assert "failed" not in said
    served = server.served()
    assert served["DISCARD"] == 1
    assert served["ZERO"] == 2
    assert served["FUA"] >= 1


@pytest.mark.parametrize(("block", "depth"), [("4k", "32"), ("64k", "8"), ("1m", "4")])
def test_fio_verifies_what_it_wrote(server: Server, tmp_path: Path, block: str, depth: str) -> None:
    need("fio")
    said = run(
        *("fio", "--name=verify", "--ioengine=nbd", f"--uri={server.uri()}", "--rw=randwrite"),
        *(f"--bs={block}", f"--iodepth={depth}", "--size=32m", "--verify=crc32c"),
        *("--verify_fatal=1", "--output-format=json", f"--aux-path={tmp_path}"),
    )
    (job,) = json.loads(said[said.index("{") :])["jobs"]
    assert job["error"] == 0
    assert job["write"]["io_bytes"] == job["read"]["io_bytes"] == 32 * MIB


def test_several_clients_share_a_volume_at_once(server: Server, tmp_path: Path) -> None:
    need("fio")
    run(
        *("fio", "--ioengine=nbd", f"--uri={server.uri()}", "--rw=randrw", "--bs=4k"),
        *("--iodepth=8", "--size=8m", "--verify=crc32c", "--verify_fatal=1"),
        f"--aux-path={tmp_path}",
        *(word for n in range(4) for word in (f"--name=j{n}", f"--offset={n * 8}m")),
    )


def test_a_volume_withdrawn_from_writing_answers_eperm_and_reads_on(server: Server) -> None:
    need("nbdsh", "nbdinfo")
    script = """
import errno, sys
h.pwrite(b"1" * 512, 0)
print("ready", flush=True)
sys.stdin.readline()
for attempt in (lambda: h.pwrite(b"2" * 512, 0), lambda: h.trim(512, 0), lambda: h.zero(512, 0)):
    try:
        attempt()
        sys.exit("a write was taken")
    except nbd.Error as error:
        assert error.errnum == errno.EPERM, error
assert h.pread(512, 0) == b"1" * 512
print("ready", flush=True)
sys.stdin.readline()
h.pwrite(b"3" * 512, 0)
h.shutdown()
"""
    with subprocess.Popen(
        [*NBDSH, "-u", server.uri(), "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stdout.readline() == "ready\n"
        server.tell("access", "db", "read-only")
        assert run("nbdinfo", "--is", "read-only", server.uri()) == ""
        client.stdin.write("\n")
        client.stdin.flush()
        assert client.stdout.readline() == "ready\n"
        server.tell("access", "db", "read-write")
        client.stdin.write("\n")
        client.stdin.flush()
        assert client.wait(DEADLINE_S) == 0


def test_nbdsh_uses_every_command_and_meets_every_refusal(server: Server) -> None:
    need("nbdsh")
    script = """
import errno
h.set_strict_mode(0)
assert h.can_meta_context("base:allocation")
h.pwrite(b"a" * 4096, 0, nbd.CMD_FLAG_FUA)
h.cache(4096, 0)
assert h.pread(4096, 0, nbd.CMD_FLAG_DF) == b"a" * 4096
h.zero(512, 512, nbd.CMD_FLAG_FAST_ZERO | nbd.CMD_FLAG_NO_HOLE)
assert h.pread(1536, 0) == b"a" * 512 + bytes(512) + b"a" * 512
found = []
h.block_status(1 << 20, 0, lambda context, offset, entries, error: found.append(entries))
h.block_status(1 << 20, 0, lambda *a: found.append(a[2]), nbd.CMD_FLAG_REQ_ONE)
assert found == [[65536, 0, (1 << 20) - 65536, 3], [65536, 0]], found
size = h.get_size()
for attempt, expected in (
    (lambda: h.pread(1, 0), errno.EINVAL),
    (lambda: h.pread(512, size), errno.EINVAL),
    (lambda: h.pwrite(bytes(512), size), errno.ENOSPC),
    (lambda: h.pwrite(bytes(100), 0), errno.EINVAL),
    (lambda: h.zero(512, size), errno.ENOSPC),
    (lambda: h.trim(512, size), errno.EINVAL),
    (lambda: h.pread(512, 0, nbd.CMD_FLAG_REQ_ONE), errno.EINVAL),
    (lambda: h.trim(0, 0), errno.EINVAL),
    (lambda: h.pread(32 * 1024 * 1024 + 512, 0), errno.EINVAL),
):
    try:
        attempt()
        raise SystemExit("a bad request was taken")
    except nbd.Error as error:
        assert error.errnum == expected, error
h.pwrite(b"b" * (32 << 20), 0)
assert h.pread(32 << 20, 0) == b"b" * (32 << 20)
h.trim(size, 0)
assert h.pread(4096, 0) == bytes(4096)
h.flush()
"""
    run(*NBDSH, "--base-allocation", "-u", server.uri(), "-c", script)


def test_simple_replies_serve_a_client_that_wants_no_structured_ones(server: Server) -> None:
    need("nbdsh")
    script = f"""
h.set_request_structured_replies(False)
h.connect_uri("{server.uri()}")
h.pwrite(b"s" * 65536, 4096)
assert h.pread(65536, 4096) == b"s" * 65536
assert not h.can_df()
"""
    run(*NBDSH, "-c", script)


def test_the_oldest_way_to_choose_an_export_works(server: Server) -> None:
    need("nbdsh")
    script = f"""
h.set_handshake_flags(0)
h.connect_uri("{server.uri()}")
h.pwrite(b"o" * 512, 0)
assert h.pread(512, 0) == b"o" * 512
"""
    run(*NBDSH, "-c", script)


def test_random_requests_through_libnbd_match_a_shadow_copy(server: Server) -> None:
    need("nbdsh")
    script = """
import random
rng, size = random.Random(20), 8 << 20
shadow = bytearray(size)
for step in range(3000):
    offset = rng.randrange(size // 512) * 512
    length = min(size - offset, 512 * rng.choice((1, 8, 24, 128, 1000, 3000)))
    what = rng.randrange(4)
    if what == 0:
        data = rng.randbytes(length)
        h.pwrite(data, offset)
        shadow[offset:offset + length] = data
    elif what == 1:
        (h.trim if step % 2 else h.zero)(length, offset)
        shadow[offset:offset + length] = bytes(length)
    else:
        assert h.pread(length, offset) == shadow[offset:offset + length], step
"""
    run(*NBDSH, "-u", server.uri(), "-c", script)
