"""The bytes of each message, kept as they were when the protocol was fixed.

A difference here is a change of the wire protocol: raise its version. Only when the change is meant,
and understood, run from the root of the tree

    PYTHONPATH=.:core/src:plugins/transport_tcp/src python plugins/transport_tcp/tests/test_golden.py \\
        --rewrite

and commit the difference. Compressed frames are kept too, but only read: other versions of the
compressors may find other bytes for the same contents.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from plugins.transport_tcp.tests.tcp_wire import decoded, encoded

from holdfast import messages as m
from holdfast.testing.checks._transport_bench import settled_form
from holdfast.testing.checks.transport import EXAMPLES
from holdfast.units import Epoch, Sequence
from holdfast_transport_tcp.preface import Preface, Welcome

GOLDEN = Path(__file__).parent / "golden"
LINE_BYTES = 28
"""Two lines are the header."""

COMPRESSIBLE = m.Batch(
    Epoch(7),
    Sequence(1),
    Sequence(0),
    (m.Op(m.OpKind.WRITE, 0, 4096, b"holdfast" * 512), m.Op(m.OpKind.FLUSH, 0, 0)),
)
MESSAGES: tuple[Any, ...] = (
    Preface("kit", "n1", ("lz4", "none"), ()),
    Welcome("kit", "n2", "lz4", (), "", ""),
    Welcome("kit", "n2", "", (), "wrong-cluster", "Another one."),
    *EXAMPLES,
)


def _path(index: int, message: Any, suffix: str = "") -> Path:
    return GOLDEN / f"{index:02}-{type(message).__name__}{suffix}.hex"


def _vectors() -> list[tuple[Path, Any, str]]:
    plain = [(_path(i, message), message, "none") for i, message in enumerate(MESSAGES)]
    packed = [
        (_path(len(MESSAGES), COMPRESSIBLE, f"-{name}"), COMPRESSIBLE, name)
        for name in ("lz4", "zstd")
    ]
    return plain + packed


VECTORS = _vectors()


@pytest.mark.parametrize(
    ("path", "message", "compression"), VECTORS, ids=lambda v: getattr(v, "stem", "")
)
def test_the_bytes_of_a_message_have_not_changed(
    path: Path, message: Any, compression: str
) -> None:
    kept = bytes.fromhex(path.read_text())
    (got,) = decoded(kept, compression)
    assert settled_form(got) == settled_form(message)
    if compression == "none":
        assert encoded([message]) == kept


def test_no_golden_file_is_left_over() -> None:
    assert {path for path, _, _ in VECTORS} == set(GOLDEN.glob("*.hex"))


def rewrite() -> None:
    """Write every vector anew."""
    GOLDEN.mkdir(exist_ok=True)
    for old in GOLDEN.glob("*.hex"):
        old.unlink()
    for path, message, compression in VECTORS:
        raw = encoded([message], compression)
        lines = [raw[i : i + LINE_BYTES].hex(" ", -4) for i in range(0, len(raw), LINE_BYTES)]
        path.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    if sys.argv[1:] != ["--rewrite"]:
        sys.exit(__doc__)
    rewrite()
