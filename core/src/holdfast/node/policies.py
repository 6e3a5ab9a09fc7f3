"""The policies of a node: its drivers, made with the options of configuration and volumes.

What a policy decides is its own; here it is found, checked and kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from typing import Any

from holdfast.errors import HoldfastError, UsageError
from holdfast.interfaces.policy import Policy
from holdfast.kernel import registry
from holdfast.kernel.config import asked_for, options_from_mapping, options_from_strings
from holdfast.model import VolumeSpec
from holdfast.units import counted


class Policies:
    """Policies by specification, made once for each; unknown ones are errors of their maker."""

    def __init__(self, defaults: Mapping[str, Mapping[str, Any]]) -> None:
        """Remember what the configuration sets for each policy."""
        self._defaults = defaults
        self._made: dict[tuple[str, str], Policy] = {}
        self._drivers: dict[str, Any] = {}

    def of(self, spec: VolumeSpec) -> Policy:
        """Return the policy of a volume."""
        key = (spec.policy, repr(sorted(spec.policy_options.items())))
        policy = self._made.get(key)
        if policy is None:
            driver = self._driver(spec.policy)
            options = options_from_mapping(
                driver.Options, spec.policy_options, where=f"the policy of {spec.name}"
            )
            policy = self._made[key] = driver(options)
        return policy

    def _driver(self, name: str) -> Any:
        """Return a driver; each is looked for once, for that goes through all distributions."""
        driver = self._drivers.get(name)
        if driver is None:
            driver = self._drivers[name] = registry.load("policy", name)
        return driver

    def prepare(self, specs: Iterable[VolumeSpec]) -> None:
        """Make the policies of volumes, as far as they can be made; in a thread.

        Importing a driver took a busy machine 3 s, and a copy that takes over has no such time: while
        it imports it is silent, and the next one takes over from it.
        """
        for spec in specs:
            with contextlib.suppress(HoldfastError):  # It is told to whoever needs the policy.
                self.of(spec)

    def options(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the options of a new volume, typed: the configuration's, then `given`.

        Raises:
            DriverError: There is no such policy.
            UsageError: It does not take what is given.
        """
        driver = self._driver(name)
        typed = {k: v for k, v in given.items() if not isinstance(v, str)}
        texts = {k: v for k, v in given.items() if isinstance(v, str)}
        where = f"--set of policy {name}"
        with asked_for():
            parsed = options_from_strings(driver.Options, texts, where=where) if texts else None
            for key in texts:
                value = getattr(parsed, key)
                typed[key] = getattr(value, "value", value)
            merged = {**self._defaults.get(name, {}), **typed}
            options_from_mapping(driver.Options, merged, where=where)
        return merged

    def refuse(self, name: str, declared: int, options: Mapping[str, Any]) -> None:
        """Raise `UsageError` when the policy cannot go with so many replicas."""
        driver = self._driver(name)
        made = options_from_mapping(driver.Options, options, where=f"--set of policy {name}")
        reason = driver.refuse(declared, made)
        if reason is not None:
            raise UsageError(reason)

    def shortage(self, spec: VolumeSpec, nodes: int) -> str | None:
        """Return a sentence when so many nodes are too few to heal after a loss, or None."""
        needed = self.of(spec).nodes_min(spec.replicas)
        if nodes >= needed:
            return None
        return (
            f"{spec.policy} with {counted(spec.replicas, 'replica')} needs {needed} nodes to heal "
            f"after a loss; there are {nodes}."
        )
