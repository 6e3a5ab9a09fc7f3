"""The control API of a node: HTTP and JSON over a Unix socket that only its owner may open.

It translates and nothing more: requests into calls of a `NodeService`, results and errors into
JSON. It shares the node's event loop, so it starts no thread and touches no signal; the number of
requests a second is that of people and scripts, far away from the data path.
"""

from __future__ import annotations

import contextlib
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import anyio
import attrs
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from holdfast.errors import (
    HoldfastError,
    NotFoundError,
    UnavailableError,
    UsageError,
)
from holdfast.node.control_errors import http_status, to_json
from holdfast.node.control_socket import inode, listen, remove
from holdfast.node.service import Json, NodeService, Sample, VolumeChanges, VolumeRequest
from holdfast.units import NodeName

BODY_BYTES_MAX = 64 * 1024
"""Largest request body; volume declarations are a few hundred bytes."""
_log = logging.getLogger("holdfast.control")


def control_app(service: NodeService, leaving: anyio.Event) -> Starlette:
    """Return the application that serves `service`; `leaving` ends the streams that never end."""
    return Starlette(
        routes=_Routes(service, leaving).table(),
        exception_handlers={
            HoldfastError: _on_holdfast_error,
            HTTPException: _on_http_error,
            Exception: _on_bug,
        },
    )


@contextlib.asynccontextmanager
async def serve_control(service: NodeService, path: Path) -> AsyncIterator[None]:
    """Serve `service` at the Unix socket `path` while the context lasts.

    The socket's mode is 0600. A socket file that nobody listens on any more is replaced. On
    leaving, requests under way get a second to end, then the file is removed.

    Args:
        service: The node.
        path: At most `SOCKET_PATH_BYTES_MAX` bytes long; its folder must exist.

    Raises:
        ConflictError: Another process serves this path, or it is not a socket.
        UsageError: The path is too long.
    """
    listener = listen(path)
    made = inode(path)
    leaving = anyio.Event()
    server = _Server(
        uvicorn.Config(
            control_app(service, leaving),
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="warning",
            access_log=False,
            date_header=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        ),
        leaving,
    )
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            await server.ready.wait()
            try:
                yield
            finally:
                leaving.set()
    finally:
        listener.close()
        # A process started in the meantime may have put its own socket there.
        if inode(path) == made:
            remove(path)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers and its ten wake-ups a second."""

    def __init__(self, config: uvicorn.Config, leaving: anyio.Event) -> None:
        super().__init__(config)
        self.ready = anyio.Event()
        self._leaving = leaving

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready.set()

    async def main_loop(self) -> None:
        await self._leaving.wait()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Routes:
    """The handlers, one for each route of `table`."""

    def __init__(self, service: NodeService, leaving: anyio.Event) -> None:
        self._service = service
        self._leaving = leaving

    def table(self) -> list[Route]:
        """Return what is served where."""
        volume = "/v1/volumes/{name}"
        routes: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
            ("GET", "/v1/node", self._node),
            ("POST", "/v1/node/stop", self._stop),
            ("POST", "/v1/node/cordon", self._cordon),
            ("POST", "/v1/node/drain", self._drain),
            ("POST", "/v1/node/labels", self._label),
            ("GET", "/v1/nodes", self._nodes),
            ("GET", "/v1/volumes", self._volumes),
            ("POST", "/v1/volumes", self._create),
            ("GET", volume, self._volume),
            ("PATCH", volume, self._change),
            ("DELETE", volume, self._delete),
            ("GET", f"{volume}/events", self._events),
            ("GET", f"{volume}/explain", self._explain),
            ("POST", f"{volume}/verify", self._verify),
            ("POST", f"{volume}/scrub", self._scrub),
            ("POST", f"{volume}/promote", self._promote),
            ("POST", f"{volume}/move", self._move),
            ("POST", f"{volume}/evict", self._evict),
            ("GET", "/v1/plugins", self._plugins),
            ("GET", "/v1/config", self._config),
            ("GET", "/metrics", self._metrics),
        ]
        return [Route(path, handler, methods=[method]) for method, path, handler in routes]

    async def _node(self, _request: Request) -> Response:
        return JSONResponse(await self._service.node())

    async def _stop(self, request: Request) -> Response:
        body = await _body(request, {"handover": bool}, optional=True)
        await self._service.stop(handover=body.get("handover", True))
        return JSONResponse({"stopping": True}, status_code=202)

    async def _cordon(self, request: Request) -> Response:
        body = await _body(request, {"cordoned": bool})
        return JSONResponse(await self._service.cordon(body["cordoned"]))

    async def _drain(self, request: Request) -> Response:
        body = await _body(request, {"dry_run": bool})
        return JSONResponse(await self._service.drain(dry_run=body["dry_run"]))

    async def _label(self, request: Request) -> Response:
        labels = (await _body(request, {"labels": dict})).get("labels", {})
        if not all(key and isinstance(value, str | None) for key, value in labels.items()):
            raise UsageError("A label has a name and text; null removes it.")
        return JSONResponse(await self._service.label(labels))

    async def _nodes(self, _request: Request) -> Response:
        return JSONResponse({"nodes": list(await self._service.nodes())})

    async def _volumes(self, _request: Request) -> Response:
        return JSONResponse({"volumes": list(await self._service.volumes())})

    async def _create(self, request: Request) -> Response:
        body = await _body(request, _fields_of(VolumeRequest), optional=True)
        try:
            wanted = VolumeRequest(**body)
        except TypeError as error:
            raise UsageError("A new volume needs at least `name` and `size_bytes`.") from error
        status, warnings = await self._service.create_volume(wanted)
        return JSONResponse({"volume": status, "warnings": list(warnings)}, status_code=201)

    async def _volume(self, request: Request) -> Response:
        if _flag(request, "own"):
            return JSONResponse(await self._service.own_volume(_name(request)))
        return JSONResponse(await self._service.volume(_name(request)))

    async def _change(self, request: Request) -> Response:
        changes = VolumeChanges(**await _body(request, _fields_of(VolumeChanges), optional=True))
        return JSONResponse(await self._service.change_volume(_name(request), changes))

    async def _delete(self, request: Request) -> Response:
        await self._service.delete_volume(_name(request), force=_flag(request, "force"))
        return JSONResponse({"deleted": _name(request)})

    async def _events(self, request: Request) -> Response:
        name = _name(request)
        if _flag(request, "own"):
            return JSONResponse({"events": list(await self._service.own_events(name))})
        # Asked first, so that a wrong name is a 404 and not a line in a stream.
        await self._service.volume(name)
        return _Lines(self._service.events(name, follow=_flag(request, "follow")), self._leaving)

    async def _explain(self, request: Request) -> Response:
        if _flag(request, "own"):
            return JSONResponse(await self._service.own_explain(_name(request)))
        return JSONResponse(await self._service.explain(_name(request)))

    async def _verify(self, request: Request) -> Response:
        name = _name(request)
        await self._service.volume(name)
        return _Lines(self._service.verify(name), self._leaving)

    async def _scrub(self, request: Request) -> Response:
        name = _name(request)
        await self._service.volume(name)
        return _Lines(self._service.scrub(name), self._leaving)

    async def _promote(self, request: Request) -> Response:
        body = await _body(request, {"node": str})
        node, force = NodeName(body["node"]), _flag(request, "force")
        return JSONResponse(await self._service.promote(_name(request), node, force=force))

    async def _move(self, request: Request) -> Response:
        body = await _body(request, {"source": str, "target": str})
        source, target = NodeName(body["source"]), NodeName(body["target"])
        return JSONResponse(await self._service.move(_name(request), source, target))

    async def _evict(self, request: Request) -> Response:
        body = await _body(request, {"node": str})
        return JSONResponse(await self._service.evict(_name(request), NodeName(body["node"])))

    async def _plugins(self, _request: Request) -> Response:
        return JSONResponse({"plugins": list(await self._service.plugins())})

    async def _config(self, _request: Request) -> Response:
        return JSONResponse({"config": list(await self._service.config())})

    async def _metrics(self, request: Request) -> Response:
        samples = await self._service.metrics()
        if _flag(request, "own"):  # Asked by the process beside it.
            return JSONResponse({"samples": [attrs.astuple(sample) for sample in samples]})
        return PlainTextResponse(prometheus_text(samples), media_type="text/plain; version=0.0.4")


def prometheus_text(samples: Iterable[Sample]) -> str:
    """Return `samples` in Prometheus' text format, version 0.0.4.

    Source: prometheus.io/docs/instrumenting/exposition_formats.
    """
    lines: list[str] = []
    seen: set[str] = set()
    # The format wants the lines of one metric together.
    for sample in sorted(samples, key=lambda s: s.name):
        if sample.name not in seen:
            seen.add(sample.name)
            kind = "counter" if sample.name.endswith("_total") else "gauge"
            lines.append(f"# TYPE {sample.name} {kind}")
        labels = ",".join(f'{k}="{_escape(v)}"' for k, v in sorted(sample.labels.items()))
        value = int(sample.value) if float(sample.value).is_integer() else sample.value
        lines.append(f"{sample.name}{{{labels}}} {value}" if labels else f"{sample.name} {value}")
    return "\n".join([*lines, ""])


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _name(request: Request) -> str:
    return cast("str", request.path_params["name"])


def _flag(request: Request, name: str) -> bool:
    return request.query_params.get(name, "0") not in {"", "0", "false", "no"}


_JSON_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "name": str,
    "size_bytes": int,
    "replicas": int,
    "policy": str,
    "policy_options": dict,
    "shared": bool,
    "read_from": str,
    "labels": dict,
    "primary_node": str,
    "member_missing_timeout_s": (int, float),
    "transport": str,
    "transports": dict,
    "replicator": str,
    "replicator_options": dict,
}


def _fields_of(kind: type[attrs.AttrsInstance]) -> dict[str, type | tuple[type, ...]]:
    return {field.name: _JSON_TYPES[field.name] for field in attrs.fields(kind)}


async def _body(
    request: Request, types: Mapping[str, type | tuple[type, ...]], *, optional: bool = False
) -> Json:
    """Return the request's JSON object after checking it against `types`; null means absent."""
    raw = b""
    async for part in request.stream():
        raw += part
        if len(raw) > BODY_BYTES_MAX:
            raise UsageError(f"The request is larger than {BODY_BYTES_MAX} bytes.")
    try:
        body: Any = json.loads(raw or b"{}")
    except (ValueError, RecursionError) as error:
        raise UsageError(f"The request is not JSON: {error}.") from error
    if not isinstance(body, dict):
        raise UsageError("The request is not a JSON object.")
    fields: Json = {key: value for key, value in body.items() if value is not None}
    for key, value in fields.items():
        if key not in types:
            known = ", ".join(sorted(types))
            raise UsageError(f"The request has an unknown field {key!r}; known are {known}.")
        # bool is an int to Python, but not to people.
        if not isinstance(value, types[key]) or (isinstance(value, bool) and types[key] is int):
            raise UsageError(f"The request's field {key!r} has the wrong type: {value!r}.")
    missing = [] if optional else sorted(types.keys() - fields.keys())
    if missing:
        raise UsageError(f"The request lacks {', '.join(missing)}.")
    return fields


class _Lines(StreamingResponse):
    """A response of one JSON object a line; an error ends it as the last line."""

    def __init__(self, items: AsyncIterator[Json], leaving: anyio.Event) -> None:
        super().__init__(_encode(items), media_type="application/x-ndjson")
        self._leaving = leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._end_when_leaving, tasks.cancel_scope)
            await super().__call__(scope, receive, send)
            tasks.cancel_scope.cancel()
        if self._leaving.is_set():
            error = UnavailableError("The node is stopping.", hint="Ask another node.")
            body = json.dumps(to_json(error)).encode() + b"\n"
            await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _end_when_leaving(self, scope: anyio.CancelScope) -> None:
        await self._leaving.wait()
        scope.cancel()


async def _encode(items: AsyncIterator[Json]) -> AsyncIterator[bytes]:
    try:
        async for item in items:
            yield json.dumps(item).encode() + b"\n"
    except HoldfastError as error:
        yield json.dumps(to_json(error)).encode() + b"\n"
    except Exception:  # noqa: BLE001 - the edge: logged, and told as a sentence.
        _log.exception("A stream of the control API failed.")
        yield json.dumps(to_json(_bug())).encode() + b"\n"


def _bug() -> HoldfastError:
    return HoldfastError(
        "The node met an error that it did not expect.",
        hint="Its log has the details; please report them.",
    )


async def _on_holdfast_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HoldfastError)
    return JSONResponse(to_json(error), status_code=http_status(error))


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    refusal = NotFoundError(f"The control API has no {request.method} {request.url.path}.")
    return JSONResponse(to_json(refusal), status_code=error.status_code)


async def _on_bug(request: Request, error: Exception) -> Response:
    _log.error("The control API failed at %s.", request.url.path, exc_info=error)
    return JSONResponse(to_json(_bug()), status_code=500)
