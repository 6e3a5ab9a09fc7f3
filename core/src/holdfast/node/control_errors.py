"""Errors of the tree in `holdfast.errors` as JSON, and back; knows no HTTP beyond the status codes.

A client of the control API thus raises the very class that the node raised, with its sentence, its
hint and its exit code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from holdfast import errors
from holdfast.errors import CopyError, FaultReason, HoldfastError, VolumeError

_STATUS: tuple[tuple[type[HoldfastError], int], ...] = (
    (errors.UsageError, 400),
    (errors.ConfigError, 400),
    (errors.DriverError, 400),
    (errors.NotFoundError, 404),
    (errors.ConflictError, 409),
    (errors.StateConflictError, 409),
    (errors.UnavailableError, 503),
)


def http_status(error: HoldfastError) -> int:
    """Return the HTTP status that fits `error`; 500 for what has none of its own."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def to_json(error: HoldfastError) -> dict[str, Any]:
    """Return `{"error": {"code", "message", "hint", "exit_code"}}` for `error`."""
    body: dict[str, Any] = {
        "code": error.code,
        "message": error.message,
        "hint": error.hint,
        "exit_code": error.exit_code,
    }
    if isinstance(error, CopyError):
        body["reason"] = error.reason.value
    if isinstance(error, VolumeError):
        body["errno"] = error.errno
    return {"error": body}


def from_json(body: Mapping[str, Any]) -> HoldfastError:
    """Return the error that `to_json` made `body` of; an unknown code becomes the base class."""
    fields = body["error"]
    kind = next((k for k in _tree(HoldfastError) if k.code == fields.get("code")), HoldfastError)
    message, hint = str(fields.get("message", "")), str(fields.get("hint", ""))
    if issubclass(kind, CopyError):
        return kind(message, reason=FaultReason(fields.get("reason", "io-error")), hint=hint)
    if issubclass(kind, VolumeError):
        return kind(message, errno=int(fields.get("errno", 5)), hint=hint)
    error = kind(message, hint=hint)
    # A newer node may know a class that this program does not; its exit code still counts.
    error.exit_code = int(fields.get("exit_code", kind.exit_code))
    return error


def _tree(kind: type[HoldfastError]) -> Iterator[type[HoldfastError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)
