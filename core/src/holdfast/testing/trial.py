"""From an installed driver to the kit of its kind: what `holdfast plugin check NAME` runs.

A kit must know how to open the driver for a trial. The driver says so in a mapping of plain values,
`CONFORMANCE`, so that it need not import the kits; every key may be missing:

    capabilities    fields of the kit's `Capabilities` that differ from their defaults
    options         its own options for a trial; `{folder}` in a string is an empty folder
    client          frontends: `module:name` of a function that connects to a URI, see
                    `checks.frontend.Subject`; without it a frontend cannot be tried

Nothing here prints or exits, and no driver is looked up here.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

from holdfast.errors import DriverError
from holdfast.testing.checks import frontend, policy, state, transport

KINDS = ("transport", "policy", "frontend", "state")
"""The kinds of drivers that have a kit."""


@attrs.frozen
class Outcome:
    """How one check ended."""

    name: str
    promise: str
    """What was checked, in a sentence."""
    failure: str | None
    """Why it failed; None when the promise was kept."""


def trial_options(driver: Any, folder: Path) -> dict[str, Any]:
    """Return the options that the driver declares for a trial, as TOML has them."""
    declared: Mapping[str, Any] = _declared(driver).get("options", {})
    return {
        key: value.replace("{folder}", str(folder)) if isinstance(value, str) else value
        for key, value in declared.items()
    }


async def run_kit(kind: str, driver: Any, options: Any) -> list[Outcome]:
    """Run every check of the kit of `kind` and say how each ended.

    Args:
        kind: One of `KINDS`.
        driver: What the entry point names.
        options: An instance of its `Options`, such that it can be opened several times here.

    Raises:
        DriverError: The driver declares what the kit does not know, or a frontend has no client.
    """
    kit = {
        "transport": _run_transport,
        "policy": _run_policy,
        "frontend": _run_frontend,
        "state": _run_state,
    }[kind]
    return await kit(driver, options)


async def _run_transport(driver: Any, options: Any) -> list[Outcome]:
    able = _capabilities(driver, transport.Capabilities)
    subject = transport.Subject(lambda cluster, node: driver.open(options, cluster, node), able)
    return _outcomes(transport.CHECKS, await transport.run_checks(subject))


async def _run_policy(driver: Any, options: Any) -> list[Outcome]:
    able = _capabilities(driver, policy.Capabilities)
    return _outcomes(policy.CHECKS, policy.run_checks(policy.Subject(driver, (options,), able)))


async def _run_frontend(driver: Any, options: Any) -> list[Outcome]:
    able = _capabilities(driver, frontend.Capabilities)
    subject = frontend.Subject(
        open=lambda provider: driver.open(options, provider),
        connect=_client(driver),
        capabilities=able,
    )
    return _outcomes(frontend.CHECKS, await frontend.run_checks(subject))


async def _run_state(driver: Any, options: Any) -> list[Outcome]:
    able = _capabilities(driver, state.Capabilities)
    subject = state.Subject(lambda: driver.open(options), able)
    return _outcomes(state.CHECKS, await state.run_checks(subject))


def _declared(driver: Any) -> Mapping[str, Any]:
    declared: Mapping[str, Any] = getattr(driver, "CONFORMANCE", {})
    return declared


def _capabilities(driver: Any, cls: type[Any]) -> Any:
    given = _declared(driver).get("capabilities", {})
    try:
        return cls(**given)
    except TypeError as error:
        known = ", ".join(field.name for field in attrs.fields(cls))
        raise DriverError(
            f"The driver {driver.name!r} declares what its kit does not know: {error}.",
            hint=f"The kit knows {known}.",
        ) from error


def _client(driver: Any) -> Callable[[str], Awaitable[frontend.Client]]:
    path = _declared(driver).get("client", "")
    if not path:
        raise DriverError(
            f"The frontend {driver.name!r} brings no client to try it with.",
            hint="Its author names one as CONFORMANCE['client'], or runs the kit in a test.",
        )
    module, _, name = path.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    connect: Callable[[str], Awaitable[frontend.Client]] = found
    return connect


def _outcomes(checks: Iterable[Any], results: Mapping[str, BaseException | None]) -> list[Outcome]:
    outcomes = []
    for check in checks:
        promise = (check.__doc__ or "").strip().split("\n\n", 1)[0]
        failure = results[check.__name__]
        outcomes.append(
            Outcome(
                check.__name__,
                " ".join(promise.split()),
                None if failure is None else str(failure) or type(failure).__name__,
            )
        )
    return outcomes
