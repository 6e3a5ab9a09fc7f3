"""What tests across packages share: tools that may be missing, and clusters that always end."""

import os
import shutil
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.harness.cluster import RunningCluster

_PLACES = os.pathsep.join(
    [os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"]
    + [str(path) for path in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
)
_failed = pytest.StashKey[bool]()


def lacking(sentence: str) -> None:
    """Skip the test, or fail it where everything is to be there (CI=true)."""
    if os.environ.get("CI", "").lower() in {"1", "true", "yes"}:
        pytest.fail(f"{sentence} tests/install-tools installs what tests need.", pytrace=False)
    pytest.skip(sentence)


def find_tool(name: str) -> str:
    """Return the path of a program that the test needs; skips or fails without it."""
    path = shutil.which(name, path=_PLACES)
    if path is None:
        lacking(f"{name} is not installed.")
    return str(path)


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """Return the function that finds a program or skips the test."""
    return find_tool


@pytest.fixture(scope="session")
def nbdkit() -> str:
    """Return the path of nbdkit."""
    return find_tool("nbdkit")


@pytest.fixture(scope="session")
def fio() -> str:
    """Return the path of fio."""
    return find_tool("fio")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note in the item whether its test failed, for fixtures that tell more then."""
    report = yield
    item.stash[_failed] = item.stash.get(_failed, False) or report.failed
    return report


@pytest.fixture
def start_cluster(
    tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., RunningCluster]]:
    """Return a function that starts a cluster of `nodes` nodes; it ends with the test.

    When the test fails, the ends of the nodes' logs are part of the report.
    """
    with ExitStack() as stack:
        clusters: list[RunningCluster] = []

        def start(nodes: int = 3, *, config: str = "") -> RunningCluster:
            folder = tmp_path / f"cluster{len(clusters)}"
            cluster = RunningCluster(folder, nodes=nodes, config=config)
            clusters.append(stack.enter_context(cluster))
            return cluster

        yield start
        if request.node.stash.get(_failed, False):
            for cluster in clusters:
                cluster.show_logs()
                cluster.keep = True
