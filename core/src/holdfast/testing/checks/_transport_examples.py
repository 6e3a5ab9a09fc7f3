"""At least one message of every kind, with the edges of its fields; for kits, goldens and fuzzers."""

from __future__ import annotations

from holdfast import messages as m
from holdfast.units import CopyId, Epoch, NodeName, Sequence, VolumeId

_VOLUME = VolumeId("0123456789abcdef0123456789abcdef")
_COPY = CopyId("fedcba9876543210fedcba9876543210")
_EPOCH = Epoch(7)

EXAMPLES: tuple[m.Message, ...] = (
    m.Attach(
        cluster="kit",
        volume=_VOLUME,
        epoch=_EPOCH,
        node=NodeName("n1"),
        session="s-1",
        primary=_COPY,
        target=CopyId("00" * 16),
        record=b'{"epoch":7}\x00\xff',
        spec=b"",
        resume=True,
    ),
    m.Attached(
        epoch=_EPOCH,
        incarnation="i-1",
        boot="b-1",
        session="s-2",
        state="in-sync",
        applied=Sequence(2**40),
        durable=Sequence(0),
        clean=False,
        rebooted=True,
        fresh=False,
        suspects=((0, 65536), (2**45, 4096)),
        size_bytes=2**46,
    ),
    m.Refused(code="stale-epoch", sentence="Epoch 6 is over: “7” is in force.", epoch=_EPOCH),
    m.Batch(
        epoch=_EPOCH,
        first=Sequence(100),
        commit=Sequence(99),
        ops=(
            m.Op(m.OpKind.WRITE, 4096, 512, bytes(range(256)) * 2),
            m.Op(m.OpKind.DISCARD, 2**45, 2**44),
            m.Op(m.OpKind.ZERO, 0, 4096),
            m.Op(m.OpKind.FLUSH, 0, 0),
            m.Op(m.OpKind.SYNC_WRITE, 65536, 1024, b"\x5a" * 1024),
            m.Op(m.OpKind.SYNC_ZERO, 131072, 65536),
        ),
    ),
    m.Batch(epoch=_EPOCH, first=Sequence(106), commit=Sequence(105), ops=()),
    m.Ack(epoch=_EPOCH, applied=Sequence(105), durable=Sequence(2**63)),
    m.EpochChange(epoch=Epoch(8), record=b'{"epoch":8}'),
    m.BeginSync(epoch=_EPOCH, first=Sequence(106)),
    m.SyncBegun(epoch=_EPOCH),
    m.HashQuery(epoch=_EPOCH, id=1, level=0, indexes=(0, 1, 2**30 - 1)),
    m.HashQuery(epoch=_EPOCH, id=2, level=3, indexes=()),
    m.HashAnswer(epoch=_EPOCH, id=1, hashes=bytes(range(48))),
    m.HashAnswer(epoch=_EPOCH, id=2, hashes=b""),
    m.ReadQuery(epoch=_EPOCH, id=3, offset=2**45, length=65536),
    m.ReadAnswer(epoch=_EPOCH, id=3, errno=0, data=b"\x01\x02" * 256),
    m.ReadAnswer(epoch=_EPOCH, id=4, errno=5, data=b""),
    m.CopyFailed(epoch=_EPOCH, reason="flush-failed", sentence="fdatasync: Input/output error"),
    m.SessionOpen(
        cluster="kit",
        volume=_VOLUME,
        node=NodeName("n2"),
        session="c-1",
        process="p-1",
        read_only=False,
        force=True,
        resume_generation=0,
    ),
    m.SessionOpened(
        epoch=_EPOCH, generation=3, size_bytes=2**40, access="read-write", loss_epoch=_EPOCH
    ),
    m.Requests(
        generation=3,
        requests=(
            m.Request(1, m.RequestKind.READ, 0, 0, 4096),
            m.Request(2**64 - 1, m.RequestKind.WRITE, m.RequestFlag.FUA, 512, 512, b"w" * 512),
            m.Request(3, m.RequestKind.FLUSH, 0, 0, 0),
            m.Request(4, m.RequestKind.DISCARD, 0, 2**40, 2**33),
            m.Request(5, m.RequestKind.ZERO, m.RequestFlag.NO_HOLE, 4096, 4096),
            m.Request(6, m.RequestKind.EXTENTS, 0, 0, 2**30),
        ),
    ),
    m.Requests(generation=0, requests=()),
    m.Replies(replies=(m.Reply(1, 0, b"r" * 4096), m.Reply(2**64 - 1, 0), m.Reply(3, 28))),
    m.VolumeChanged(epoch=_EPOCH, size_bytes=2**46, access="read-only"),
    m.SessionClose(generation=3),
    m.PeerHello(cluster="kit", node=NodeName("n3"), session="s-3"),
    m.Heartbeat(number=1, version=2, leases=((_VOLUME, _EPOCH),), stall_s=0.25),
    m.Heartbeat(number=2, version=2, leases=None, stall_s=0.0),
    m.HeartbeatAnswer(number=2, version=-1, refused=((_VOLUME, Epoch(9)),), stall_s=1e-3),
    m.HeartbeatAnswer(number=3, version=2, refused=(), stall_s=0.0),
    m.Resize(epoch=_EPOCH, size_bytes=2**46),
    m.Resized(epoch=_EPOCH, size_bytes=2**46),
    m.ReadLeaseQuery(epoch=_EPOCH, number=3),
    m.ReadLease(epoch=_EPOCH, number=3, for_s=1.75),
)
"""Contents a handler would refuse are fine here: a transport does not know what a message means."""
