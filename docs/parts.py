"""The generated parts of hand-written pages: tables out of the code, so that neither can drift.

Each function returns Markdown. A page asks for one by a marker; `generate.py` puts it there.
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import itertools
import re
import struct
import sys
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs

ROOT = Path(__file__).parents[1]


# --- helpers -----------------------------------------------------------------------------------


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], right: int = 0) -> str:
    """Return a Markdown table; the first `right` columns are set flush right."""
    marks = ["---:"] * right + ["---"] * (len(heads) - right)
    lines = [heads, marks, *(map(str, row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def strings_under(thing: ModuleType | type[Any]) -> dict[str, str]:
    """Return the string that stands under each assignment in a module or class, by name."""
    tree: Any = ast.parse(textwrap.dedent(inspect.getsource(thing)))
    body = tree.body if inspect.ismodule(thing) else tree.body[0].body
    found = {}
    for above, below in itertools.pairwise(body):
        name = getattr(
            getattr(above, "target", None) or getattr(above, "targets", [None])[0], "id", ""
        )
        match below:
            case ast.Expr(value=ast.Constant(value=str(text))) if name:
                found[name] = " ".join(inspect.cleandoc(text).split())
    return found


def first_paragraph(thing: object) -> str:
    """Return the first paragraph of a docstring as one line."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n", 1)[0].split())


def layout(heads: str, rows: Sequence[tuple[str, str]], codes: str) -> str:
    """Return the offset table of a struct whose format is `codes`, fields named in order."""
    order, *each = re.findall(r"^[<>]|\d*[a-zA-Z]", codes)
    assert len(each) == len(rows), (codes, rows)
    lines, offset = [], 0
    for code, (name, meaning) in zip(each, rows, strict=True):
        size = struct.calcsize(order + code)
        lines.append((offset, size, name, meaning))
        offset += size
    assert offset == struct.calcsize(codes)
    return f"{heads}\n\n" + table(("offset", "bytes", "field", "meaning"), lines, right=2)


# --- the parts ---------------------------------------------------------------------------------


def frames() -> str:
    """The byte layout of the transport `tcp`."""
    from holdfast_transport_tcp import layout_tables

    return layout_tables()


def handshake() -> str:
    """The two frames of the handshake of the transport `tcp`."""
    from holdfast_transport_tcp import preface

    rows = [
        (f"`{each.__name__}`", first_paragraph(each), _fields(each))
        for each in (preface.Preface, preface.Welcome)
    ]
    return table(("frame", "what it is", "fields"), rows)


def messages() -> str:
    """Every message that crosses a link, in the order of the module."""
    from holdfast import messages as module

    rows = []
    for each in typing.get_args(module.Message):
        meaning = first_paragraph(each)
        rows.append((f"`{each.__name__}`", meaning, _fields(each)))
    return table(("message", "who says it, and what", "fields"), rows)


def _fields(cls: type[Any]) -> str:
    # The messages of the hot path are named tuples.
    names = getattr(cls, "_fields", None) or [field.name for field in attrs.fields(cls)]
    return ", ".join(f"`{name}`" for name in names)


def operations() -> str:
    """The kinds of operations and requests."""
    from holdfast.messages import OpKind, RequestFlag, RequestKind

    return "\n".join(
        f"### {title}\n\n{_members(cls)}"
        for title, cls in (
            ("Operations in the stream", OpKind),
            ("Requests of a consumer", RequestKind),
            ("Flags of a request", RequestFlag),
        )
    )


def _members(cls: type[enum.Enum]) -> str:
    docs = strings_under(cls)
    rows = [(each.value, f"`{each.name}`", docs.get(each.name, "")) for each in cls]
    return table(("value", "name", "meaning"), rows, right=1)


def _states(cls: type[enum.Enum]) -> str:
    docs = strings_under(cls)
    return table(("word", "meaning"), [(f"`{e.value}`", docs.get(e.name, "")) for e in cls])


def record() -> str:
    """The fields of the group record and of its members."""
    from holdfast.kernel.schema import doc_of
    from holdfast.model import CopyState, GroupRecord, Member

    parts = []
    for title, cls in (("The record", GroupRecord), ("Each member", Member)):
        rows = [(f"`{each.name}`", doc_of(cls, each)) for each in attrs.fields(cls)]
        parts.append(f"### {title}\n\n" + table(("field", "meaning"), rows))
    parts.append("### States of a member\n\n" + _states(CopyState))
    return "\n".join(parts)


def roles() -> str:
    """What a copy may be, how far a leg may have come, and where a session may stand."""
    from holdfast.sync.consumer import SessionPhase
    from holdfast.sync.leg import Phase
    from holdfast.sync.roles import Role

    return "\n".join(
        f"### {title}\n\n{_states(cls)}"
        for title, cls in (
            ("Roles of a copy", Role),
            ("Phases of a leg, the primary's stream to one copy", Phase),
            ("Phases of a consumer's session", SessionPhase),
        )
    )


def events() -> str:
    """What a group machine is told and what it asks for."""
    from holdfast.sync import events as module

    return "\n".join(
        f"### {title}\n\n"
        + table(
            ("name", "meaning"),
            [(f"`{each.__name__}`", first_paragraph(each)) for each in typing.get_args(union)],
        )
        for title, union in (("Events", module.Event), ("Effects", module.Effect))
    )


def faults() -> str:
    """Why a copy is lost."""
    from holdfast.errors import FaultReason

    docs = strings_under(FaultReason)
    rows = [
        (f"`{each.value}`", docs[each.name], "yes" if each.is_recoverable else "no")
        for each in FaultReason
    ]
    return table(("reason", "meaning", "comes back by delta sync"), rows)


REFUSALS: Mapping[str, str] = {
    "attached-elsewhere": "Another session holds the volume for writing (R11).",
    "busy": "The copy has asked for the group and awaits the answer; try again.",
    "failed": "The copy's disk has failed.",
    "no-such-copy": "The record names no such copy on this node, or it could not be made.",
    "not-primary": "The copy here is not the primary, or is one no longer.",
    "not-replica": "The copy is itself the primary of that epoch.",
    "protocol": "The sender broke a rule of the stream.",
    "stale-epoch": "The copy has seen a higher epoch, which the refusal names (R3).",
    "stopping": "The node is stopping.",
    "wrong-cluster": "Another cluster, or another volume.",
    "wrong-copy": "Another copy than the one that was meant.",
}


def refusals() -> str:
    """The codes of `Refused`, as the group machines and nodes use them."""
    used = set()
    for folder in ("sync", "node"):
        for path in (ROOT / "core/src/holdfast" / folder).glob("*.py"):
            text = path.read_text(encoding="utf-8")
            used |= set(re.findall(r'(?:efused|close_all)\(\s*"([a-z-]+)"', text))
    assert used == REFUSALS.keys(), used ^ REFUSALS.keys()
    return table(("code", "meaning"), [(f"`{c}`", REFUSALS[c]) for c in sorted(REFUSALS)])


NUMBERS: Mapping[str, Sequence[str]] = {
    "holdfast.sync.leg": (
        "WINDOW_BYTES",
        "WINDOW_FRAMES",
        "SYNC_IN_FLIGHT_BYTES",
        "SYNC_BUSY_BYTES",
        "OPEN_PATIENCE_S",
    ),
    "holdfast.sync.delta": ("QUERY_INDEXES_MAX", "READ_CHUNKS_MAX"),
    "holdfast.sync.disk": ("CLEAR_AFTER_S",),
    "holdfast.sync.departure": ("STOP_PATIENCE_S", "VACATE_RETRY_S", "LEAVE_PATIENCE_S"),
    "holdfast.sync.attachments": ("HOLDER_PATIENCE_S",),
    "holdfast.sync.consumer": ("RETRY_S_MAX",),
    "holdfast.units": ("CHUNK_BYTES", "REGION_BYTES", "REQUEST_BYTES_MAX", "REPLICAS_MAX"),
}
"""Module to the constants of it that the page lists."""


def numbers() -> str:
    """The timing that may be configured, and the constants that may not."""
    from holdfast.kernel.schema import doc_of
    from holdfast.kernel.sections import TimingOptions

    rows: list[tuple[str, object, str]] = [
        (f"`timing.{each.name}`", each.default, doc_of(TimingOptions, each))
        for each in attrs.fields(TimingOptions)
    ]
    for name, constants in NUMBERS.items():
        module = importlib.import_module(name)
        docs = strings_under(module)
        for constant in constants:
            value = getattr(module, constant)
            shown = f"{value:,}" if isinstance(value, int) else f"{value:g}"
            rows.append((f"`{constant}`", shown, docs.get(constant, "")))
    return table(("name", "value", "meaning"), rows)


_SEEDED = "CRC-32 of the bits, seeded with the CRC-32 of the sector's number (8 bytes), that with"


def _hashes_on_disk() -> str:
    from holdfast.local.copy import hash_file
    from holdfast.sync import hashlist

    listed = hash_file.HASHES_PER_SECTOR * hashlist.HASH_BYTES
    return (
        f"### `hashes`: sectors of {hash_file.SECTOR_BYTES} bytes, little-endian\n\n"
        + table(
            ("offset", "bytes", "field", "meaning"),
            (
                (0, listed, "hashes", f"{hash_file.HASHES_PER_SECTOR} of them, each of 16 bytes"),
                (listed, hash_file.SECTOR_BYTES - 4 - listed, "spare", "zeros"),
                (
                    hash_file.SECTOR_BYTES - 4,
                    4,
                    "checksum",
                    _SEEDED.replace("bits", "bytes before") + " the CRC-32 of "
                    "`hashes:COPY:INCARNATION`",
                ),
            ),
            right=2,
        )
        + "\nA sector of zeros has the hashes of zeros; in any other one whose checksum does not "
        "match all hashes are unknown, and computed anew.\n\n"
        f"BLAKE3 in keyed mode, its first {hashlist.HASH_BYTES} bytes; zeros for a chunk of zeros, "
        "so that the list of a sparse volume is sparse.\nA short last chunk is hashed as if padded "
        f"with zeros.\nThe tree over the list is computed: a node hashes the {hashlist.FANOUT} "
        "hashes below it, and is zeros when they are.\n"
    )


def on_disk() -> str:
    """The files of a copy's directory, byte by byte."""
    from holdfast.interfaces.copy import Superblock
    from holdfast.kernel.schema import doc_of
    from holdfast.local.copy import bitmap_file, dirty, superblock
    from holdfast.sync import context

    head = superblock._HEAD.format  # noqa: SLF001 - the page is about these bytes.
    slot = layout(
        f"### `superblock`: two slots of {superblock.SLOT_BYTES:,} bytes, little-endian",
        (
            ("magic", f'"{superblock._MAGIC.decode()}"'),  # noqa: SLF001
            ("format", f"{superblock.FORMAT_VERSION}; a higher one is refused as newer"),
            ("checksum", "CRC-32 (zlib) of the slot with these four bytes zero"),
            ("generation", "rises with every save; the higher valid slot counts"),
            ("length", "bytes of the payload that follows, a JSON object; then zeros"),
        ),
        head,
    )
    rows = [(f"`{each.name}`", doc_of(Superblock, each)) for each in attrs.fields(Superblock)]
    payload = "The payload:\n\n" + table(("key", "meaning"), rows)
    bits = bitmap_file.BITS_PER_SECTOR
    maps = (
        f"### `intent` and `stale`: sectors of {bitmap_file.SECTOR_BYTES} bytes, little-endian\n\n"
        + table(
            ("offset", "bytes", "field", "meaning"),
            (
                (0, bits // 8, "bits", f"{bits:,} of them, the lowest bit of the first byte first"),
                (
                    bits // 8,
                    4,
                    "checksum",
                    f"{_SEEDED} the CRC-32 of `NAME:COPY:INCARNATION`",
                ),
            ),
            right=2,
        )
        + "\n`intent` has a bit for each region, `stale` one for each chunk whose hash is not to "
        "be trusted.\nA sector whose checksum does not match counts as all bits set.\n"
    )
    kept = layout(
        "### `dirty/COPY`: what another copy has missed, little-endian",
        (
            ("magic", f'"{dirty._MAGIC.decode()}"'),  # noqa: SLF001
            ("checksum", "CRC-32 (zlib) of all that follows"),
            ("length", "bytes that the map takes when unpacked"),
        ),
        dirty._HEAD.format,  # noqa: SLF001
    )
    kept += (
        f"\nThe map follows, compressed by zlib: {context.MAP_TAG_BYTES} bytes that name the "
        "absence it is about (BLAKE2b of `INCARNATION/LEFT_EPOCH` of that copy), then a bit for each "
        "chunk.\n"
        "It is replaced by a rename; a damaged one counts as all bits set.\n"
    )
    return f"{slot}\n{payload}\n{maps}\n{_hashes_on_disk()}\n{kept}"


def file(path: str) -> str:
    """A file of the tree as a code block."""
    language = {".py": "python", ".toml": "toml"}.get(Path(path).suffix, "text")
    return f"```{language}\n{(ROOT / path).read_text(encoding='utf-8').rstrip()}\n```\n"


def promises(kind: str) -> str:
    """What the kit of a kind checks."""
    module = importlib.import_module(f"holdfast.testing.checks.{kind}")
    return "\n".join(f"- {first_paragraph(check)}" for check in module.CHECKS) + "\n"


def capabilities(kind: str) -> str:
    """What drivers of a kind may declare."""
    from holdfast.kernel.schema import doc_of

    module = importlib.import_module(f"holdfast.testing.checks.{kind}")
    cls = module.Capabilities
    rows = [(f"`{each.name}`", repr(each.default), doc_of(cls, each)) for each in attrs.fields(cls)]
    return table(("capability", "default", "meaning"), rows)


def hooks() -> str:
    """Every hook of an observer."""
    from holdfast.kernel.hooks import Hooks

    rows = []
    for name, function in vars(Hooks).items():
        if hasattr(function, "holdfast_spec"):
            code = function.__code__
            arguments = ", ".join(code.co_varnames[1 : code.co_argcount])
            rows.append((f"`{name}({arguments})`", first_paragraph(function)))
    return table(("hook", "when"), rows)


def mutations() -> str:
    """Every deliberate bug with what caught it when the whole list was last searched."""
    sys.path.insert(0, str(ROOT))
    from tests.simulation.planting import every_bug, kept

    caught = kept()
    return table(
        ("bug", "looked for in", "caught by", "at seed"),
        (
            (
                f"{bug.sentence}.",
                "a world of its own" if bug.directed else "plain seeds",
                caught[name].by,
                caught[name].seed,
            )
            for name, bug in every_bug().items()
        ),
    )


def nvme_commands() -> str:
    """What the frontend `nvme-tcp` carries out."""
    from holdfast_transport_nvmeof.supported import tables

    return tables()


def nvme_replication() -> str:
    """What the transport `nvme-tcp` adds to NVMe."""
    from holdfast_transport_nvmeof.replication import tables

    return tables()


PARTS: Mapping[str, Callable[..., str]] = {
    each.__name__.replace("_", "-"): each
    for each in (
        *(frames, handshake, messages, operations, record, roles, events, faults, refusals),
        *(numbers, on_disk, file, promises, capabilities, hooks, mutations),
        *(nvme_commands, nvme_replication),
    )
}
MARKER = re.compile(r"(<!-- generated: (\S+)(?: (\S+))? -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """Return a page with all its generated parts made anew."""

    def made(found: re.Match[str]) -> str:
        begin, name, argument, end = found.groups()
        part = PARTS[name](argument) if argument else PARTS[name]()
        return f"{begin}\n{part.strip()}\n\n{end}"

    return MARKER.sub(made, text)


def pages() -> Iterator[Path]:
    """Yield the pages that have generated parts."""
    for path in sorted((ROOT / "docs").glob("*.md")):
        if MARKER.search(path.read_text(encoding="utf-8")):
            yield path
