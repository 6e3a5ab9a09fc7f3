"""The configuration of a node: TOML in, checked values and loaded drivers out.

Holdfast's own sections are in `sections.py`; every driver declares its own as `Options`. What is
unknown, of the wrong type or impossible is refused with file, line, key path, value and the nearest
right spelling, and nothing is ever ignored. This module opens one file and starts nothing.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from holdfast.errors import ConfigError, DriverError
from holdfast.kernel import registry
from holdfast.kernel.options import (
    Where,
    asked_for,
    checked_mapping,
    options_from_mapping,
    options_from_strings,
    options_to_mapping,
    unknown_key,
)
from holdfast.kernel.schema import describe_options
from holdfast.kernel.sections import (
    SECTIONS,
    ClusterOptions,
    ControlOptions,
    LogOptions,
    NodeOptions,
    ScrubOptions,
    SyncOptions,
    TimingOptions,
    VolumeDefaults,
)
from holdfast.kernel.toml_lines import parse

__all__ = [
    "Chosen",
    "Config",
    "ConsumerConfig",
    "Setting",
    "asked_for",
    "config_from_text",
    "describe_options",
    "load_config",
    "load_consumer_config",
    "options_from_mapping",
    "options_from_strings",
    "options_to_mapping",
    "provenance",
]

T = TypeVar("T")

LoadDriver = Callable[[str, str], Any]
"""`registry.load`, or a stand-in: kind and name to driver."""

DEFAULT_DRIVERS: Mapping[str, str] = {"state": "sqlite", "transport": "tcp"}
"""The driver of each kind of which a node has exactly one."""
FURTHER = "also"
"""The key of `[transport]` that names drivers to run beside the node's own."""
DEFAULT_FRONTENDS: Collection[str] = ("nbd",)
"""Frontends that run unless their section says `enabled = false`."""


@attrs.frozen
class Chosen:
    """A driver and the options it is to be opened with."""

    name: str
    driver: Any
    """The class that the entry point names."""
    options: Any
    """An instance of `driver.Options`; None when it has none."""


@attrs.frozen
class Config:
    """Everything that a node is told from outside."""

    cluster: ClusterOptions
    node: NodeOptions
    control: ControlOptions
    state: Chosen
    transport: Chosen
    """The node's own."""
    transports: Mapping[str, Chosen]
    """By name; its own, and those that `also` names."""
    volumes: VolumeDefaults
    frontends: Mapping[str, Chosen]
    """By name; only those that are to run."""
    replicators: Mapping[str, Chosen]
    """Beside `lockstep`, by name."""
    policies: Mapping[str, Mapping[str, Any]]
    """What `[policy.NAME]` sets, as JSON has it, by name; a volume's own options go before."""
    timing: TimingOptions
    scrub: ScrubOptions
    sync: SyncOptions
    log: LogOptions
    source: str = attrs.field(eq=False, default="")
    """The file."""
    lines: Mapping[str, int] = attrs.field(eq=False, repr=False, factory=dict)
    """Key path to line in `source`."""


@attrs.frozen
class ConsumerConfig:
    """What a program needs to use the volumes of a cluster."""

    cluster: ClusterOptions
    state: Chosen
    transport: Chosen


@attrs.frozen
class Setting:
    """One value in force."""

    path: str
    value: Any
    source: str
    """`default`, or file and line."""


def load_config(path: str | Path, *, load: LoadDriver = registry.load) -> Config:
    """Return the configuration in the file `path`.

    Relative file names in it count from the file's folder.

    Args:
        path: The TOML file.
        load: How drivers are found.

    Raises:
        ConfigError: The file cannot be read, or what it says is not usable; see the module.
        DriverError: A driver that the defaults name is not usable.
    """
    file, text = _read(path)
    return config_from_text(text, source=str(file), folder=str(file.parent.absolute()), load=load)


def load_consumer_config(path: str | Path, *, load: LoadDriver = registry.load) -> ConsumerConfig:
    """Return what the file `path` says of cluster, state store and transport.

    A node's own file will do, and so will one with nothing but `[cluster]`, `[state]` and
    `[transport]`. The other sections are passed over: they say how a node runs.

    Args:
        path: The TOML file; relative file names in it count from its folder.
        load: How drivers are found.

    Raises:
        ConfigError: As `load_config`.
        DriverError: As `load_config`.
    """
    file, text = _read(path)
    content, lines = parse(text, str(file))
    where = Where(str(file), lines=lines, folder=str(file.parent.absolute()))
    return _Reader(content, where, load).read_consumer()


def _read(path: str | Path) -> tuple[Path, str]:
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"The configuration {file} cannot be read: {error.strerror}.",
            hint="Check its name and permissions; `holdfast up` makes one for each node of its own.",
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"The configuration {file} is not UTF-8 text: {error.reason}.") from error
    return file, text


def config_from_text(
    text: str, *, source: str = "configuration", folder: str = "", load: LoadDriver = registry.load
) -> Config:
    """Return the configuration in `text`; see `load_config`.

    Args:
        text: TOML.
        source: What errors call it.
        folder: What relative file names count from; empty leaves them.
        load: How drivers are found.
    """
    content, lines = parse(text, source)
    return _Reader(content, Where(source, lines=lines, folder=folder), load).read()


def check_settings(
    content: Mapping[str, Any], path: str | Path, *, load: LoadDriver = registry.load
) -> None:
    """Raise what `load_config` would, before any file has this content.

    Args:
        content: All settings of a node.
        path: The TOML file that an operator wrote some of them in; errors name its lines.
        load: How drivers are found.

    Raises:
        ConfigError: As `load_config`.
        DriverError: As `load_config`.
    """
    file, text = _read(path)
    _Reader(content, Where(str(file), lines=parse(text, str(file))[1]), load).read()


def provenance(config: Config) -> list[Setting]:
    """Return every value in force, with where it came from; secrets are hidden."""
    return [
        Setting(path, value, f"{config.source}:{line}" if line else "default")
        for path, value in _values(config)
        for line in (config.lines.get(path),)
    ]


def _values(config: Config) -> Iterator[tuple[str, Any]]:
    for name in SECTIONS:
        options: Any = getattr(config, name.partition(".")[0])
        yield from _section(name, options)
    for kind in DEFAULT_DRIVERS:
        chosen: Chosen = getattr(config, kind)
        yield f"{kind}.driver", chosen.name
        yield from _section(f"{kind}.{chosen.name}", chosen.options)
    further = [name for name in config.transports if name != config.transport.name]
    yield f"transport.{FURTHER}", further
    for name in further:
        yield from _section(f"transport.{name}", config.transports[name].options)
    for name, chosen in config.frontends.items():
        yield f"frontend.{name}.enabled", True
        yield from _section(f"frontend.{name}", chosen.options)
    for name, chosen in config.replicators.items():
        yield from _section(f"replicator.{name}", chosen.options)
    for name, values in config.policies.items():
        for key, value in values.items():
            yield f"policy.{name}.{key}", value


def _section(name: str, options: Any) -> Iterator[tuple[str, Any]]:
    if options is not None:
        for key, value in options_to_mapping(options, secrets=False).items():
            yield f"{name}.{key}", value


class _Reader:
    """One reading of one configuration."""

    def __init__(self, content: Mapping[str, Any], where: Where, load: LoadDriver) -> None:
        self._content = content
        self._where = where
        self._load = load

    def read(self) -> Config:
        self._check_sections()
        volumes = self._table(self._content, "volumes", self._where)
        for key in volumes:
            if key != "defaults":
                raise unknown_key(key, ["defaults"], self._where.key("volumes"))
        return Config(
            cluster=self._own("cluster", ClusterOptions),
            node=self._own("node", NodeOptions),
            control=self._own("control", ControlOptions),
            state=self._chosen("state"),
            transport=(transport := self._chosen("transport")),
            transports={transport.name: transport, **self._further(transport.name)},
            volumes=self._volumes(volumes),
            frontends=self._frontends(),
            replicators=self._replicators(),
            policies=self._policies(),
            timing=self._own("timing", TimingOptions),
            scrub=self._own("scrub", ScrubOptions),
            sync=self._own("sync", SyncOptions),
            log=self._own("log", LogOptions),
            source=self._where.source,
            lines=self._where.lines,
        )

    def read_consumer(self) -> ConsumerConfig:
        self._check_sections()
        return ConsumerConfig(
            cluster=self._own("cluster", ClusterOptions),
            state=self._chosen("state"),
            transport=self._chosen("transport"),
        )

    def _check_sections(self) -> None:
        known = {name.partition(".")[0] for name in SECTIONS}
        known |= DEFAULT_DRIVERS.keys() | {"frontend", "replicator", "policy"}
        for key in self._content:
            if key not in known:
                raise unknown_key(key, known, self._where)

    def _table(self, content: Mapping[str, Any], key: str, where: Where) -> Mapping[str, Any]:
        """Return the table under `key`, empty if there is none; raises `ConfigError` otherwise."""
        value = content.get(key, {})
        if not isinstance(value, Mapping):
            at = where.key(key)
            raise ConfigError(f"{at} is {value!r}; it must be a table.", hint=f"Write [{at.path}].")
        return value

    def _own(self, name: str, cls: type[T]) -> T:
        table = self._table(self._content, name, self._where)
        return options_from_mapping(cls, table, where=self._where.key(name))

    def _volumes(self, volumes: Mapping[str, Any]) -> VolumeDefaults:
        where = self._where.key("volumes")
        table = self._table(volumes, "defaults", where)
        defaults = options_from_mapping(VolumeDefaults, table, where=where.key("defaults"))
        if "policy" in table:
            self._driver("policy", defaults.policy, where.key("defaults").key("policy"))
        return defaults

    def _chosen(self, kind: str) -> Chosen:
        """Read `[KIND]`: the key `driver`, and a table for each driver that has options."""
        where = self._where.key(kind)
        table = self._table(self._content, kind, self._where)
        name = table.get("driver", DEFAULT_DRIVERS[kind])
        if not isinstance(name, str):
            raise ConfigError(f"{where.key('driver')} is {name!r}; it must be a string.")
        if "driver" in table:
            driver = self._driver(kind, name, where.key("driver"))
        else:
            driver = self._load(kind, name)
        for key, value in table.items():
            if key in {"driver", name} or (kind == "transport" and key == FURTHER):
                continue
            if not isinstance(value, Mapping):
                raise self._misplaced(key, name, driver, where)
            # What is written for a driver that is not in use must be right all the same.
            self._options(self._driver(kind, key, where.key(key)), value, where.key(key))
        section = self._table(table, name, where)
        return Chosen(name, driver, self._options(driver, section, where.key(name)))

    def _further(self, own: str) -> dict[str, Chosen]:
        """Read `also` of `[transport]`: the drivers that run beside the node's own."""
        where = self._where.key("transport")
        table = self._table(self._content, "transport", self._where)
        names = table.get(FURTHER, [])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(f"{where.key(FURTHER)} is {names!r}; it must be a list of strings.")
        chosen = {}
        for name in names:
            if name == own:
                raise ConfigError(
                    f"{where.key(FURTHER)} names {name!r}, which is the node's own transport.",
                    hint="Leave it out.",
                )
            driver = self._driver("transport", name, where.key(FURTHER))
            section = self._table(table, name, where)
            chosen[name] = Chosen(name, driver, self._options(driver, section, where.key(name)))
        return chosen

    def _frontends(self) -> dict[str, Chosen]:
        where = self._where.key("frontend")
        table = self._table(self._content, "frontend", self._where)
        chosen: dict[str, Chosen] = {}
        for name in dict.fromkeys((*DEFAULT_FRONTENDS, *table)):
            section = dict(self._table(table, name, where))
            enabled = section.pop("enabled", True)
            if not isinstance(enabled, bool):
                raise ConfigError(
                    f"{where.key(name).key('enabled')} is {enabled!r}; it must be true or false."
                )
            if not enabled and not section:
                continue  # A driver that is switched off need not even be installed.
            if name in table:
                driver = self._driver("frontend", name, where.key(name))
            else:
                driver = self._load("frontend", name)
            options = self._options(driver, section, where.key(name))
            if enabled:
                chosen[name] = Chosen(name, driver, options)
        return chosen

    def _replicators(self) -> dict[str, Chosen]:
        where = self._where.key("replicator")
        chosen: dict[str, Chosen] = {}
        for name, section in self._table(self._content, "replicator", self._where).items():
            if not isinstance(section, Mapping):
                raise unknown_key(name, registry.names("replicator"), where)
            driver = self._driver("replicator", name, where.key(name))
            chosen[name] = Chosen(name, driver, self._options(driver, section, where.key(name)))
        return chosen

    def _policies(self) -> dict[str, Mapping[str, Any]]:
        where = self._where.key("policy")
        table = self._table(self._content, "policy", self._where)
        policies: dict[str, Mapping[str, Any]] = {}
        for name in table:
            driver = self._driver("policy", name, where.key(name))
            section = self._table(table, name, where)
            policies[name] = checked_mapping(driver.Options, section, where=where.key(name))
        return policies

    def _driver(self, kind: str, name: str, where: Where) -> Any:
        """Load a driver that the file names, and say where it does if that fails."""
        try:
            return self._load(kind, name)
        except DriverError as error:
            raise ConfigError(f"{where}: {error.message}", hint=error.hint) from error

    @staticmethod
    def _options(driver: Any, section: Mapping[str, Any], where: Where) -> Any:
        cls = getattr(driver, "Options", None)
        if cls is not None:
            return options_from_mapping(cls, section, where=where)
        for key in section:
            raise unknown_key(key, (), where)
        return None

    @staticmethod
    def _misplaced(key: str, name: str, driver: Any, where: Where) -> ConfigError:
        """Return the error for a plain value beside `driver`, the commonest slip."""
        cls = getattr(driver, "Options", None)
        options = [] if cls is None else [info.name for info in describe_options(cls)]
        nearest = difflib.get_close_matches(key, options, n=1)
        if not nearest:
            return unknown_key(key, ["driver"], where)
        return ConfigError(
            f"{where.key(key)} is not a known option.",
            hint=f"Write {nearest[0]} under [{where.path}.{name}].",
        )
