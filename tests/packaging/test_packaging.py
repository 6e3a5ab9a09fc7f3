"""Installs by plain pip, in environments of its own: everything, the core alone, strangers.

Two environments are made once and grow from test to test, so the order of the tests is their story.
Whatever this process imports, the programs run here see only what pip has installed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
from tests.conftest import lacking

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
TEMPLATES = sorted(path.parent for path in ROOT.glob("docs/driver-template/*/pyproject.toml"))
MEMBERS = [ROOT / "core", *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml"))]

LIST = """
import json
from holdfast.kernel.registry import list_drivers
print(json.dumps([[i.kind, i.name, i.distribution, i.version, i.status.value, i.reason]
                  for i in list_drivers()]))
"""


@attrs.frozen
class Environment:
    """A virtual environment without pip; the one that runs the tests installs into it."""

    folder: Path

    def pip(self, *arguments: str | Path, **variables: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.folder), *map(str, arguments)]
        done = self._run(command, **variables)
        assert done.returncode == 0, done.stdout + done.stderr

    def install(self, *projects: Path, **variables: str) -> None:
        # What is imported is compiled when it is; most of it never is.
        self.pip("install", "--quiet", "--no-compile", *projects, **variables)

    def python(self, program: str) -> str:
        # -I: neither the current folder nor PYTHONPATH may lend a module.
        done = self._run([str(self.folder / "bin" / "python"), "-I", "-c", program])
        assert done.returncode == 0, done.stderr
        return done.stdout

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self._run([str(self.folder / "bin" / "holdfast"), *arguments])

    def drivers(self) -> dict[tuple[str, str], list[str]]:
        """Return distribution, version, status and reason by kind and name."""
        return {(kind, name): rest for kind, name, *rest in json.loads(self.python(LIST))}

    def _run(self, command: list[str], **variables: str) -> subprocess.CompletedProcess[str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        return subprocess.run(
            command,
            cwd=self.folder,
            env=clean | variables,
            capture_output=True,
            text=True,
            check=False,
        )


def project(member: Path) -> dict[str, Any]:
    table: dict[str, Any] = tomllib.loads((member / "pyproject.toml").read_text())["project"]
    return table


def declared(*members: Path) -> set[tuple[str, str]]:
    """Return kind and name of every driver that the members' pyproject.toml declare."""
    return {
        (group.removeprefix("holdfast."), name)
        for member in members
        for group, points in project(member).get("entry-points", {}).items()
        for name in points
    }


def made(folder: Path) -> Environment:
    venv.create(folder, with_pip=False)
    return Environment(folder)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """What `pip install .` in the root gives."""
    environment = made(tmp_path_factory.mktemp("everything"))
    environment.install(ROOT)
    return environment


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """What `pip install ./core` gives where there is no C compiler."""
    environment = made(tmp_path_factory.mktemp("bare"))
    environment.install(ROOT / "core", CC="false")
    return environment


@pytest.fixture(scope="module")
def strangers(everything: Environment) -> Environment:
    """Everything, and after it the drivers of third parties, good and bad."""
    everything.install(*TEMPLATES, *(path.parent for path in sorted(HERE.glob("*/pyproject.toml"))))
    return everything


def test_installing_the_root_installs_every_driver_of_this_tree(everything: Environment) -> None:
    drivers = everything.drivers()
    assert drivers.keys() == declared(*MEMBERS)
    broken = {key: rest for key, rest in drivers.items() if rest[2] != "ok"}
    assert not broken
    owners = {(rest[0], rest[1]) for rest in drivers.values()}
    assert owners <= {(project(m)["name"], project(m)["version"]) for m in MEMBERS}
    everything.pip("check")


def test_loops_are_compiled_where_there_is_a_compiler(
    everything: Environment, bare: Environment, tool: Callable[[str], str]
) -> None:
    tool("gcc")
    if not Path(sysconfig.get_path("include"), "Python.h").exists():
        lacking("Python's headers are not installed.")
    program = "from holdfast import compiled; print(compiled.IN_USE)"
    assert everything.python(program).strip() == "True"
    assert bare.python(program).strip() == "False"
    for environment, state in ((everything, "ok"), (bare, "missing")):
        done = environment.command("doctor", "--json")
        found = {each["what"]: each for each in json.loads(done.stdout)["findings"]}
        assert found["compiled loops"]["state"] == state


def test_the_root_distribution_has_no_module_of_its_own(everything: Environment) -> None:
    files = everything.python(
        "from importlib.metadata import files\n"
        "print([str(f) for f in files('holdfast') if '.dist-info' not in str(f)])"
    )
    assert files.strip() == "[]"


def test_every_package_is_typed(everything: Environment) -> None:
    packages = [path.parent.name for member in MEMBERS for path in member.glob("src/*/py.typed")]
    assert len(packages) == len(MEMBERS)
    program = "from importlib.resources import files\n"
    program += f"assert all((files(p) / 'py.typed').is_file() for p in {packages})"
    everything.python(program)


def test_the_command_lists_the_drivers_that_are_installed(everything: Environment) -> None:
    done = everything.command("plugin", "list", "--json")
    assert done.returncode == 0, done.stderr
    listed = {(each["kind"], each["name"]) for each in json.loads(done.stdout)["plugins"]}
    assert declared(*MEMBERS) <= listed


def test_the_core_stands_alone(bare: Environment) -> None:
    drivers = bare.drivers()
    assert drivers.keys() == declared(ROOT / "core")
    assert {rest[2] for rest in drivers.values()} == {"ok"}
    said = bare.python(
        "from holdfast.errors import DriverError\n"
        "from holdfast.kernel.registry import load\n"
        "try: load('policy', 'hard')\n"
        "except DriverError as error: print(error)"
    )
    assert "There is no policy driver 'hard'." in said
    assert "pip install holdfast-policy" in said


def test_one_plugin_can_be_added_to_the_core(bare: Environment) -> None:
    policy = ROOT / "plugins" / "policy"
    bare.install(policy)
    assert bare.drivers().keys() == declared(ROOT / "core", policy)
    assert bare.python(
        "from holdfast.kernel.registry import load\nprint(load('policy', 'hard').name)"
    )


def test_drivers_of_third_parties_are_found_after_the_fact(strangers: Environment) -> None:
    drivers = strangers.drivers()
    assert drivers["policy", "majority"] == ["holdfast-majority", "0.3.1", "ok", ""]
    assert drivers["transport", "counted"] == ["holdfast-counted", "0.3.1", "ok", ""]
    assert declared(*TEMPLATES) <= drivers.keys()


def test_bad_drivers_are_listed_with_the_reason_and_harm_nobody(strangers: Environment) -> None:
    drivers = strangers.drivers()
    *_, status, reason = drivers["policy", "broken"]
    assert status == "broken"
    assert "No module named 'a_library_that_nobody_has'" in reason
    *_, status, reason = drivers["policy", "old"]
    assert status == "wrong-version"
    assert "API version 0" in reason
    bad = {("policy", "broken"), ("policy", "old")}
    assert {key for key, rest in drivers.items() if rest[2] != "ok"} == bad
    done = strangers.command("plugin", "list")
    assert done.returncode == 0
    assert "a_library_that_nobody_has" in "".join(done.stdout.split())
    assert "Traceback" not in done.stdout + done.stderr


def test_a_bad_driver_that_is_chosen_is_refused_with_a_sentence(strangers: Environment) -> None:
    config = strangers.folder / "n1.toml"
    config.write_text(
        '[node]\nname = "n1"\ndata = ["d"]\n[state.sqlite]\npath = "s.db"\n'
        '[volumes.defaults]\npolicy = "broken"\n'
    )
    done = strangers.command("config", "check", "--config", str(config))
    assert done.returncode == 3
    assert "n1.toml:7: volumes.defaults.policy: The policy driver 'broken'" in done.stderr
    assert "pip install --force-reinstall holdfast-broken" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("kind", "name"), sorted(declared(*TEMPLATES)))
def test_a_template_keeps_its_promises_where_no_pytest_is(
    strangers: Environment, kind: str, name: str
) -> None:
    done = strangers.command("plugin", "check", name, "--kind", kind, "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    (tried,) = json.loads(done.stdout)["plugins"]
    assert len(tried["checks"]) > 10


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_the_tests_of_a_template_pass(template: Path) -> None:
    (package,) = (template / "src").iterdir()
    path = [str(package.parent), os.environ["PYTHONPATH"]]
    done = subprocess.run(
        # Its own project file, so that nothing of this tree's configuration helps it.
        [sys.executable, "-m", "pytest", "-q", "-c", "pyproject.toml", "tests"],
        cwd=template,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join(path), "PYTEST_ADDOPTS": "-p no:cacheprovider"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"[1-9]\d+ passed", done.stdout)


@pytest.mark.parametrize("delay_s", [0, 0.01])
def test_a_third_party_transport_around_ours_passes_the_kit(
    strangers: Environment, delay_s: float
) -> None:
    assert strangers.python(
        "import anyio\n"
        "from holdfast.kernel.config import options_from_mapping\n"
        "from holdfast.kernel.registry import load\n"
        "from holdfast.testing.checks.transport import CHECKS, Subject, run_checks\n"
        "driver = load('transport', 'counted')\n"
        f"values = {{'settings': {{'port': '0'}}, 'delay_s': {delay_s}}}\n"
        "options = options_from_mapping(driver.Options, values, where='test')\n"
        "subject = Subject(lambda cluster, node: driver.open(options, cluster, node))\n"
        "results = anyio.run(run_checks, subject)\n"
        "bad = {name: failure for name, failure in results.items() if failure}\n"
        "assert len(results) == len(CHECKS) and not bad, bad\n"
        "print('passed')"
    )
