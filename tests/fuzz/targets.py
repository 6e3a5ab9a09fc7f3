"""The targets by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from tests.fuzz import local, wire

CORPUS = Path(__file__).parent / "corpus"

TARGETS: Mapping[str, Callable[[bytes], None]] = {
    target.__name__: target
    for target in (
        wire.frames,
        wire.frames_forged,
        wire.nbd_handshake,
        wire.nbd_requests,
        wire.nbd_client,
        wire.nvme_target,
        wire.nvme_host,
        wire.nvme_authentication,
        wire.nvme_stream_target,
        wire.nvme_stream_host,
        wire.nvme_messages,
        local.superblock,
        local.superblock_payload,
        local.intent,
        local.hashes,
        local.dirty,
        local.config,
        local.records,
        local.control,
        local.control_answer,
    )
}


def inputs(name: str) -> list[Path]:
    """Return the corpus of a target."""
    return sorted((CORPUS / name).iterdir())
