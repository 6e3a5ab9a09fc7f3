from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import ConfigError, DriverError
from holdfast.kernel.config import (
    Chosen,
    Config,
    Setting,
    config_from_text,
    load_config,
    provenance,
)
from holdfast.kernel.reference import installed_options, render_reference
from holdfast.kernel.sections import SECTIONS
from holdfast.kernel.toml_lines import parse

NODE = '[node]\nname = "n1"\ndata = ["/srv/data"]\n'


@attrs.frozen
class WireOptions:
    port: int = 5703
    """Where to listen."""
    psk: str = attrs.field(default="", metadata={"secret": True})


class Wire:
    Options = WireOptions


@attrs.frozen
class FileOptions:
    path: str = attrs.field(default="state.db", metadata={"path": True})


class File:
    Options = FileOptions


@attrs.frozen
class NbdOptions:
    listen: str = "127.0.0.1:10809"


class Nbd:
    Options = NbdOptions


class Bare:
    """A driver without options."""


@attrs.frozen
class PolicyOptions:
    grace_s: float = 90.0


class Policy:
    Options = PolicyOptions


DRIVERS: dict[tuple[str, str], Any] = {
    ("transport", "tcp"): Wire,
    ("transport", "bare"): Bare,
    ("state", "sqlite"): File,
    ("frontend", "nbd"): Nbd,
    ("frontend", "extra"): Nbd,
    ("policy", "hard"): Policy,
}


def load(kind: str, name: str) -> Any:
    try:
        return DRIVERS[kind, name]
    except KeyError:
        raise DriverError(f"There is no {kind} driver {name!r}.", hint="Did you mean …?") from None


def read(text: str, *, node: str = NODE, folder: str = "") -> Config:
    return config_from_text(node + text, source="n1.toml", folder=folder, load=load)


def test_a_name_and_a_directory_make_a_configuration() -> None:
    config = read("")
    assert config.cluster.name == "holdfast"
    assert config.node.data == ("/srv/data",)
    assert config.state == Chosen("sqlite", File, FileOptions())
    assert config.transport == Chosen("tcp", Wire, WireOptions())
    assert config.frontends == {"nbd": Chosen("nbd", Nbd, NbdOptions())}
    assert (config.volumes.replicas, config.volumes.policy) == (1, "hard")
    assert (config.timing.heartbeat_s, config.timing.lease_s, config.timing.margin_s) == (0.5, 2, 1)
    assert config.timing.ack_timeout_s == 8
    assert (config.log.level, config.log.format) == ("info", "console")


def test_every_section_is_read() -> None:
    config = read(
        """
        labels = { zone = "z1" }
        cordoned = true
        [cluster]
        name = "blue"
        [control]
        socket = "/run/c.sock"
        [state.sqlite]
        path = "s.db"
        [transport]
        driver = "tcp"
        [transport.tcp]
        port = 7000
        [volumes.defaults]
        replicas = 2
        policy = "hard"
        [policy.hard]
        grace_s = 4
        [frontend.nbd]
        listen = "[::1]:1"
        [frontend.extra]
        [timing]
        lease_s = 3
        [log]
        format = "json"
        """,
        folder="/etc",
    )
    assert config.cluster.name == "blue"
    assert config.node.labels == {"zone": "z1"}
    assert config.node.cordoned
    assert config.control.socket == "/run/c.sock"
    assert config.state.options.path == "/etc/s.db"
    assert config.transport.options.port == 7000
    assert config.volumes.replicas == 2
    assert config.policies == {"hard": {"grace_s": 4.0}}
    assert list(config.frontends) == ["nbd", "extra"]
    assert config.timing.lease_s == 3.0
    assert config.log.format == "json"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[nod]", "n1.toml:4: nod is not a known option. Did you mean 'node'?"),
        ("[transport]\nport = 1", "transport.port is not a known option. Write port under [tr"),
        ("[transport]\ndirver = 'tcp'", "n1.toml:5: transport.dirver is not a known option. Did"),
        ("[transport]\ndriver = 'udp'", "n1.toml:5: transport.driver: There is no transport dri"),
        ("[transport]\ndriver = 3", "transport.driver is 3; it must be a string."),
        ("[transport.udp]", "n1.toml:4: transport.udp: There is no transport driver 'udp'."),
        ("[transport.tcp]\nprot = 1", "n1.toml:5: transport.tcp.prot is not a known option. Did"),
        ("[transport.tcp]\nport = 'a'", "n1.toml:5: transport.tcp.port is 'a'; it must be"),
        ("[transport.bare]\nport = 1", "transport.bare.port is not a known option. Nothing can"),
        ("transport = 3", "node.transport is not a known option"),
        ("[[transport]]", "transport is [{}]; it must be a table. Write [transport]."),
        ("[volumes]\nreplicas = 1", "volumes.replicas is not a known option. It may be one of d"),
        ("[volumes.defaults]\nreplicas = 6", "volumes.defaults.replicas is 6; it must be 0 to 5"),
        ("[volumes.defaults]\npolicy = 'hrad'", "n1.toml:5: volumes.defaults.policy: There is"),
        ("[policy.hard]\ngrace = 4", "policy.hard.grace is not a known option. Did you mean 'gra"),
        ("[policy.strict]", "policy.strict: There is no policy driver"),
        ("[frontend.nbd]\nenabled = 1", "frontend.nbd.enabled is 1; it must be true or false."),
        ("[frontend.ndb]", "frontend.ndb: There is no frontend driver 'ndb'."),
        ("[timing]\nlease_s = 0.5", "n1.toml:5: timing.lease_s: 'lease_s' is 0.5 and heartbeat_s"),
        ("[log]\nlevel = 'warn'", "log.level is 'warn', which is not a choice. Did you mean 'war"),
        ("compute_only = true", "node.data: 'data' is given, but compute_only = true"),
        ("x =", "n1.toml is not valid TOML: Invalid value"),
    ],
)
def test_what_is_wrong_is_told_with_file_line_key_and_remedy(text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        read(text)


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        ("", "n1.toml: node.name is missing. What this node is called"),
        ("[node]\ndata = ['/d']", "n1.toml:1: node.name is missing"),
        ("[node]\nname = 'n1'", "'data' names no place for copies"),
        ("[node]\nname = ''\ndata = ['/d']", "node.name: 'name' is empty."),
    ],
)
def test_a_node_needs_a_name_and_a_place(node: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        read("", node=node)


def test_a_frontend_can_be_switched_off_and_then_need_not_be_installed() -> None:
    assert read("[frontend.nbd]\nenabled = false").frontends == {}
    assert list(read("[frontend.absent]\nenabled = false").frontends) == ["nbd"]


def test_what_is_written_for_a_driver_not_in_use_must_be_right() -> None:
    text = "[transport]\ndriver = 'bare'\n[transport.tcp]\nport = "
    assert read(text + "1").transport.name == "bare"
    with pytest.raises(ConfigError, match="must be a whole number"):
        read(text + "'x'")


def test_a_default_driver_that_is_broken_stays_a_driver_error() -> None:
    def nothing(kind: str, name: str) -> Any:
        raise DriverError(f"The {kind} driver {name} is broken.")

    with pytest.raises(DriverError, match="The state driver sqlite is broken"):
        config_from_text(NODE, load=nothing)


def test_a_file_is_read_and_its_folder_counts(tmp_path: Path) -> None:
    path = tmp_path / "n1.toml"
    path.write_text('[node]\nname = "n1"\ndata = ["data"]\n')
    assert load_config(path, load=load).node.data == (str(tmp_path / "data"),)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_config(tmp_path / "none.toml")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        load_config(tmp_path / "bytes")


def test_everything_in_force_is_listed_with_its_line() -> None:
    config = read('[transport.tcp]\nport = 1\npsk = "s3cret"\n[policy.hard]\ngrace_s = 4\n')
    settings = {setting.path: setting for setting in provenance(config)}
    assert settings["node.name"] == Setting("node.name", "n1", "n1.toml:2")
    assert settings["transport.tcp.port"] == Setting("transport.tcp.port", 1, "n1.toml:5")
    assert settings["transport.tcp.psk"].value == "(hidden)"
    assert settings["policy.hard.grace_s"].source == "n1.toml:8"
    assert settings["timing.lease_s"] == Setting("timing.lease_s", 2.0, "default")
    assert settings["transport.driver"] == Setting("transport.driver", "tcp", "default")
    assert settings["frontend.nbd.enabled"].value is True
    for name, cls in SECTIONS.items():
        assert {f"{name}.{field.name}" for field in attrs.fields(cls)} <= settings.keys()


def test_lines_are_known_in_every_way_that_toml_writes_a_key() -> None:
    text = """\
# A comment with = and [brackets]
a = 1
b.c = 2

[t]
list = [
  "x", # [no]
  "]",
]
text = \"\"\"
[t.fake]
d = 3
\"\"\"
inline = { e = 4 }
"quoted key" = 5
[t.u]
f = 6
[[many]]
g = 7
[[many]]
h = 8
"""
    _, lines = parse(text, "x.toml")
    words = "a 2, b 3, b.c 3, t 5, t.list 6, t.text 10, t.inline 14, t.inline.e 14, t.quoted key 15"
    words += ", t.u 16, t.u.f 17, many 18, many.g 19, many.h 21"
    assert ", ".join(f"{path} {line}" for path, line in lines.items()) == words


@given(st.text())
def test_no_text_whatever_raises_anything_but_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        config_from_text(text, load=load)


def test_nesting_without_end_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="is nested too deeply"):
        config_from_text(f"a = {'[' * 100_000}", load=load)


def test_the_example_of_the_design_is_right_for_the_drivers_of_this_tree() -> None:
    config = config_from_text(
        """
        [node]
        name = "a"
        data = ["/var/lib/holdfast"]      # each a directory or a block device
        [state]
        driver = "sqlite"                  # or "etcd", "kubernetes"
        [transport]
        driver = "tcp"
        [transport.tcp]
        port = 5703
        compression = "lz4"
        [volumes.defaults]
        replicas = 1
        policy = "hard"
        [frontend.nbd]
        listen = "127.0.0.1:10809"
        """
    )
    assert config.transport.options.compression == "lz4"
    assert config.frontends["nbd"].options.listen == "127.0.0.1:10809"


def test_the_reference_has_every_key_of_every_section_and_driver() -> None:
    drivers = installed_options()
    page = render_reference(drivers)
    assert {("policy", "hard"), ("policy", "threshold")} <= {
        (kind, name) for kind, name, _ in drivers
    }
    tables = [*SECTIONS.items(), *((f"{kind}.{name}", cls) for kind, name, cls in drivers)]
    for name, cls in tables:
        section = page.split(f"## `[{name}]`\n")[1].split("\n## ")[0]
        for field in attrs.fields(cls):
            assert f"| `{field.name}` |" in section, (name, field.name)


def test_every_option_of_holdfast_itself_is_explained() -> None:
    page = render_reference([])
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert len(rows) > 15
    assert not [row for row in rows if row.endswith("|  |")]
    assert "| `lease_s` | number | `2.0` s | How long a sign of life counts" in page
