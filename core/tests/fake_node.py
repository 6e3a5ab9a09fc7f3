"""A node service in memory: keeps the promises of `NodeService` without disks, peers or groups."""

import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence

import anyio
import attrs

from holdfast.errors import ConflictError, NotFoundError
from holdfast.node.service import Json, Sample, VolumeChanges, VolumeRequest
from holdfast.units import NodeName


class FakeService:
    """One node, `n1`; volumes are dicts."""

    def __init__(self, name: str = "n1", nodes: Sequence[str] = ("n1", "n2", "n3", "n4")) -> None:
        self.name = name
        self.names = list(nodes)
        self.held: dict[str, Json] = {}
        self.cordoned = False
        self.labels = {"zone": "z1"}
        self.stopped = anyio.Event()
        self.handover: bool | None = None
        self.differences: list[Json] = []
        self.fault: Exception | None = None
        self.following = 0
        self.grows = True

    async def node(self) -> Json:
        if self.fault is not None:
            raise self.fault
        return {
            "name": self.name,
            "cluster": "c1",
            "pid": os.getpid(),
            "version": "0.1.0",
            "ready": True,
            "started_at": 1.0,
            "address": "127.0.0.1:5703",
            "frontends": {"nbd": "127.0.0.1:10809"},
            "uris": {"nbd": "nbd://127.0.0.1:10809/VOLUME"},
            "transports": {"tcp": "127.0.0.1:5703"},
            "cordoned": self.cordoned,
            "draining": False,
            "labels": self.labels,
            "copies": len(self.held),
            "data": ["/data"],
            "capacity_bytes": 1 << 40,
            "free_bytes": 1 << 39,
            "orphans": {"/data/lost": "Its superblock cannot be read."},
        }

    async def nodes(self) -> Sequence[Json]:
        me = await self.node()
        return [
            {
                **me,
                "name": name,
                "alive": True,
                "primaries": 0,
                "frontends": {"nbd": f"127.0.0.1:{10809 + i}"},
            }
            for i, name in enumerate(self.names)
        ]

    async def volumes(self) -> Sequence[Json]:
        return [self.held[name] for name in sorted(self.held)]

    async def volume(self, name: str) -> Json:
        if name not in self.held:
            raise NotFoundError(f"No volume is named {name!r}.", hint="See `holdfast volume list`.")
        return self.held[name]

    async def own_volume(self, name: str) -> Json:
        return await self.volume(name)

    async def explain(self, name: str) -> Json:
        status = await self.volume(name)
        return {
            "name": name,
            "health": status["health"],
            "access": status["access"],
            "policy": status["policy"],
            "since": 1.0,
            "told_by": "primary",
            "why": ["The copy on n2 is offline."],
            "doing": ["A replacement is synced."],
            "next": [{"at": time.time() + 30.5, "sentence": "Access becomes read-only."}],
            "help": [{"sentence": "Start n2.", "command": "holdfast node start n2"}],
        }

    async def own_explain(self, name: str) -> Json:
        return await self.explain(name)

    async def own_events(self, name: str) -> Sequence[Json]:
        return [event async for event in self.events(name, follow=False)]

    async def create_volume(self, request: VolumeRequest) -> tuple[Json, Sequence[str]]:
        if request.name in self.held:
            raise ConflictError(f"A volume named {request.name!r} exists already.")
        replicas = 1 if request.replicas is None else request.replicas
        self.held[request.name] = {
            "name": request.name,
            "id": "0" * 32,
            "size": request.size_bytes,
            "declared_replicas": replicas,
            "policy": request.policy or "hard",
            "policy_options": dict(request.policy_options),
            "labels": dict(request.labels),
            "health": "healthy",
            "access": "read-write",
            "epoch": 1,
            "primary": self.names[0],
            "attached": None,
            "reason": "All copies are in sync.",
            "copies": [
                {
                    "node": node,
                    "role": "replica" if i else "primary",
                    "state": "in-sync",
                    "copy": f"{i:032x}",
                    "sync": None,
                }
                for i, node in enumerate(self.names[: replicas + 1])
            ],
        }
        warnings = ["Four nodes are fewer than five."] if replicas > 2 else []
        return self.held[request.name], warnings

    async def change_volume(self, name: str, changes: VolumeChanges) -> Json:
        status = await self.volume(name)
        given = {k: v for k, v in attrs.asdict(changes).items() if v is not None}
        if "size_bytes" in given:
            served = status.get("served_size", status["size"])
            status["size"] = given.pop("size_bytes")
            status["served_size"] = status["size"] if self.grows else served
        if "replicas" in given:
            status["declared_replicas"] = given.pop("replicas")
        status.update(given)
        warnings = ["Four nodes are fewer than five."] if status["declared_replicas"] > 2 else []
        return status | {"warnings": warnings}

    async def delete_volume(self, name: str, *, force: bool) -> None:
        status = await self.volume(name)
        if status["attached"] and not force:
            raise ConflictError(f"Volume {name!r} is attached.", hint="Add --force.")
        del self.held[name]

    async def events(self, name: str, *, follow: bool) -> AsyncIterator[Json]:
        await self.volume(name)
        yield {"at": 1.0, "node": "n1", "kind": "created", "sentence": "The volume was made."}
        yield {"at": time.time(), "node": "n1", "kind": "synced", "sentence": "n2 is in sync."}
        if follow:
            self.following += 1
            try:
                await anyio.sleep_forever()
            finally:
                self.following -= 1

    async def verify(self, name: str) -> AsyncIterator[Json]:
        await self.volume(name)
        yield {"chunks_done": 8, "chunks_total": 16}
        if self.fault is not None:
            raise self.fault
        yield {
            "equal": not self.differences,
            "copies": 3,
            "chunks_total": 16,
            "differences": self.differences,
        }

    async def scrub(self, name: str) -> AsyncIterator[Json]:
        await self.volume(name)
        yield {"chunks_done": 8, "chunks_total": 16}
        yield {
            "equal": True,
            "copies": 3,
            "chunks_total": 16,
            "differences": [],
            "rotten": [{**each, "repaired": True} for each in self.differences],
            "repaired": len(self.differences),
        }

    async def promote(self, name: str, node: NodeName, *, force: bool = False) -> Json:
        status = await self.volume(name)
        status["primary"] = node
        for copy in status["copies"]:
            copy["role"] = "primary" if copy["node"] == node else "replica"
        return status

    async def move(self, name: str, source: NodeName, target: NodeName) -> Json:
        status = await self.volume(name)
        for copy in status["copies"]:
            if copy["node"] == source:
                copy["node"] = target
        return status

    async def evict(self, name: str, node: NodeName) -> Json:
        status = await self.volume(name)
        status["copies"] = [c for c in status["copies"] if c["node"] != node]
        return status

    async def cordon(self, cordoned: bool) -> Json:
        self.cordoned = cordoned
        return await self.node()

    async def label(self, changes: Mapping[str, str | None]) -> Json:
        merged = {**self.labels, **changes}
        self.labels = {key: value for key, value in merged.items() if value is not None}
        return await self.node()

    async def drain(self, *, dry_run: bool) -> Json:
        plan = [
            {
                "volume": name,
                "role": "primary",
                "state": "in-sync",
                "promote": "n2",
                "copy_to": "n4",
                "why_not": "",
            }
            for name in self.held
        ]
        if not dry_run:
            self.cordoned = True
            for status in self.held.values():
                status["copies"] = [c for c in status["copies"] if c["node"] != self.name]
        return {"node": self.name, "draining": not dry_run, "plan": plan}

    async def stop(self, *, handover: bool) -> None:
        self.handover = handover
        self.stopped.set()

    async def plugins(self) -> Sequence[Json]:
        return [
            {
                "kind": "policy",
                "name": "hard",
                "distribution": "holdfast-policy",
                "version": "0.1.0",
                "error": None,
                "active": True,
            }
        ]

    async def config(self) -> Sequence[Json]:
        return [{"path": "node.name", "value": "n1", "source": "node.toml"}]

    async def metrics(self) -> Sequence[Sample]:
        return [
            Sample("holdfast_frames_total", 3, {"volume": 'a"b'}),
            Sample("holdfast_nodes", 4),
            Sample("holdfast_frames_total", 4.5, {"volume": "c"}),
        ]
