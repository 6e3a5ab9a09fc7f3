"""Leases between nodes that spread their copies over workers: who promises what to whom."""

import json

import pytest

from holdfast.errors import ConfigError
from holdfast.kernel.config import config_from_text
from holdfast.messages import Heartbeat
from holdfast.model import NodeRecord, worker_of
from holdfast.node.nbd.handshake import ExportQuestion, Handshake, Phase
from holdfast.node.spreading import check_spreads
from holdfast.sync.peers import NEVER, Peers, Seat
from holdfast.units import Epoch, NodeName, VolumeId

A, B = NodeName("a"), NodeName("b")
FIRST, SECOND = VolumeId("v1"), VolumeId("v2")
EPOCH = Epoch(3)


def sender(workers: dict[VolumeId, int]) -> Peers:
    return Peers(A, worker_of=lambda _node, volume: workers[volume])


def keeper(volume: VolumeId) -> Peers:
    peers = Peers(B)
    peers.follow(volume, EPOCH, A)
    return peers


def beat(source: Peers, to: Peers, seat: Seat, now: float, worker: int = 0) -> None:
    """Send what is due to one seat and bring the answer back."""
    for other, message in source.due(now):
        if other == seat:
            source.on_answer(seat, to.on_heartbeat(A, "s", message, now, worker))


def test_a_lease_counts_only_where_the_copy_is_kept() -> None:
    workers = {FIRST: 0, SECOND: 1}
    primary, zeroth, first = sender(workers), keeper(FIRST), keeper(SECOND)
    for volume in workers:
        primary.grant(B, volume, EPOCH)
    assert set(primary.targets()) == {(B, 0), (B, 1)}
    for seat in primary.targets():
        primary.on_connected(seat)
    beats = dict(primary.due(10.0))
    primary.on_answer((B, 0), zeroth.on_heartbeat(A, "s", beats[B, 0], 10.0))
    assert primary.valid_until(B, FIRST) == 12.0
    assert primary.valid_until(B, SECOND) == NEVER, "the other worker has promised nothing"
    primary.on_answer((B, 1), first.on_heartbeat(A, "s", beats[B, 1], 10.0))
    assert primary.valid_until(B, SECOND) == 12.0


def test_another_worker_than_the_keeper_refuses_and_a_new_number_of_workers_mends_it() -> None:
    workers = {SECOND: 0}
    primary, wrong, right = sender(workers), keeper(FIRST), keeper(SECOND)
    primary.grant(B, SECOND, EPOCH)
    primary.on_connected((B, 0))
    beat(primary, wrong, (B, 0), 10.0)
    assert primary.valid_until(B, SECOND) == NEVER
    workers[SECOND] = 1
    primary.reseat()
    assert primary.changed
    assert primary.targets() == ((B, 1),)
    primary.on_connected((B, 1))
    beat(primary, right, (B, 1), 11.0)
    assert primary.valid_until(B, SECOND) == 13.0


def test_a_primary_is_heard_by_whichever_of_its_workers_names_the_group() -> None:
    copy = keeper(SECOND)
    copy.on_heartbeat(A, "s0", Heartbeat(1, 1, ((FIRST, EPOCH),), 0.0), 20.0, 0)
    assert copy.heard_at(SECOND) == NEVER
    copy.on_heartbeat(A, "s1", Heartbeat(1, 1, ((SECOND, EPOCH),), 0.0), 21.0, 1)
    copy.on_heartbeat(A, "s0", Heartbeat(2, 1, None, 0.0), 25.0, 0)
    assert copy.heard_at(SECOND) == 21.0
    # Another process of that worker begins without having named anything.
    copy.on_heartbeat(A, "s2", Heartbeat(1, 1, (), 0.0), 26.0, 1)
    assert copy.heard_at(SECOND) == NEVER


def test_all_nodes_find_the_same_worker_in_a_record() -> None:
    record = NodeRecord(A, "", "", workers=("p0", "p1", "p2"))
    assert NodeRecord.from_bytes(record.to_bytes()) == record
    volumes = [VolumeId(f"volume-{number}") for number in range(300)]
    found = [record.worker_of(volume) for volume in volumes]
    assert found == [worker_of(volume, 3) for volume in volumes]
    assert all(found.count(worker) > 60 for worker in range(3))
    assert NodeRecord(A, "", "").worker_of(FIRST) == 0


def test_a_handshake_goes_on_in_another_process_where_it_was() -> None:
    handshake = Handshake()
    handshake.data_to_send()
    go = b"\x00\x00\x00\x02db\x00\x01\x00\x03"
    handshake.receive(
        b"\x00\x00\x00\x03"
        b"IHAVEOPT\x00\x00\x00\x08\x00\x00\x00\x00"
        b"IHAVEOPT\x00\x00\x00\x07" + len(go).to_bytes(4, "big") + go + b"early"
    )
    question = handshake.next_event()
    assert question == ExportQuestion("db", enters=True)
    resumed = Handshake.resumed(json.loads(json.dumps(handshake.state())))
    assert resumed.phase is Phase.ASKING
    assert resumed.question == question
    assert resumed.structured
    assert resumed.data_to_send() == b""
    handshake.data_to_send()
    assert resumed == handshake


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ('[state]\ndriver = "memory"\n', "the state store memory is known to one process only"),
        ("workers = 0\n", "workers"),
        ("workers = 65\n", "workers"),
    ],
)
def test_what_cannot_have_workers_is_told_at_the_start(more: str, sentence: str) -> None:
    text = f'[node]\nname = "n1"\ndata = ["/srv/data"]\n{more}'
    if "[state]" in more:
        text = text.replace("[state]", "workers = 2\n[state]")
    with pytest.raises(ConfigError, match=sentence):
        check_spreads(config_from_text(text))
