"""The files and ports of a local cluster, and what is known of processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from holdfast.errors import ConfigError, ConflictError, NotFoundError, UsageError
from holdfast.node import local_cluster, ports, processes
from holdfast.node.local_cluster import LocalCluster
from holdfast.node.toml_files import read_toml, toml_text


def test_a_cluster_is_made_once_and_found_again(tmp_path: Path) -> None:
    made = LocalCluster.create(tmp_path / "c", count=3)
    assert made.names == ("n1", "n2", "n3")
    again = LocalCluster.create(tmp_path / "c")
    assert again == made == LocalCluster.open(tmp_path / "c")
    settings = [node.settings() for node in made.nodes]
    assert [s["node"]["name"] for s in settings] == ["n1", "n2", "n3"]
    assert len({s["cluster"]["name"] for s in settings}) == 1
    assert len({s["state"]["sqlite"]["path"] for s in settings}) == 1
    chosen = {s["transport"]["tcp"]["port"] for s in settings}
    chosen |= {int(s["frontend"]["nbd"]["listen"].rpartition(":")[2]) for s in settings}
    assert len(chosen) == 6


def test_wrong_settings_for_all_nodes_leave_the_cluster_as_it_was(tmp_path: Path) -> None:
    made = LocalCluster.create(tmp_path / "c", count=1)
    before = made.node("n1").config.read_text(encoding="utf-8")
    extra = tmp_path / "extra.toml"
    extra.write_text("[timing]\nlease_s = 6\nhartbeat_s = 1\n")
    with pytest.raises(ConfigError, match=r"extra.toml:3: timing.hartbeat_s is not .*heartbeat_s"):
        LocalCluster.create(tmp_path / "c", count=2, extra=extra)
    assert LocalCluster.open(tmp_path / "c").names == ("n1",)
    assert made.node("n1").config.read_text(encoding="utf-8") == before


def test_the_default_is_four_nodes(tmp_path: Path) -> None:
    assert LocalCluster.create(tmp_path).names == ("n1", "n2", "n3", "n4")


def test_a_cluster_grows_and_never_shrinks(tmp_path: Path) -> None:
    LocalCluster.create(tmp_path, count=1)
    port = LocalCluster.open(tmp_path).node("n1").settings()["transport"]["tcp"]["port"]
    grown = LocalCluster.create(tmp_path, count=3)
    assert grown.names == ("n1", "n2", "n3")
    assert grown.node("n1").settings()["transport"]["tcp"]["port"] == port
    with pytest.raises(UsageError, match="3 nodes already"):
        LocalCluster.create(tmp_path, count=2)
    for impossible in (0, -1, 65):
        with pytest.raises(UsageError, match="1 to 64 nodes"):
            LocalCluster.create(tmp_path, count=impossible)


def test_a_port_that_is_in_use_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(local_cluster, "TRANSPORT_PORT_BASE", port)
        cluster = LocalCluster.create(tmp_path, count=1)
        assert cluster.node("n1").settings()["transport"]["tcp"]["port"] != port
    # What is once written stays, though the port is free now.
    again = LocalCluster.create(tmp_path)
    assert again.node("n1").settings()["transport"]["tcp"]["port"] != port


def test_a_port_taken_since_is_told_and_chosen_anew_when_asked(tmp_path: Path) -> None:
    node = LocalCluster.create(tmp_path, count=1).node("n1")
    port = node.settings()["transport"]["tcp"]["port"]
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(ConflictError, match=f"127.0.0.1:{port}") as caught:
            local_cluster.check_ports(node)
        assert "--new-ports" in caught.value.hint
        with node.config.open("a") as file:
            file.write("# kept\n")
        before = node.settings()
        local_cluster.choose_ports_anew(LocalCluster.open(tmp_path))
        local_cluster.check_ports(node)
    after = node.settings()
    assert after["transport"]["tcp"].pop("port") != before["transport"]["tcp"].pop("port")
    assert after == before
    assert node.config.read_text().endswith("# kept\n")


def test_only_one_at_a_time_chooses_ports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    order = []

    def second() -> None:
        with ports.choosing():
            order.append("second")

    with ports.choosing():
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.05)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_half_made_cluster_is_completed(tmp_path: Path) -> None:
    cluster = LocalCluster.create(tmp_path, count=2)
    cluster.node("n2").config.unlink()
    kept = cluster.node("n1").config.read_text()
    LocalCluster.create(tmp_path)
    assert cluster.node("n1").config.read_text() == kept
    assert cluster.node("n2").settings()["node"]["name"] == "n2"
    (tmp_path / "cluster.json").unlink()
    assert LocalCluster.create(tmp_path, count=2).names == ("n1", "n2")


def test_shared_settings_go_to_every_node_and_ports_stay(tmp_path: Path) -> None:
    extra = tmp_path / "extra.toml"
    extra.write_text('[transport.tcp]\ncompression = "none"\n[policy.hard]\ngrace_s = 4\n')
    plain = LocalCluster.create(tmp_path / "c", count=2)
    port = plain.node("n2").settings()["transport"]["tcp"]["port"]
    shared = LocalCluster.create(tmp_path / "c", extra=extra)
    for node in shared.nodes:
        settings = node.settings()
        assert settings["transport"]["tcp"]["compression"] == "none"
        assert settings["policy"]["hard"] == {"grace_s": 4}
    assert shared.node("n2").settings()["transport"]["tcp"]["port"] == port


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('[node]\nname = "x"\n', "node.name belongs to one node"),
        ('[frontend.nbd]\nlisten = "x:1"\n', "frontend.nbd.listen belongs"),
        ("[oops\n", "is not TOML"),
        (None, "cannot be read"),
    ],
)
def test_shared_settings_that_cannot_be_are_refused(
    tmp_path: Path, text: str | None, sentence: str
) -> None:
    extra = tmp_path / "extra.toml"
    if text is not None:
        extra.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        LocalCluster.create(tmp_path / "c", extra=extra)
    assert not (tmp_path / "c").exists()


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.odt").write_text("chapter one")
    with pytest.raises(UsageError, match="thesis"):
        LocalCluster.create(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.odt"]


def test_no_cluster_and_a_damaged_one_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no local cluster") as caught:
        LocalCluster.open(tmp_path / "none")
    assert "holdfast up" in caught.value.hint
    LocalCluster.create(tmp_path / "c", count=1)
    for damage in ("", "{", "[]", '{"format": 1}'):
        (tmp_path / "c" / "cluster.json").write_text(damage)
        with pytest.raises(ConfigError, match="damaged"):
            LocalCluster.open(tmp_path / "c")
    (tmp_path / "c" / "cluster.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(ConfigError, match="format 99"):
        LocalCluster.open(tmp_path / "c")


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be used"):
        LocalCluster.create(tmp_path / "file" / "c")
    with pytest.raises(UsageError, match="cannot be used"), local_cluster.locked(tmp_path / "file"):
        pass


def test_an_unknown_node_is_told_with_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no node 'n9'") as caught:
        LocalCluster.create(tmp_path, count=2).node("n9")
    assert "n1, n2" in caught.value.hint


def test_sockets_of_a_deep_folder_are_elsewhere_and_private(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    deep = tmp_path.joinpath(*["a-rather-long-folder-name"] * 5)
    cluster = LocalCluster.create(deep, count=1)
    node = cluster.node("n1")
    assert len(os.fsencode(node.control)) <= 107
    assert node.control.parent.stat().st_mode & 0o777 == 0o700
    assert LocalCluster.open(deep) == cluster
    assert node.settings()["control"]["socket"] == str(node.control)
    node.control.parent.chmod(0o777)
    with pytest.raises(UsageError, match="not this user's alone"):
        LocalCluster.create(deep)


def test_toml_is_written_as_it_is_read(tmp_path: Path) -> None:
    settings = {
        "a": 1,
        "b": {"c": 'quo"te\\ and ü', "d": [1, 2], "e f": {"g": True, "h": 1.5}, "i": {}},
    }
    path = tmp_path / "x.toml"
    path.write_text(toml_text(settings), encoding="utf-8")
    assert read_toml(path) == settings


def test_a_process_counts_only_when_it_lives_and_is_the_one_meant(tmp_path: Path) -> None:
    pid_file = tmp_path / "node.pid"
    assert processes.read_pid(pid_file) is None
    for rubbish in ("", "x", "-1", "0", "999999999"):
        pid_file.write_text(rubbish)
        assert processes.read_pid(pid_file) is None
    program = [sys.executable, "-c", "import time; time.sleep(60)", "--config", "me.toml"]
    with subprocess.Popen(program) as child:
        pid_file.write_text(str(child.pid))
        processes.wait_until(lambda: processes.is_alive(child.pid, argument="me.toml"), 5)
        assert processes.read_pid(pid_file, argument="me.toml") == child.pid
        assert processes.read_pid(pid_file, argument="other.toml") is None
        child.send_signal(signal.SIGSTOP)
        assert processes.read_pid(pid_file, argument="me.toml") == child.pid
        child.kill()
        # Now a zombie, since nobody has waited for it.
        assert processes.wait_until(lambda: not processes.is_alive(child.pid), 5)
        assert Path(f"/proc/{child.pid}").exists()
    assert processes.read_pid(pid_file) is None


THREADS = """
import socket, threading, time
server = socket.create_server(("127.0.0.1", 0))
for _ in range(20):
    threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
print(server.getsockname()[1], flush=True)
time.sleep(60)
"""


def test_a_process_has_ended_when_its_last_thread_has() -> None:
    """Its first one may be a zombie while the others still hold what it listens on."""
    for _ in range(5):
        program = [sys.executable, "-c", THREADS]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            port = int(child.stdout.readline())
            child.kill()
            while processes.is_alive(child.pid):  # Asked at once: the gap is short.
                pass
            assert ports.is_free(port)


def test_waiting_gives_back_what_still_lives() -> None:
    program = [sys.executable, "-c", "import time; time.sleep(60)"]
    with subprocess.Popen(program) as child:
        assert processes.wait_gone([child.pid], 0.05) == [child.pid]
        processes.send(child.pid, signal.SIGKILL)
        assert processes.wait_gone([child.pid], 5) == []
        child.returncode = -9  # wait_gone has reaped it.
    processes.send(child.pid, signal.SIGKILL)
