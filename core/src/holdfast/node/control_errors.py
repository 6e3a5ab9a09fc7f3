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
    """Return the error that `to_json` made `body` of.

    What is unknown, missing or of another type becomes the base class, an empty text, or a default:
    a program that is no node, or a newer one, may have made it.
    """
    told = body.get("error")
    fields: Mapping[str, Any] = told if isinstance(told, dict) else {}
    kind = next((k for k in _tree(HoldfastError) if k.code == fields.get("code")), HoldfastError)
    message = str(fields.get("message", "The answer is an error that says nothing."))
    hint = str(fields.get("hint", ""))
    if issubclass(kind, CopyError):
        reasons = {reason.value: reason for reason in FaultReason}
        reason = reasons.get(str(fields.get("reason")), FaultReason.IO_ERROR)
        return kind(message, reason=reason, hint=hint)
    if issubclass(kind, VolumeError):
        return kind(message, errno=_number(fields.get("errno"), 5), hint=hint)
    error = kind(message, hint=hint)
    # A newer node may know a class that this program does not; its exit code still counts.
    error.exit_code = _number(fields.get("exit_code"), kind.exit_code)
    return error


def _number(value: object, default: int) -> int:
    return value if isinstance(value, int) and 0 < value < 256 else default


def _tree(kind: type[HoldfastError]) -> Iterator[type[HoldfastError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)
