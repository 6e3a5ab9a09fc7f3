"""The documentation says what the code does: generated pages are fresh, commands exist."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.cli.reference import commands

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted(ROOT.glob("docs/*.md")),
    *sorted(ROOT.glob("docs/decisions/*.md")),
    *sorted(ROOT.glob("*/README.md")),
    *sorted(ROOT.glob("plugins/*/README.md")),
]


def test_generated_pages_are_what_the_code_says() -> None:
    check = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert check.returncode == 0, check.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_that_is_named_exists(page: Path) -> None:
    known = set(commands())
    groups = {" ".join(path.split()[:2]) for path in known}
    for words in re.findall(
        r"(?:^\$ |`)(holdfast [a-z][a-z -]*[a-z])", page.read_text("utf-8"), re.MULTILINE
    ):
        parts = [word for word in words.split() if not word.startswith("-")]
        found = " ".join(parts[:3]) in known or " ".join(parts[:2]) in known | groups
        assert found, f"{page.name} names {words!r}"


def test_every_command_that_the_code_names_exists() -> None:
    known = set(commands())
    groups = {" ".join(path.split()[:2]) for path in known}
    wrong = [
        f"{path.relative_to(ROOT)}: {words}"
        for path in [*ROOT.glob("core/src/**/*.py"), *ROOT.glob("plugins/*/src/**/*.py")]
        for words in re.findall(r"`(holdfast [a-z][a-z -]*[a-z])", path.read_text("utf-8"))
        for parts in [[word for word in words.split() if not word.startswith("-")]]
        if " ".join(parts[:3]) not in known and " ".join(parts[:2]) not in known | groups
    ]
    assert wrong == []


def test_every_command_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert [path for path in commands() if f"## `{path}`" not in text] == []
