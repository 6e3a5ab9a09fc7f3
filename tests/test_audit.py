"""`holdfast audit` finds what breaks a rule in the event logs, and nothing in those of a real cluster."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.harness.cluster import RunningCluster
from tests.harness.waiting import wait_until

from holdfast.errors import NotFoundError
from holdfast.node.audit import Audit, audit

Start = Callable[..., RunningCluster]
Event = dict[str, Any]


def record(
    at: float, epoch: int, primary: str, *in_sync: str, version: int, **facts: object
) -> Event:
    known = {
        "before": version - 1,
        "version": version,
        "primary": primary,
        "in_sync": [primary, *in_sync],
        "members": ["a", "b", "c"],
        "access": "read-write",
        "generation": 1,
    }
    return {"at": at, "epoch": epoch, "kind": "record", "facts": known | facts}


def event(at: float, epoch: int, kind: str, **facts: object) -> Event:
    return {"at": at, "epoch": epoch, "kind": kind, "facts": facts}


def written(folder: Path, **logs: list[Event]) -> Path:
    for node, events in logs.items():
        path = folder / node / "events" / "v1.jsonl"
        path.parent.mkdir(parents=True)
        lines = [json.dumps({**each, "node": node}) for each in events]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def rules(found: Audit) -> list[str]:
    return [finding.rule for finding in found.findings]


GOOD_A = [
    record(10.0, 1, "a", "b", "c", version=5),
    event(10.1, 1, "answering"),
    event(14.0, 1, "silent", until=12.4),
]
GOOD_B = [
    record(13.0, 2, "b", "c", version=6),
    event(13.1, 2, "answering"),
    record(20.0, 3, "b", "c", "a", version=7),
]


def test_a_failover_by_the_rules_passes(tmp_path: Path) -> None:
    found = audit(written(tmp_path, a=GOOD_A, b=GOOD_B, c=[]))
    assert found.findings == []
    assert (found.records, found.nodes, found.missing) == (3, ["a", "b"], ["c"])
    elsewhere = written(tmp_path / "other disk", c=[event(9.0, 1, "opened")])
    assert audit(tmp_path / "b", tmp_path / "a", elsewhere).missing == []


@pytest.mark.parametrize(
    ("rule", "line", "a", "b"),
    [
        # The lease of the first was not over.
        ("R5", 2, [*GOOD_A[:2], event(19.0, 1, "silent", until=19.0)], GOOD_B),
        # Both are primary of one epoch.
        ("I2", 2, [*GOOD_A, event(15.0, 2, "primary-serving")], [GOOD_B[0], GOOD_B[1]]),
        # The epoch of a record fell.
        ("I2", 1, GOOD_A, [record(13.0, 0, "b", "c", version=6)]),
        # The in-sync set changed and the epoch did not.
        ("I2", 1, GOOD_A[:2], [record(13.0, 1, "a", "b", version=6)]),
        # Promoted without being in sync.
        ("R4", 1, [record(10.0, 1, "a", "c", version=5)], [record(13.0, 2, "b", version=6)]),
        # A fence was forgotten.
        ("R3", 3, GOOD_A, [*GOOD_B[:2], event(15.0, 1, "copy-dropped")]),
        # An older writer came back.
        ("R11", 1, GOOD_A, [record(13.0, 2, "b", version=6, generation=0)]),
        # Somebody acts on an epoch that nobody has recorded.
        ("R2", 2, GOOD_A, [*GOOD_B[:1], event(13.1, 3, "copy-dropped"), GOOD_B[2]]),
    ],
)
def test_what_breaks_a_rule_is_named_with_its_line(
    tmp_path: Path, rule: str, line: int, a: list[Event], b: list[Event]
) -> None:
    found = audit(written(tmp_path, a=a, b=b))
    assert rule in rules(found), found
    places = {(Path(each.file).parts[-3], each.line) for each in found.findings}
    assert ("b", line) in places or ("a", 4) in places, places


def test_two_records_of_one_version_are_found(tmp_path: Path) -> None:
    other = record(10.5, 1, "a", version=5)
    assert rules(audit(written(tmp_path, a=GOOD_A, b=[other])))[0] == "R2"


def test_clocks_that_are_a_little_apart_break_no_rule(tmp_path: Path) -> None:
    late = [*GOOD_A[:2], event(14.0, 1, "silent", until=13.5)]
    folder = written(tmp_path, a=late, b=GOOD_B)
    assert rules(audit(folder)) == []
    assert rules(audit(folder, skew_s=0.1)) == ["R5"]


def test_lines_that_are_no_events_are_counted_and_left_out(tmp_path: Path) -> None:
    folder = written(tmp_path, a=GOOD_A)
    with (folder / "a/events/v1.jsonl").open("ab") as log:
        log.write(b'{"at": 1\n[]\n\xff\n{"at": 1, "node": "a", "epoch": 1, "kind": "record"}\n{"a')
    found = audit(folder)
    assert (found.events, found.damaged, found.findings) == (3, 5, [])


def test_a_folder_without_logs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no event log"):
        audit(tmp_path)
    with pytest.raises(NotFoundError, match="no folder"):
        audit(tmp_path / "nowhere")


def test_a_real_failover_keeps_the_rules(start_cluster: Start) -> None:
    cluster = start_cluster(nodes=3)
    cluster.create("db", "16MiB")
    before = cluster.primary("db")
    cluster.kill(before)
    wait_until(lambda: cluster.primary("db") not in {before, None}, 20, "another primary")
    cluster.start(before)
    cluster.wait_healthy("db")
    told = cluster.ask("audit")
    assert told["findings"] == []
    assert told["records"] >= 4
    assert told["missing"] == []
    shown = cluster.do("volume", "events", "db")
    assert "takes over" in shown
    assert "answering" not in shown
