"""The command line against a node service in memory, reached by its control socket."""

import errno
import io
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from anyio.from_thread import start_blocking_portal
from core.tests.fake_node import FakeService
from rich.console import Console

from holdfast.cli import render, waiting
from holdfast.cli.app import EXIT_BUG, _fail, hoisted, run
from holdfast.cli.context import Context
from holdfast.cli.live import live
from holdfast.cli.volume_data import _size
from holdfast.errors import UnavailableError, UsageError
from holdfast.node.control import serve_control
from holdfast.node.control_client import _UnixConnection


@attrs.frozen
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        return json.loads(self.err)["error"]


Command = Callable[..., Outcome]


@pytest.fixture
def service() -> FakeService:
    return FakeService()


@pytest.fixture
def socket(service: FakeService, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "control.sock"
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serve_control(service, path)),
    ):
        yield path


@pytest.fixture
def offline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """`holdfast` in a folder without a cluster."""

    def command(*words: str) -> Outcome:
        code = run(["--dir", str(tmp_path / "none"), *words])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return command


@pytest.fixture
def holdfast(socket: Path, offline: Command) -> Command:
    """`holdfast` with a node that answers."""
    return lambda *words: offline("--control", str(socket), *words)


def test_a_volume_is_made_shown_changed_and_deleted(holdfast: Command) -> None:
    made = holdfast("volume", "create", "db", "--size", "1GiB", "--replicas", "2", "--wait")
    assert (made.code, made.err) == (0, "")
    assert "Volume db: 1 GiB, primary on n1, 2 replicas, healthy." in made.out
    assert "db" in holdfast("volume", "list").out
    page = holdfast("volume", "show", "db").out
    assert "All copies are in sync." in page
    assert "n3" in page
    assert holdfast("volume", "set", "db", "--replicas", "1", "--set", "grace_s=4").code == 0
    status = holdfast("--json", "volume", "show", "db").json
    assert (status["declared_replicas"], status["policy_options"]) == (1, {"grace_s": "4"})
    assert holdfast("volume", "delete", "db").out == "Volume db is deleted.\n"
    assert holdfast("volume", "list", "--json").json == {"volumes": []}
    assert "There are no volumes yet" in holdfast("volume", "list").out


def test_nobody_waits_for_a_new_volume_whose_only_node_is_away(
    holdfast: Command,
    service: FakeService,
    socket: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    holdfast("volume", "create", "db", "--size", "1GiB")
    status = service.held["db"] | {"health": "offline", "reason": "No primary serves."}
    for copy, state in zip(status["copies"], ("in-sync", "syncing"), strict=True):
        copy |= {"alive": state == "syncing", "state": state}
    service.held["db"] = status
    monkeypatch.setattr(waiting, "AWAY_S", 0.0)
    context = Context(dir=socket.parent, json=False, control=socket)
    with pytest.raises(UnavailableError, match="node n1, which has its first copy, is away") as it:
        waiting.wait_healthy(context, context.client(), "db", is_new=True)
    assert "`holdfast node start n1`" in it.value.hint
    assert "`holdfast volume delete db`" in it.value.hint
    assert capsys.readouterr().err == "Waiting: No primary serves.\n", "to a pipe too"
    for words in (("import", "db", "/dev/null"), ("export", "db", "x"), ("attach", "db")):
        told = holdfast("volume", *words)
        assert (told.code, "Volume db is offline. No primary serves." in told.err) == (7, True), (
            told
        )
    # Who asks to wait for a volume that was in use waits for its node.
    with pytest.raises(UnavailableError, match=r"offline after 0\.3 s"):
        waiting.wait_healthy(context, context.client(), "db", timeout_s=0.3)


def test_warnings_go_to_standard_error(holdfast: Command) -> None:
    made = holdfast("volume", "create", "db", "--size", "1GiB", "--replicas", "3")
    assert made.code == 0
    assert made.err == "Warning: Four nodes are fewer than five.\n"
    assert holdfast("volume", "set", "db", "--replicas", "2").err == ""
    assert holdfast("volume", "set", "db", "--replicas", "3").err == made.err


def test_copies_are_promoted_moved_and_evicted(holdfast: Command) -> None:
    holdfast("volume", "create", "db", "--size", "1GiB", "--replicas", "2")
    assert "is on n2" in holdfast("volume", "promote", "db", "n2").out
    assert "is moving to n4" in holdfast("volume", "move", "db", "n1", "n4").out
    evicted = holdfast("--json", "volume", "evict", "db", "n3").json
    assert [c["node"] for c in evicted["copies"]] == ["n4", "n2"]


def test_nodes_are_named_by_position_or_by_option(holdfast: Command) -> None:
    holdfast("volume", "create", "db", "--size", "1GiB", "--replicas", "2")
    assert "is on n2" in holdfast("volume", "promote", "db", "--node", "n2").out
    assert "is moving to n4" in holdfast("volume", "move", "db", "--from", "n1", "--to", "n4").out
    for at, word in enumerate(("n3", "--node=n3")):
        holdfast("volume", "create", f"db{at}", "--size", "1GiB", "--replicas", "2")
        evicted = holdfast("--json", "replica", "evict", f"db{at}", word).json
        assert "n3" not in [c["node"] for c in evicted["copies"]]
    for words in (["volume", "promote", "db"], ["volume", "move", "db", "n1", "--from", "n1"]):
        assert holdfast(*words).code == 2


def test_the_uri_is_that_of_the_node_asked_for_in_use_or_primary(
    holdfast: Command, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    down: set[str] = set()
    monkeypatch.setattr(
        "holdfast.cli.addressing._listens", lambda address, **_: address not in down
    )
    holdfast("volume", "create", "a b", "--size", "1MiB")
    assert holdfast("volume", "url", "a b").out == "nbd://127.0.0.1:10809/a%20b\n"
    service.held["a b"]["attached"] = "n3"
    assert holdfast("volume", "url", "a b").out == "nbd://127.0.0.1:10811/a%20b\n"
    assert holdfast("volume", "url", "a b", "--node", "n2").out == "nbd://127.0.0.1:10810/a%20b\n"
    assert holdfast("volume", "url", "a b", "--node", "n9").code == 5
    down.add("127.0.0.1:10811")
    assert holdfast("volume", "url", "a b").out == "nbd://127.0.0.1:10809/a%20b\n"
    assert holdfast("volume", "url", "a b", "--node", "n3").code == 7


def test_waiting_ends_when_healthy_or_when_told(holdfast: Command, service: FakeService) -> None:
    holdfast("volume", "create", "db", "--size", "1MiB")
    assert holdfast("volume", "wait", "db").out == "Volume db is healthy.\n"
    service.held["db"]["health"] = "degraded"
    late = holdfast("volume", "wait", "db", "--timeout", "0")
    assert late.code == 7
    assert "degraded" in late.err


def test_verify_is_0_only_when_all_copies_are_equal(
    holdfast: Command, service: FakeService
) -> None:
    holdfast("volume", "create", "db", "--size", "1MiB")
    assert holdfast("volume", "verify", "db").out == "All 3 copies of volume db are equal.\n"
    service.differences = [{"chunk": 3, "offset": 196608, "nodes": ["n2"]}]
    differing = holdfast("volume", "verify", "db")
    assert differing.code == 12
    assert "196608" in differing.out
    assert holdfast("volume", "verify", "db", "--json").json["equal"] is False


def test_events_are_lines(holdfast: Command) -> None:
    holdfast("volume", "create", "db", "--size", "1MiB")
    assert "The volume was made." in holdfast("volume", "events", "db").out
    lines = holdfast("--json", "volume", "events", "db").out.splitlines()
    assert [json.loads(line)["kind"] for line in lines] == ["created", "synced"]


def test_nodes_are_listed_shown_and_cordoned(holdfast: Command, service: FakeService) -> None:
    assert "n4" in holdfast("node", "list").out
    assert len(holdfast("--json", "node", "list").json["nodes"]) == 4
    page = holdfast("node", "show", "n1").out
    assert "512 GiB free of 1 TiB" in page
    assert "Its superblock cannot be read." in page
    assert "{" not in page
    assert holdfast("node", "drain", "n2").code == 2  # The socket is that of n1.
    assert not service.cordoned
    assert holdfast("node", "cordon", "n1").code == 0
    assert service.cordoned


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["volume", "show", "nope"], 5, "No volume is named 'nope'."),
        (["volume", "create", "x", "--size", "big"], 2, "'big' is not a size"),
        (["volume", "create", "x"], 2, "--size"),
        (["volume", "create", "x", "--size", "1GiB", "--replicas", "two"], 2, "--replicas"),
        (["volume", "create", "x", "--size", "1GiB", "--set", "grace"], 2, "has no '='"),
        (["volume", "set", "x"], 2, "Nothing is to be changed."),
        (["volume", "creat", "x"], 2, "creat"),
        (["volume", "move", "x", "n1", "n1"], 2, "cannot be moved"),
        (["volume", "explain", "x"], 2, "Perhaps `holdfast explain`?"),
        (["volume", "list", "--fast"], 2, "--fast"),
        (["frobnicate"], 2, "frobnicate"),
        (["volume", "detach", "x"], 5, "not attached"),
        (["volume", "create", "x", "--size", "1GiB", "--label", "=v"], 2, "before its '='"),
        (["volume", "create", "x", "--size", "1GiB", "--set", "a=1", "--set", "a=2"], 2, "twice"),
        (["volume", "create", "x", "--shared=1"], 2, "`holdfast volume create -h` shows how"),
        (["volume", "list", "--dir"], 2, "--dir needs a value."),
        (["volume", "move", "x", "n1"], 2, "holdfast volume move x n1 TO"),
        (["volume", "move", "x", "n1", "n2", "--call-off"], 2, "not both"),
        (["plugin", "list", "--kind", "police"], 2, "no drivers of kind 'police'"),
        (["plugin", "check", "hard", "--set", "grace_s=x"], 2, "grace_s is 'x'"),
        (["plugin", "check", "hard", "--set", "grace=1"], 2, "Did you mean 'grace_s'?"),
    ],
)
def test_a_mistake_is_a_sentence_with_an_exit_code(
    holdfast: Command, words: list[str], code: int, sentence: str
) -> None:
    failed = holdfast(*words)
    assert failed.code == code
    assert failed.out == ""
    assert failed.err.startswith("holdfast: ")
    assert sentence in failed.err
    assert "Traceback" not in failed.err
    assert len(failed.err.splitlines()) <= 2
    error = holdfast("--json", *words).error
    assert error["exit_code"] == code
    assert sentence in f"{error['message']} {error['hint']}"


def test_without_a_cluster_the_error_says_how_to_make_one(offline: Command) -> None:
    failed = offline("volume", "list")
    assert failed.code == 5
    assert "holdfast up" in failed.err
    assert offline("status").code == 5
    assert offline("down").code == 5


def test_a_node_that_is_gone_is_exit_code_7(offline: Command, tmp_path: Path) -> None:
    gone = offline("--control", str(tmp_path / "gone.sock"), "volume", "list")
    assert gone.code == 7
    assert "is not running" in gone.err


def test_a_bug_is_a_sentence_and_its_details_a_file(
    offline: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_args: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr("holdfast.cli.context.Context.client", broken)
    failed = offline("volume", "list")
    assert failed.code == EXIT_BUG
    assert "boom" in failed.err
    assert "Traceback" not in failed.err
    assert "Traceback" in (tmp_path / "holdfast-errors.log").read_text()


def test_ctrl_c_is_exit_code_130(offline: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("holdfast.cli.context.Context.client", interrupted)
    assert offline("volume", "list") == Outcome(130, "", "")


@pytest.mark.parametrize(
    "words", [[], ["volume"], ["node"], ["plugin"], ["config"], ["volume", "create"]]
)
def test_every_command_helps(offline: Command, words: list[str]) -> None:
    for flag in ("-h", "--help"):
        helped = offline(*words, flag)
        assert helped.code == 0
        assert "Usage" in helped.out


def test_a_group_without_a_command_shows_its_help(offline: Command) -> None:
    shown = offline("volume")
    assert shown.code == 2
    assert (shown.out + shown.err).count("Usage") == 1


def test_one_node_tells_of_a_whole_cluster(holdfast: Command, service: FakeService) -> None:
    holdfast("volume", "create", "db", "--size", "1MiB")
    told = holdfast("--json", "status").json
    assert [node["state"] for node in told["nodes"]] == ["running"] * len(service.names)
    assert [volume["name"] for volume in told["volumes"]] == ["db"]
    assert told["cluster"] in holdfast("status").out
    wrong = holdfast("volume", "url", "db", "--frontend", "ftp")
    assert (wrong.code, "Installed: nbd" in wrong.err) == (4, True)


def test_json_and_dir_may_stand_anywhere() -> None:
    assert hoisted(["volume", "show", "x", "--json"]) == ["--json", "volume", "show", "x"]
    assert hoisted(["up", "--dir", "/d", "-d"]) == ["--dir", "/d", "up", "-d"]
    assert hoisted(["up", "--dir=/d"]) == ["--dir=/d", "up"]
    assert hoisted(["status", "--control", "/s"]) == ["--control", "/s", "status"]
    assert hoisted(["a", "--", "--json"]) == ["a", "--", "--json"]


def test_plugins_and_the_doctor_answer_without_a_cluster(offline: Command) -> None:
    listed = offline("--json", "plugin", "list").json["plugins"]
    assert {"state", "policy", "transport"} <= {each["kind"] for each in listed}
    findings = offline("--json", "doctor").json["findings"]
    assert {"system", "data folder"} <= {each["what"] for each in findings}
    assert offline("doctor").out


def test_a_configuration_is_checked_and_shown(offline: Command, tmp_path: Path) -> None:
    good = tmp_path / "good.toml"
    good.write_text(
        '[node]\nname = "a"\ndata = ["data"]\n[state.sqlite]\npath = "state.db"\n', encoding="utf-8"
    )
    assert "is right" in offline("config", "check", "--config", str(good)).out
    shown = offline("--json", "config", "show", "-c", str(good)).json["config"]
    assert {"path": "node.name", "value": "a", "source": f"{good}:2"} in shown
    assert "transport.driver" in offline("config", "show", "-c", str(good)).out
    bad = tmp_path / "bad.toml"
    bad.write_text('[node]\nname = "a"\ndate = ["data"]\n', encoding="utf-8")
    failed = offline("config", "check", "--config", str(bad))
    assert failed.code == 3
    assert "'data'" in failed.err
    assert "date" in failed.err
    assert offline("config", "check", "--config", str(tmp_path / "none.toml")).code == 3


def test_a_closed_pipe_ends_quietly(socket: Path) -> None:
    import subprocess
    import sys

    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "holdfast", "--control", str(socket), "volume", "list"],
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert (done.returncode != 0, done.stderr) == (True, b"")


def test_a_full_output_is_told_and_is_no_bug(socket: Path) -> None:
    import subprocess
    import sys

    program = [sys.executable, "-m", "holdfast", "--control", str(socket), "volume", "list"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr.splitlines()) == (
        7,
        [
            "holdfast: Its output or a file cannot be used: No space left on device.",
            "  Check the permissions and the space left.",
        ],
    )


def test_every_line_of_a_hint_stands_below_its_error(capsys: pytest.CaptureFixture[str]) -> None:
    _fail(UnavailableError("It cannot be.", hint="nbd: no module\nfuse: no root"), as_json=False)
    told = "holdfast: It cannot be.\n  nbd: no module\n  fuse: no root\n"
    assert capsys.readouterr().err == told


def test_nothing_is_imported_under_the_user_of_a_device(holdfast: Command, tmp_path: Path) -> None:
    holdfast("volume", "create", "db", "--size", "1MiB")
    attached = tmp_path / "none" / "attach" / "db" / "attached.json"
    attached.parent.mkdir(parents=True)
    attached.write_text('{"name": "db", "device": "/dev/loop7"}')
    refused = holdfast("volume", "import", "db", str(attached))
    assert refused.code == 6
    assert "Volume db is attached as /dev/loop7" in refused.err
    assert "holdfast volume detach db" in refused.err


def test_only_what_has_a_size_is_imported(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        source = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        with pytest.raises(UsageError, match="neither a file nor a block device"):
            _size(path, source)
        os.close(source)


@pytest.mark.parametrize("flags", [{}, {"cordoned": True}, {"cordoned": True, "draining": True}])
@pytest.mark.parametrize("width", [40, 80, 200])
def test_no_table_cuts_words_and_numbers_in_two(flags: dict[str, bool], width: int) -> None:
    node = {
        "name": "n1",
        "state": "running",
        "pid": 1234567,
        "copies": 12,
        "primaries": 4,
        "free_bytes": 1023 << 30,
        "frontends": {"nbd": "127.0.0.1:10809"},
        **flags,
    }
    volume = {
        "name": "db",
        "size": 256 << 20,
        "health": "read-only",
        "access": "read-write",
        "policy": "v1-alwayson",
        "primary": "n1",
        "copies": (),
        "declared_replicas": 2,
        "attached": None,
    }
    shown = io.StringIO()
    status = {"dir": "/cluster", "nodes": [node], "volumes": [volume]}
    console = Console(file=shown, width=width)
    console.print(render.cluster_page(status), crop=False)
    text = shown.getvalue()
    words = {"127.0.0.1:10809", "1234567", "1023 GiB", "256 MiB", "read-only", "read-write", "n1"}
    words |= {
        "v1-alwayson",
        "running",
        *(["draining" if "draining" in flags else "cordoned"] * any(flags)),
    }
    assert {word for word in words if word not in text} == set()
    if width >= 80:
        assert all(len(line) <= width for line in text.splitlines() if "127.0.0.1" in line)


def test_a_page_that_is_watched_through_a_pipe_is_written_when_it_changes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with live() as draw:
        for page in ("one", "one", "two"):
            draw(page)
    assert capsys.readouterr().out == "one\ntwo\n"


def test_another_users_node_says_whose_it_is(
    holdfast: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_connection: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(_UnixConnection, "connect", refused)
    told = holdfast("volume", "list")
    assert (told.code, "answers its owner alone" in told.err) == (2, True)


def test_a_node_refuses_to_run_without_the_checks_that_guard_the_data(tmp_path: Path) -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-O", "-m", "holdfast.node", "--config", str(tmp_path / "none.toml")],
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 2
    assert "without -O" in done.stderr
    assert "Traceback" not in done.stderr


def test_explain_tells_why_what_comes_and_what_helps(holdfast: Command) -> None:
    holdfast("volume", "create", "db", "--size", "1GiB")
    page = holdfast("explain", "db").out
    assert "Volume db is healthy, access read-write, since 1970-01-01" in page
    assert "The copy on n2 is offline." in page
    assert "(in 30 s): Access becomes" in page.replace("\n", " ")
    assert "holdfast node start n2" in page
    assert holdfast("--json", "explain", "db").json["help"][0]["command"]
    assert holdfast("explain", "nothing").code == 5


def test_a_volume_grows_and_never_shrinks(holdfast: Command) -> None:
    holdfast("volume", "create", "db", "--size", "1GiB", "--spread", "zone")
    assert holdfast("--json", "volume", "show", "db").json["labels"] == {"holdfast/spread": "zone"}
    assert holdfast("volume", "resize", "db", "--size", "2GiB").out == (
        "Volume db has 2 GiB now.\n"
    )
    assert holdfast("volume", "resize", "db", "--size", "huge").code == 2
    changed = holdfast("--json", "volume", "set", "db", "--member-missing-timeout", "900")
    assert changed.json["member_missing_timeout_s"] == 900


def test_a_volume_that_cannot_grow_now_is_told_as_declared(
    holdfast: Command, service: FakeService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("holdfast.cli.volume_admin.RESIZE_PATIENCE_S", 0.0)
    service.grows = False
    holdfast("volume", "create", "db", "--size", "1GiB")
    waits = holdfast("volume", "resize", "db", "--size", "2GiB")
    assert waits.code == 7
    assert "db is declared to have 2 GiB, and does not serve that after 0 s" in waits.err
    assert "it will, by itself, once every in-sync copy has grown." in waits.err
    assert "`holdfast volume show db`" in waits.err
    assert "2 GiB declared, 1 GiB served" in holdfast("volume", "show", "db").out
    service.held["db"]["copies"][1]["alive"] = False
    waits = holdfast("volume", "resize", "db", "--size", "2GiB")
    assert "once the copy on n2 is back." in waits.err


def test_a_scrub_tells_what_it_repaired(holdfast: Command, service: FakeService) -> None:
    holdfast("volume", "create", "db", "--size", "1MiB")
    assert holdfast("volume", "scrub", "db").out == "All 3 copies of volume db are equal.\n"
    service.differences = [{"chunk": 3, "offset": 196608, "nodes": ["n2"]}]
    done = holdfast("volume", "scrub", "db")
    assert done.code == 0
    assert "196608" in done.out
    assert "are equal. Repaired: 1 chunk." in done.out
    assert holdfast("--json", "volume", "scrub", "db").json["repaired"] == 1
