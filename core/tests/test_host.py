"""What the node asks its machine."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import pytest

from holdfast.errors import UnavailableError
from holdfast.local import host
from holdfast.local.host import boot_id, monotonic, space_of


def test_the_boot_id_is_a_uuid_and_stays() -> None:
    assert str(uuid.UUID(boot_id())) == boot_id()
    assert boot_id() is boot_id()


def test_a_machine_without_a_boot_id_is_explained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "_BOOT_ID", tmp_path / "missing")
    with pytest.raises(UnavailableError, match="boot id") as raised:
        boot_id.__wrapped__()
    assert "Linux" in raised.value.hint


def test_monotonic_is_the_clock_that_all_processes_share() -> None:
    before_s, now_s, after_s = time.monotonic(), monotonic(), time.monotonic()
    assert before_s <= now_s <= after_s


def test_space_is_that_of_the_file_system(tmp_path: Path) -> None:
    space = space_of(tmp_path)
    assert 0 < space.free_bytes <= space.total_bytes


def test_the_space_of_a_missing_directory_is_explained(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="missing") as raised:
        space_of(tmp_path / "missing")
    assert "[node] data" in raised.value.hint
