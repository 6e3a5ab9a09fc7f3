"""Making, changing and deleting volumes: what an operator declares, written into the store.

Only specifications and first records are written here. Once a group exists, its primary alone
changes its record; an operator's wish reaches it as a specification or as an event.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import attrs

from holdfast.errors import (
    ConflictError,
    NotFoundError,
    StateConflictError,
    UnavailableError,
    UsageError,
)
from holdfast.interfaces.state import StateStore
from holdfast.kernel import registry
from holdfast.kernel.sections import VolumeDefaults
from holdfast.model import READ_FROM, CopyState, GroupRecord, Member, VolumeSpec
from holdfast.node.directory import PRIMARY_WEIGHT, Directory
from holdfast.node.observing import Observing
from holdfast.node.policies import Policies
from holdfast.node.service import VolumeChanges, VolumeRequest
from holdfast.sync.placement import SPREAD_LABEL, place, transport_refusal
from holdfast.units import (
    BLOCK_BYTES,
    REPLICAS_MAX,
    SECTOR_BYTES,
    VOLUME_BYTES_MAX,
    CopyId,
    Epoch,
    NodeName,
    VolumeId,
    counted,
    format_size,
    nearest_sizes,
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def check_name(name: str) -> None:
    """Raise `UsageError` when a volume cannot be called `name`."""
    if _NAME.fullmatch(name) is None:
        raise UsageError(
            f"{name!r} cannot be a volume's name.",
            hint="Use up to 63 letters, digits, dots, dashes and underscores.",
        )


_DRAWS = 32
"""Ids to choose from for a new volume where nodes have workers: all workers come up among them."""


class Volumes:
    """The declared volumes of the cluster."""

    def __init__(
        self,
        store: StateStore,
        directory: Directory,
        policies: Policies,
        defaults: VolumeDefaults,
        transport: str,
        observing: Observing,
    ) -> None:
        """Work on `store`, with `directory` as the picture of it."""
        self._store = store
        self._directory = directory
        self._policies = policies
        self._defaults = defaults
        self._transport = transport
        self._observing = observing

    async def create(
        self, request: VolumeRequest, answers: Callable[[NodeName], Awaitable[bool]]
    ) -> tuple[VolumeSpec, list[str]]:
        """Write a new volume's specification and first record; return it with warnings.

        Args:
            request: What is wanted.
            answers: Whether a node answers now. The first copy is in sync by being the first, so
                nobody could stand in for its node.

        Raises:
            UnavailableError: The node that the request names does not answer.
        """
        spec = self._declared(request)
        silent: set[NodeName] = set()
        nodes = self._place(spec, request.primary_node, silent)
        while not await answers(nodes[0]):
            if request.primary_node is not None:
                raise UnavailableError(
                    f"Node {nodes[0]} does not answer, so nothing was made on it.",
                    hint="`holdfast status` shows which nodes run; name another one, or none.",
                )
            silent.add(nodes[0])
            nodes = self._place(spec, None, silent)
        spec = attrs.evolve(spec, id=self._spread_id(nodes))
        warnings = self._warnings(spec, len(nodes))
        try:
            await self._store.compare_and_set(f"name/{spec.name}", spec.id.encode(), None)
        except StateConflictError:
            raise ConflictError(
                f"There is a volume {spec.name!r} already.", hint="Choose another name."
            ) from None
        await self._store.compare_and_set(f"spec/{spec.id}", spec.to_bytes(), None)
        now = time.time()
        members = tuple(
            Member(
                copy=CopyId(uuid.uuid4().hex),
                node=node,
                state=CopyState.IN_SYNC if index == 0 else CopyState.SYNCING,
                since=now,
            )
            for index, node in enumerate(nodes)
        )
        record = GroupRecord(
            volume=spec.id, epoch=Epoch(1), primary=members[0].copy, members=members
        )
        await self._store.compare_and_set(f"group/{spec.id}", record.to_bytes(), None)
        self._observing.group_changed(spec, None, record)
        return spec, warnings

    async def change(self, name: str, changes: VolumeChanges) -> tuple[VolumeSpec, list[str]]:
        """Write a changed specification, refused when the present state does not satisfy it.

        Returns it with warnings.
        """
        known = await self._directory.find(name)
        entry = await self._store.get(f"spec/{known.id}")
        if entry is None:
            raise NotFoundError(f"The volume {name!r} has just been deleted.")
        spec = VolumeSpec.from_bytes(entry.value)
        wanted = self._changed(spec, changes)
        group = self._directory.groups.get(spec.id)
        if group is not None:
            self._check_satisfied(spec, wanted, group[0])
        try:
            await self._store.compare_and_set(f"spec/{spec.id}", wanted.to_bytes(), entry.version)
        except StateConflictError:
            raise ConflictError(
                f"Somebody else has just changed {name!r}.", hint="Look again, then try again."
            ) from None
        if (wanted.replicas, wanted.policy) == (spec.replicas, spec.policy):
            return wanted, []
        return wanted, self._warnings(wanted, min(self._hosts(), wanted.replicas + 1))

    async def delete(self, name: str, *, force: bool) -> None:
        """Delete a volume: tombstone first, then the record, so that no copy outlives it unproved."""
        spec = await self._directory.find(name)
        group = await self._store.get(f"group/{spec.id}")
        if group is not None:
            record = GroupRecord.from_bytes(group.value)
            if record.attached_session and not force:
                raise ConflictError(
                    f"Volume {name} is attached at node {record.attached_node}.",
                    hint="Close its clients first, or delete it with --force.",
                )
        with contextlib.suppress(StateConflictError):
            # If it is there, an earlier deletion was interrupted; it is finished now.
            await self._store.compare_and_set(f"deleted/{spec.id}", spec.name.encode(), None)
        for key in (f"group/{spec.id}", f"spec/{spec.id}", f"name/{spec.name}"):
            await self._remove(key)

    async def _remove(self, key: str) -> None:
        while (entry := await self._store.get(key)) is not None:
            try:
                await self._store.compare_and_set(key, None, entry.version)
            except StateConflictError:
                continue  # The group changed in this very moment; its record goes all the same.
            return

    # -- declaring ---------------------------------------------------------------------------------

    def _declared(self, request: VolumeRequest) -> VolumeSpec:
        if request.replicator not in {None, *registry.BUILT_IN["replicator"]}:
            registry.load("replicator", str(request.replicator))  # Refuses what is not installed.
            raise UsageError(
                f"This node does not run the replicator {request.replicator!r}.",
                hint=f"Add [replicator.{request.replicator}] to the configuration of every node.",
            )
        if request.replicator_options:
            raise UsageError(
                f"The replicator lockstep has no option {next(iter(request.replicator_options))!r}.",
                hint="Name the replicator that has it with --replicator.",
            )
        check_name(request.name)
        _check_size(request.size_bytes)
        defaults = self._defaults
        replicas = defaults.replicas if request.replicas is None else request.replicas
        _check_replicas(replicas)
        policy = request.policy or defaults.policy
        options = self._policies.options(policy, request.policy_options)
        self._policies.refuse(policy, replicas, options)
        return VolumeSpec(
            id=VolumeId(uuid.uuid4().hex),
            name=request.name,
            size_bytes=request.size_bytes,
            replicas=replicas,
            policy=policy,
            policy_options=options,
            transport=self._offered(request.transport or self._transport),
            transports=self._by_node(request.transports),
            shared=request.shared,
            read_from=_read_from(request.read_from, "primary"),
            hash_key=secrets.token_hex(32),
            member_missing_timeout_s=_patience(
                request.member_missing_timeout_s, defaults.member_missing_timeout_s
            ),
            created_at=time.time(),
            labels=dict(request.labels),
        )

    def _offered(self, transport: str) -> str:
        """Return `transport`, which some node must run.

        Raises:
            UsageError: None does; lists those that are run.
        """
        run = {name for node in self._directory.alive.values() for name in node.transports}
        if run and transport not in run:
            raise UsageError(
                f"No node runs the transport {transport!r}.",
                hint=f"Nodes run {', '.join(sorted(run))}; `also` under [transport] adds others.",
            )
        return transport

    def _by_node(self, transports: Mapping[str, str]) -> dict[str, str]:
        """Return the transports of single copies, checked; an empty one takes a choice back.

        Raises:
            NotFoundError: There is no such node.
            UsageError: The node does not run that transport.
        """
        chosen = {}
        for name, transport in sorted(transports.items()):
            node = self._directory.node(NodeName(name))
            why = transport_refusal(node, transport) if transport else ""
            if why:
                raise UsageError(f"Node {name} {why}.")
            if transport:
                chosen[name] = transport
        return chosen

    def _place(
        self, spec: VolumeSpec, first: NodeName | None, silent: Collection[NodeName]
    ) -> list[NodeName]:
        """Choose a node for each copy; fewer when the cluster has not enough, but one at least.

        Args:
            spec: The volume.
            first: The node of the first copy; None: the best one.
            silent: Nodes that do not answer; they get no copy.
        """
        alive = self._directory.alive
        chosen: list[NodeName] = []
        if first is not None:
            self._directory.check_host(first)
            chosen.append(first)
        extra = {name: self._observing.score(spec, node) for name, node in alive.items()}
        loaded = {n: known for n, known in self._directory.loaded().items() if n not in silent}
        placed = place(loaded, size_bytes=spec.size_bytes, taken=(), transport_to=spec.transport_to)
        while len(chosen) <= spec.replicas:
            placed = place(
                loaded,
                size_bytes=spec.size_bytes,
                taken=chosen,
                spread=spec.labels.get(SPREAD_LABEL, ""),
                extra=extra,
                transport_to=spec.transport_to,
            )
            if placed.node is None:
                break
            chosen.append(placed.node)
        if not chosen:
            refused = dict.fromkeys(silent, "does not answer") | dict(placed.reasons)
            reasons = "; ".join(f"{node} {why}" for node, why in sorted(refused.items()))
            raise ConflictError(
                f"No node can hold a copy of {spec.name!r}: {reasons or 'none is up'}.",
                hint="Start or uncordon a node, or make room.",
            )
        return chosen

    def _spread_id(self, nodes: Sequence[NodeName]) -> VolumeId:
        """Return a new id that falls to workers of `nodes`, the primary's first, with least to do."""
        known = [self._directory.nodes[name] for name in nodes]
        drawn = [VolumeId(uuid.uuid4().hex) for _ in range(_DRAWS if known[0].workers else 1)]
        load: Counter[tuple[NodeName, int]] = Counter()
        if len(drawn) > 1:
            for volume, (record, _) in self._directory.groups.items():
                for node in known:
                    member = record.on_node(node.name)
                    if member is not None:
                        weight = PRIMARY_WEIGHT if member.copy == record.primary else 1
                        load[node.name, node.worker_of(volume)] += weight

        def weighed(volume: VolumeId) -> list[int]:
            return [load[node.name, node.worker_of(volume)] for node in known]

        return min(drawn, key=weighed)

    def _hosts(self) -> int:
        """Return how many living nodes may hold copies."""
        return sum(1 for n in self._directory.alive.values() if not n.compute_only)

    def _warnings(self, spec: VolumeSpec, placed: int) -> list[str]:
        """Return what to tell of a volume for `placed` of whose copies there is a node."""
        if placed <= spec.replicas:
            some = f"Only {placed} of {spec.replicas + 1} copies can be placed now"
            least = self._policies.of(spec).least(spec.replicas)
            soon = f" {spec.policy} soon forbids writes below {counted(least, 'replica')}."
            return [f"{some}; the rest follow when nodes appear.{soon * (placed <= least)}"]
        short = self._policies.shortage(spec, self._hosts())
        told = [] if short is None else [short]
        spread = spec.labels.get(SPREAD_LABEL)
        labels = {label for node in self._directory.alive.values() for label in node.labels}
        if spread and spread not in labels:
            some = f"; there are {', '.join(sorted(labels))}" if labels else ""
            told.append(f"No node has the label {spread!r}, so nothing is spread by it{some}.")
        return told

    # -- changing ----------------------------------------------------------------------------------

    def _changed(self, spec: VolumeSpec, changes: VolumeChanges) -> VolumeSpec:
        policy = changes.policy or spec.policy
        options: Mapping[str, Any] = spec.policy_options if policy == spec.policy else {}
        if changes.policy_options is not None or policy != spec.policy:
            options = self._policies.options(policy, {**options, **(changes.policy_options or {})})
        replicas = spec.replicas if changes.replicas is None else changes.replicas
        _check_replicas(replicas)
        self._policies.refuse(policy, replicas, options)
        size = spec.size_bytes if changes.size_bytes is None else changes.size_bytes
        _check_size(size)
        if size < spec.size_bytes:
            raise ConflictError(
                f"Volume {spec.name} has {format_size(spec.size_bytes)} and cannot shrink.",
                hint="Make a smaller volume and copy the data with export and import.",
            )
        return attrs.evolve(
            spec,
            transport=spec.transport if not changes.transport else self._offered(changes.transport),
            transports=spec.transports
            if changes.transports is None
            else self._by_node({**spec.transports, **changes.transports}),
            size_bytes=size,
            policy=policy,
            policy_options=options,
            replicas=replicas,
            member_missing_timeout_s=_patience(
                changes.member_missing_timeout_s, spec.member_missing_timeout_s
            ),
            shared=spec.shared if changes.shared is None else changes.shared,
            read_from=_read_from(changes.read_from, spec.read_from),
            labels={k: v for k, v in {**spec.labels, **(changes.labels or {})}.items() if v},
        )

    def _check_satisfied(self, spec: VolumeSpec, wanted: VolumeSpec, record: GroupRecord) -> None:
        """Ondat's rule: a mode that the present state does not satisfy is refused."""
        online = sum(
            1
            for m in record.members
            if m.copy != record.primary and m.state is not CopyState.OFFLINE
        )
        before = self._policies.of(spec).least(spec.replicas)
        least = self._policies.of(wanted).least(wanted.replicas)
        if (wanted.policy, wanted.policy_options) != (spec.policy, spec.policy_options):
            if online < least and least > before:
                raise ConflictError(
                    f"{wanted.policy} needs {counted(least, 'replica')} online; now {online}.",
                    hint="Wait until replicas are back, or choose a milder policy.",
                )


def _check_size(size_bytes: int) -> None:
    if size_bytes < BLOCK_BYTES or size_bytes > VOLUME_BYTES_MAX or size_bytes % SECTOR_BYTES:
        near = nearest_sizes(
            size_bytes, multiple=SECTOR_BYTES, least=BLOCK_BYTES, most=VOLUME_BYTES_MAX
        )
        raise UsageError(
            f"{size_bytes} bytes is no possible size of a volume: that is a multiple of "
            f"{SECTOR_BYTES} from {format_size(BLOCK_BYTES)} to {format_size(VOLUME_BYTES_MAX)}.",
            hint=f"Nearest: {near}.",
        )


def _patience(given_s: float | None, otherwise_s: float) -> float:
    if given_s is None:
        return otherwise_s
    if not 0 <= given_s < float("inf"):
        raise UsageError(f"A lost copy cannot be waited for {given_s} seconds.")
    return float(given_s)


def _read_from(given: str | None, otherwise: str) -> str:
    if given is None:
        return otherwise
    if given not in READ_FROM:
        raise UsageError(
            f"Reads cannot come from {given!r}.",
            hint=f"Choose {' or '.join(READ_FROM)}.",
        )
    return given


def _check_replicas(replicas: int) -> None:
    if not 0 <= replicas <= REPLICAS_MAX:
        raise UsageError(
            f"A volume has 0 to {REPLICAS_MAX} replicas beside its primary, not {replicas}."
        )
