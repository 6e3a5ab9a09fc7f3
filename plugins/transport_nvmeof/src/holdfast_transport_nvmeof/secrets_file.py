"""The file of secrets by which hosts authenticate: read anew at each Connect, so a change needs no restart.

A line is `HOSTNQN SECRET` or `HOSTNQN SECRET CONTROLLER-SECRET`; `#` begins a comment. No error repeats
what a line holds.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

import attrs

from holdfast.errors import ConfigError
from holdfast_transport_nvmeof.dhchap import Secret

FILE_BYTES_MAX = 1 << 20


@attrs.frozen
class HostSecrets:
    """What is kept for one host."""

    host: Secret
    """By which it proves who it is."""
    controller: Secret | None = None
    """By which controllers do; None: they cannot."""


def read(path: str) -> Mapping[str, HostSecrets]:
    """Return the secrets by the NQNs of their hosts.

    Raises:
        ConfigError: The file cannot be read, others may read it too, or a line is wrong.
    """
    try:
        with Path(path).open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_mode & 0o077:
                raise _wrong(path, "may be read by others than its owner.", f"chmod 600 {path}")
            if status.st_uid not in {0, os.geteuid()}:
                raise _wrong(path, "belongs to somebody else.", f"chown {os.geteuid()} {path}")
            text = file.read(FILE_BYTES_MAX).decode("utf-8", "replace")
    except OSError as error:
        hint = "Create it with mode 0600, or leave frontend.nvme-tcp.dhchap_file out."
        raise _wrong(path, f"cannot be read: {error.strerror}.", hint) from error
    found: dict[str, HostSecrets] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        hint = "A line is HOSTNQN SECRET or HOSTNQN SECRET CONTROLLER-SECRET."
        if not 2 <= len(words) <= 3:
            raise _wrong(path, f"has {len(words)} words in line {number}.", hint)
        if words[0] in found:
            raise _wrong(path, f"has a second line for a host in line {number}.", hint)
        try:
            found[words[0]] = HostSecrets(*map(Secret.parse, words[1:]))
        except ValueError as error:
            raise _wrong(
                path, f"has a wrong secret in line {number}: {error}.", "nvme gen-dhchap-key"
            ) from None
    return found


def _wrong(path: str, what: str, hint: str) -> ConfigError:
    return ConfigError(f"The file of secrets {path} {what}", hint=hint)
