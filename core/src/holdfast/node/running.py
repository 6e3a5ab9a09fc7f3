"""Brings up the processes of one node: alone, as the one that listens for workers, or as a worker."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import faulthandler
import logging
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import cast

import uvloop

from holdfast.interfaces.state import StateStore
from holdfast.kernel.config import Config
from holdfast.local import stacks
from holdfast.local.logging import Form, Level, set_up
from holdfast.node.daemon import Node
from holdfast.node.data_directories import unusable
from holdfast.node.spreading import SpreadNode, check_spreads
from holdfast.node.transports import Transports
from holdfast.node.workers import lock_data

Make = Callable[[Config, StateStore, Transports], Node]
_log = logging.getLogger("holdfast.node")


def _prepare(path: Path) -> None:
    """Make a data directory if need be; raises `ConfigError` when it cannot be used."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise unusable(path, error) from error


def run_node(config: Config) -> int:
    """Run a node until SIGTERM or SIGINT; return its exit code.

    Raises:
        HoldfastError: It cannot start: a port in use, a data directory that cannot be used, a state
            store that cannot be opened.
    """
    for path in config.node.data:
        _prepare(Path(path))
    locks = lock_data(config.node.data)
    if config.node.workers == 1:
        return run(config, Node)
    check_spreads(config)

    def spread(config: Config, store: StateStore, transports: Transports) -> Node:
        return SpreadNode(config, store, transports, locks=locks)

    return run(config, spread)


def set_up_logging(config: Config) -> None:
    """Log as the configuration says."""
    set_up(form=cast("Form", config.log.format), level=cast("Level", config.log.level))


def run(config: Config, make: Make) -> int:
    """Run the node that `make` returns on an event loop of its own; return its exit code."""
    faulthandler.enable()  # A crash in foreign code is told, with the stack that led to it.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        code = runner.run(_run(config, make))
    # Whoever finds no such line knows that the process was killed, or hangs on its way out.
    _log.info("Process %d ends with exit code %d.", os.getpid(), code)
    return code


async def _run(config: Config, make: Make) -> int:
    with stacks.telling():
        store: StateStore = await config.state.driver.open(config.state.options)
        try:
            async with contextlib.AsyncExitStack() as stack:
                transports = await Transports.open(config, stack)
                node = make(config, store, transports)
                loop = asyncio.get_running_loop()
                for number in (signal.SIGTERM, signal.SIGINT):
                    loop.add_signal_handler(number, partial(_stop, node, number))
                return await node.run()
        finally:
            await store.aclose()


def _stop(node: Node, number: signal.Signals) -> None:
    _log.info("%s: the process is to stop.", number.name)
    node.request_stop()
