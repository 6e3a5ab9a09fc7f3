"""Which states are the same but for names: one of each kind stands for all (see the package)."""

from __future__ import annotations

import itertools
import marshal
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from holdfast.testing.explorer.labels import EPOCH_FIRST, Labels, Process, Renaming
from holdfast.testing.explorer.state import FIN, Link, State, pair_of

if TYPE_CHECKING:
    from holdfast.testing.explorer.world import World

GAP_MAX = 2
"""Epochs further apart than this are as good as this far: one more than the lower is still below."""


def labels_of(world: World, state: State) -> Labels:
    """Return all epochs, versions and processes that anything in a state knows of."""
    epochs: set[int] = set()
    versions = {state.version}
    processes: set[Process] = set()
    things = world.things.labels
    parts = [world.sites.labels[number] for number in state.sites]
    parts.append(world.clients.labels[state.client])
    parts.append(things[state.record])
    parts.extend(things[parcel] for k in state.links for parcel in (*k.there, *k.back))
    parts.extend(things[record] for record, _ in state.ghosts)
    for asked in state.asked:
        if asked is not None:
            parts.append(things[asked[-2]])
            versions.add(asked[-1])
    versions.update(version for _, version in state.ghosts)
    for part in parts:
        epochs.update(part.epochs)
        versions.update(part.versions)
        processes.update(part.processes)
    return Labels(tuple(sorted(epochs)), tuple(sorted(versions)), tuple(sorted(processes)))


def canonical(world: World, state: State) -> State:
    """Return the state that stands for this one and all that differ from it only in labels."""
    if any(version != state.version for _, version in state.ghosts):
        # It can only be refused by now, and nobody waits for the answer.
        ghosts = tuple(ghost for ghost in state.ghosts if ghost[1] == state.version)
        state = state._replace(ghosts=ghosts)
    labels = labels_of(world, state)
    known = set(labels.epochs)
    ackers = tuple(acker for acker in state.ackers if acker[0] in known)
    if ackers != state.ackers:
        state = state._replace(ackers=ackers)
    as_it_is = tuple(range(len(state.sites)))
    names: dict[str, str] = {name: name for name in world.names}
    epochs = _epochs(labels.epochs)
    versions = {version: at for at, version in enumerate(labels.versions, start=1)}
    processes = _processes(labels.processes)
    if any(old != new for part in (epochs, versions) for old, new in part.items()) or any(
        old[1] != new for old, new in processes.items()
    ):
        renaming = Renaming(epochs, versions, processes, names)
        state = _renamed(world, state, renaming, as_it_is)
    images = [
        state if order == as_it_is else _renamed(world, state, _swap(world, order), order)
        for order in _orders(world, state)
    ]
    return images[0] if len(images) == 1 else min(images, key=key_of)


def _swap(world: World, order: tuple[int, ...]) -> Renaming:
    names: dict[str, str] = {world.names[old]: world.names[new] for new, old in enumerate(order)}
    return Renaming({}, {}, {}, names)


def key_of(state: State, left: int = 0) -> bytes:
    """Return a state as bytes, equal for equal states, as if it had `left` faults left."""
    plain: list[object] = list(state._replace(left=left))
    plain[State._fields.index("links")] = [tuple(link) for link in state.links]
    return marshal.dumps(plain, 2)


def _epochs(values: Iterable[int]) -> dict[int, int]:
    """Close the gaps between epochs, but for one in which another still has room."""
    mapped: dict[int, int] = {}
    last, image = None, EPOCH_FIRST
    for value in values:
        if last is not None:
            image += min(GAP_MAX, value - last)
        mapped[value] = image
        last = value
    return mapped


def _processes(values: Iterable[Process]) -> dict[Process, int]:
    counts: dict[str, int] = {}
    mapped = {}
    for name, number in values:
        counts[name] = mapped[name, number] = counts.get(name, 0) + 1
    return mapped


def _orders(world: World, state: State) -> Iterator[tuple[int, ...]]:
    """Yield the orders of nodes to compare: sorted by what tells them apart, ties in every order."""
    looks = [
        (
            world.sites.looks[number],
            state.heard[at],
            state.asked[at] is not None,
            state.reads[at],
            sum(at in pair for pair in state.mute),
            sum(at in pair for pair in state.blocked),
            at in state.late,
        )
        for at, number in enumerate(state.sites)
    ]
    order = sorted(range(len(looks)), key=looks.__getitem__)
    groups = [
        list(itertools.permutations(group))
        for _, group in itertools.groupby(order, key=looks.__getitem__)
    ]
    for parts in itertools.product(*groups):
        yield tuple(itertools.chain.from_iterable(parts))


def _renamed(world: World, state: State, renaming: Renaming, order: tuple[int, ...]) -> State:
    """Return the state with other labels; the node at `order[i]` takes the place `i`."""
    sites, things, versions = world.sites, world.things, renaming.versions
    new = {old: at for at, old in enumerate(order)}
    consumer = len(order)
    new[consumer] = consumer
    links = [
        Link(
            new[link.opener],
            link.near,
            new[link.acceptor],
            link.far,
            tuple([things.image(p, renaming) if p != FIN else FIN for p in link.there]),
            tuple([things.image(p, renaming) if p != FIN else FIN for p in link.back]),
            link.late,
        )
        for link in state.links
    ]
    asked = [
        None if a is None else (*a[:-2], things.image(a[-2], renaming), versions.get(a[-1], a[-1]))
        for a in state.asked
    ]
    return state._replace(
        sites=tuple([sites.image(state.sites[old], renaming) for old in order]),
        client=world.clients.image(state.client, renaming),
        record=things.image(state.record, renaming),
        version=versions.get(state.version, state.version),
        heard=(*[state.heard[old] for old in order], state.heard[-1]),
        asked=tuple([asked[old] for old in order]),
        reads=tuple([state.reads[old] for old in order]),
        ghosts=tuple(
            sorted((things.image(r, renaming), versions.get(v, v)) for r, v in state.ghosts)
        ),
        links=tuple(sorted(links, key=order_of)),
        mute=tuple(sorted(pair_of(new[one], new[other]) for one, other in state.mute)),
        blocked=tuple(sorted(pair_of(new[one], new[other]) for one, other in state.blocked)),
        late=tuple(sorted(new[at] for at in state.late)),
        ackers=tuple(sorted((renaming.epochs.get(e, e), new[at]) for e, at in state.ackers)),
    )


def order_of(link: Link) -> tuple[int, ...]:
    """Return by what the links of a state are sorted."""
    return (
        link.opener,
        link.acceptor,
        1 if link.near is None else link.near,
        -1 if link.far is None else link.far,
    )
