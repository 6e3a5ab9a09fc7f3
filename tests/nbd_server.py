"""A process that serves memory volumes over NBD, for tests and benchmarks with foreign clients.

Prints its address, then obeys lines on standard input: `access NAME ACCESS`, `served NAME`, `quit`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

import uvloop

from holdfast.model import Access
from holdfast.node.nbd import NbdFrontendDriver, NbdOptions
from holdfast.testing.memory_volume import MemoryVolumeProvider
from holdfast.units import parse_size


async def serve(volumes: list[str], *, answers_at_once: bool) -> None:
    """Serve until standard input ends or says `quit`."""
    provider = MemoryVolumeProvider(answers_at_once=answers_at_once)
    for volume in volumes:
        name, _, size = volume.partition("=")
        provider.add(name, parse_size(size))
    frontend = await NbdFrontendDriver.open(NbdOptions(listen="127.0.0.1:0"), provider)
    try:
        _say(frontend.address)
        while words := (await asyncio.to_thread(sys.stdin.readline)).split():
            if words[0] == "quit":
                break
            _say(_obey(provider, words))
    finally:
        await frontend.aclose()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _obey(provider: MemoryVolumeProvider, words: list[str]) -> str:
    match words:
        case ["access", name, access]:
            provider.volumes[name].change(access=Access(access))
            return "done"
        case ["served", name]:
            volume = provider.volumes[name]
            served = {kind.name: count for kind, count in volume.served.items()}
            return json.dumps({**served, "FUA": volume.fua_served})
        case _:
            return "unknown"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("volumes", nargs="+", metavar="NAME=SIZE")
    parser.add_argument("--answers-at-once", action="store_true")
    chosen = parser.parse_args()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(chosen.volumes, answers_at_once=chosen.answers_at_once))
