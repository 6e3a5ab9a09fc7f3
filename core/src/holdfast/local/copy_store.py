"""The store of one copy over a directory: what the rest of Holdfast imports from here."""

from __future__ import annotations

from holdfast.local.copy.opening import create_copy, delete_copy, open_copy, read_superblock
from holdfast.local.copy.store import FileCopyStore

__all__ = ["FileCopyStore", "create_copy", "delete_copy", "open_copy", "read_superblock"]
