"""A blocking client of the control API, for command lines and supervisors.

Plain `http.client` over a Unix socket: commands live for a tenth of a second, and importing an
event loop would take most of it. Every failure is a `HoldfastError`: those of the node as it
raised them, and `UnavailableError` when nobody answers.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from holdfast.errors import HoldfastError, NotFoundError, UnavailableError, UsageError
from holdfast.node.control_errors import from_json

Json = dict[str, Any]

TIMEOUT_S = 60.0
"""For an answer to a request. Making a volume waits for its primary, which is seconds at most."""
SILENCE_S = 30.0
"""For the next line of a comparison, which tells of every 8 MiB."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self.timeout)
            connection.connect(os.fspath(self._path))
        except OSError:
            connection.close()
            raise
        self.sock = connection


class ControlClient:
    """The control API of the node whose socket is `path`; one connection a request."""

    def __init__(
        self, path: Path, *, node: str = "", hint: str = "", timeout_s: float = TIMEOUT_S
    ) -> None:
        """Remember where to ask; connects to nothing yet.

        Args:
            path: The control socket.
            node: The node's name, for messages.
            hint: What to do when it does not answer.
            timeout_s: How long to wait for an answer where the call does not say.
        """
        self.path = path
        self._timeout_s = timeout_s
        self._who = f"Node {node}" if node else f"The node at {path}"
        self._hint = hint or (f"Start it with `holdfast node start {node}`." if node else "")

    # --- the node ------------------------------------------------------------------------------

    def node(self, *, timeout_s: float = TIMEOUT_S) -> Json:
        """Return the node's description of itself."""
        return self.request("GET", "/v1/node", timeout_s=timeout_s)

    def stop(self, *, handover: bool = True, timeout_s: float = TIMEOUT_S) -> None:
        """Ask the node to stop; returns when it has begun to."""
        self.request("POST", "/v1/node/stop", {"handover": handover}, timeout_s=timeout_s)

    def cordon(self, *, cordoned: bool) -> Json:
        """Let the node take no new copies, or let it again."""
        return self.request("POST", "/v1/node/cordon", {"cordoned": cordoned})

    def label(self, changes: Mapping[str, str | None]) -> Json:
        """Set labels of the node, and remove those whose value is None."""
        return self.request("POST", "/v1/node/labels", {"labels": dict(changes)})

    def drain(self, *, dry_run: bool) -> Json:
        """Begin to move the node's copies to others, or say what would be done."""
        return self.request("POST", "/v1/node/drain", {"dry_run": dry_run})

    def nodes(self) -> Sequence[Json]:
        """Return all nodes of the cluster."""
        return cast("Sequence[Json]", self.request("GET", "/v1/nodes")["nodes"])

    def plugins(self) -> Sequence[Json]:
        """Return the drivers that the node sees."""
        return cast("Sequence[Json]", self.request("GET", "/v1/plugins")["plugins"])

    def config(self) -> Sequence[Json]:
        """Return the configuration in force."""
        return cast("Sequence[Json]", self.request("GET", "/v1/config")["config"])

    def metrics(self) -> str:
        """Return the node's metrics as Prometheus text."""
        with self._open("GET", "/metrics", None, TIMEOUT_S) as response:
            return response.read().decode()

    def samples(self) -> Sequence[tuple[str, float, Mapping[str, str]]]:
        """Return the metrics as name, value and labels."""
        found = self.request("GET", "/metrics?own=1")["samples"]
        return cast("Sequence[tuple[str, float, Mapping[str, str]]]", found)

    # --- volumes -------------------------------------------------------------------------------

    def volumes(self) -> Sequence[Json]:
        """Return the status of all volumes."""
        return cast("Sequence[Json]", self.request("GET", "/v1/volumes")["volumes"])

    def volume(self, name: str) -> Json:
        """Return the status of a volume."""
        return self.request("GET", _path(name))

    def own_volume(self, name: str) -> Json:
        """Return the status of a volume as this node alone sees it."""
        return self.request("GET", f"{_path(name)}?own=1")

    def explain(self, name: str) -> Json:
        """Return why a volume is in its state, and what comes next."""
        return self.request("GET", f"{_path(name)}/explain")

    def own_explain(self, name: str) -> Json:
        """Return the explanation that this node alone can give."""
        return self.request("GET", f"{_path(name)}/explain?own=1")

    def own_events(self, name: str) -> list[Json]:
        """Return the events of a volume that this node itself has noted."""
        events = self.request("GET", f"{_path(name)}/events?own=1")["events"]
        assert isinstance(events, list)
        return events

    def create_volume(self, **fields: Any) -> tuple[Json, Sequence[str]]:
        """Make a volume; the fields are those of `VolumeRequest`. Returns status and warnings."""
        answer = self.request("POST", "/v1/volumes", fields)
        return answer["volume"], answer["warnings"]

    def change_volume(self, name: str, **fields: Any) -> Json:
        """Change a volume; the fields are those of `VolumeChanges`."""
        return self.request("PATCH", _path(name), fields)

    def delete_volume(self, name: str, *, force: bool = False) -> None:
        """Delete a volume and its copies."""
        self.request("DELETE", f"{_path(name)}?force={int(force)}")

    def events(self, name: str, *, follow: bool = False) -> Iterator[Json]:
        """Yield a volume's events; with `follow` for ever."""
        yield from self.stream("GET", f"{_path(name)}/events?follow={int(follow)}")

    def verify(self, name: str) -> Iterator[Json]:
        """Compare all copies; yields progress, and the result last."""
        yield from self.stream("POST", f"{_path(name)}/verify", silence_s=SILENCE_S)

    def scrub(self, name: str) -> Iterator[Json]:
        """Compare all copies and repair what is wrong; yields as `verify` does."""
        yield from self.stream("POST", f"{_path(name)}/scrub", silence_s=SILENCE_S)

    def promote(self, name: str, node: str, *, force: bool = False) -> Json:
        """Make `node`'s copy the primary."""
        path = f"{_path(name)}/promote?force={int(force)}"
        return self.request("POST", path, {"node": node})

    def move(self, name: str, source: str, target: str) -> Json:
        """Begin to move a copy from one node to another."""
        return self.request("POST", f"{_path(name)}/move", {"source": source, "target": target})

    def evict(self, name: str, node: str) -> Json:
        """Take a node's copy out of the group."""
        return self.request("POST", f"{_path(name)}/evict", {"node": node})

    # --- HTTP ----------------------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> Json:
        """Return the JSON object that the node answers.

        Raises:
            UnavailableError: Nobody answered within `timeout_s`, or the client's own limit.
            HoldfastError: What the node raised, as its own class.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        with self._open(method, path, body, limit_s) as response:
            return _parse(response.read())

    def stream(self, method: str, path: str, *, silence_s: float | None = None) -> Iterator[Json]:
        """Yield the JSON objects of an answer of lines, as they come.

        Raises:
            UnavailableError: Nothing came for `silence_s`; without it one waits for ever.
            HoldfastError: What the node raised, as its own class.
        """
        with self._open(method, path, None, silence_s) as response:
            rest = b""
            # Iterating over the response would take a connection cut in the middle for its end.
            while part := response.read1(65536):
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    item = _parse(line)
                    if isinstance(item.get("error"), dict):
                        raise from_json(item)
                    yield item

    @contextlib.contextmanager
    def _open(
        self, method: str, path: str, body: Mapping[str, Any] | None, timeout_s: float | None
    ) -> Iterator[http.client.HTTPResponse]:
        connection = _UnixConnection(self.path, timeout_s if timeout_s is not None else TIMEOUT_S)
        try:
            payload = None if body is None else json.dumps(body).encode()
            connection.request(method, path, payload, {"Content-Type": "application/json"})
            if timeout_s is None and connection.sock is not None:
                connection.sock.settimeout(None)
            response = connection.getresponse()
            if response.status >= 400:
                raise from_json(_parse(response.read()))
            yield response
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise UnavailableError(f"{self._who} is not running.", hint=self._hint) from error
        except PermissionError as error:
            raise UsageError(
                f"{self._who} answers its owner alone: {self.path} is another user's.",
                hint="Run the command as the user who started the node, or as root.",
            ) from error
        except TimeoutError as error:
            raise UnavailableError(
                f"{self._who} did not answer within {connection.timeout:g} s.",
                hint="Its process may be stopped or overloaded; try again, or ask another node.",
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise UnavailableError(
                f"{self._who} ended the conversation before its answer was complete.",
                hint="It may be stopping; `holdfast status` shows.",
            ) from error
        finally:
            connection.close()


def _path(name: str) -> str:
    if not name or "/" in name:
        # No volume can be called that, and the API would take it for another path.
        raise NotFoundError(
            f"There is no volume {name!r}.", hint="`holdfast volume list` shows all."
        )
    return f"/v1/volumes/{quote(name, safe='')}"


def _parse(raw: bytes) -> Json:
    try:
        item = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise HoldfastError(
            "The node's answer is not JSON.", hint="Is another program serving its socket?"
        ) from error
    if not isinstance(item, dict):
        raise HoldfastError("The node's answer is not a JSON object.")
    return item
