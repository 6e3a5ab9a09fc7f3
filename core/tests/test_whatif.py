"""`holdfast whatif` plays a layout through losses, and refuses layouts that make no sense."""

import json
import tomllib
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from holdfast.cli.app import run
from holdfast.errors import HoldfastError
from holdfast.testing.whatif.layout import Layout, parse

THREE = """
[nodes]
a = { zone = "east" }
b = { zone = "east" }
c = { zone = "west" }
[volumes.db]
size = "1GiB"
"""


def laid_out(text: str) -> Layout:
    return parse(tomllib.loads(text), lambda key: f"x.toml: {key}", policy="hard", replicas=1)


def told(capsys: pytest.CaptureFixture[str], path: Path, *words: str) -> list[dict[str, Any]]:
    code = run(["whatif", "--topology", str(path), "--sync-rate", "100MiB", "--json", *words])
    said = capsys.readouterr()
    assert code == 0, said.err
    losses = json.loads(said.out)["losses"]
    assert isinstance(losses, list)
    return losses


@pytest.fixture
def three(tmp_path: Path) -> Path:
    path = tmp_path / "three.toml"
    path.write_text(THREE + 'nodes = ["a", "b"]\nreplicas = 1\n', encoding="utf-8")
    return path


def test_the_loss_of_each_node_is_told(capsys: pytest.CaptureFixture[str], three: Path) -> None:
    primary, replica, other = told(capsys, three, "--faults", "node", "--down", "20")
    assert [each["lost"] for each in (primary, replica, other)] == [["a"], ["b"], ["c"]]
    assert 1.0 < primary["unavailable_s"] < 6.0, "a failover"
    assert 0.5 < replica["unavailable_s"] < 4.0, "until the lost copy is dropped"
    assert other["unavailable_s"] == other["exposed_s"] == other["copies_lost"] == 0
    assert 10.0 <= replica["exposed_s"] < 20.0, "a copy of 1 GiB at 100 MiB/s"
    assert {each["loses"] for each in (primary, replica, other)} == {"nothing"}
    assert all(each["whole_after_s"] is not None for each in (primary, replica, other))


def test_a_zone_with_all_copies_takes_the_volume_with_it(
    capsys: pytest.CaptureFixture[str], three: Path
) -> None:
    east, west = told(capsys, three, "--faults", "zone", "--for-good")
    assert (east["lost"], east["loses"], east["whole_after_s"]) == (["a", "b"], "everything", None)
    assert (west["lost"], west["loses"]) == (["c"], "nothing")
    back = told(capsys, three, "--faults", "zone", "--down", "15")[0]
    assert back["loses"] == "unflushed writes"
    assert back["unavailable_s"] > 14.0


def test_copies_are_spread_over_zones_and_the_policy_withdraws_writing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "two.toml"
    path.write_text(THREE.replace('c = { zone = "west" }\n', ""), encoding="utf-8")
    words = ("--policy", "hard", "--set", "grace_s=5", "--down", "25", "--faults", "node")
    one, _ = told(capsys, path, "--replicas", "1", *words)
    assert one["read_only_s"] > 10.0, one
    path.write_text(THREE, encoding="utf-8")
    layout = laid_out(THREE)
    assert {layout.zones[node] for node in layout.volumes[0].nodes} == {"east", "west"}


def test_the_table_and_the_timeline_are_for_people(
    capsys: pytest.CaptureFixture[str], three: Path, tmp_path: Path
) -> None:
    svg = tmp_path / "out.svg"
    words = ["whatif", "-t", str(three), "--faults", "zone", "--down", "15", "--svg", str(svg)]
    assert run(words) == 0
    said = capsys.readouterr().out
    assert "LAST COPY" in said
    assert "zone" in said
    assert "0/2" in said
    assert "worst" in said
    assert "unflushed" in said
    assert str(svg) in said
    root = ET.fromstring(svg.read_text(encoding="utf-8"))  # noqa: S314 (made by us)
    titles = [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}title")]
    assert any(title.startswith("unavailable, 0 copies") for title in titles)


def test_a_node_that_names_no_zone_is_one_of_its_own() -> None:
    layout = laid_out(THREE.replace('{ zone = "west" }', "{}"))
    assert layout.losses("zone") == [("a", "b"), ("c",)]
    assert [layout.called(lost) for lost in layout.losses("zone")] == ["zone east", "c"]
    assert layout.called(("a", "c")) == "a + c"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "nodes"),
        ("[nodes]\na = 1\n", "nodes.a"),
        ('[nodes]\na = { zone = "x", rack = 1 }\n', "nodes.a"),
        ('[nodes]\na = "x"\n', "volumes"),
        ("[cluster]\n", "cluster"),
        (THREE + "colour = 3\n", "volumes.db.colour"),
        (THREE + "replicas = 9\n", "volumes.db.replicas"),
        (THREE + "replicas = true\n", "volumes.db.replicas"),
        (THREE.replace("1GiB", "big"), "volumes.db.size"),
        (THREE + 'nodes = ["a", "z"]\n', "volumes.db.nodes"),
        (THREE + 'nodes = ["a", "a"]\n', "volumes.db.nodes"),
        (THREE + "replicas = 3\n", "needs 4 nodes"),
        (THREE + "policy = 4\n", "volumes.db.policy is 4"),
        (THREE + "set = 4\n", "volumes.db.set is 4"),
        (THREE + "replica = 1\n", "volumes.db.replica is not known. Did you mean 'replicas'"),
    ],
)
def test_a_layout_that_makes_no_sense_is_refused(text: str, says: str) -> None:
    with pytest.raises(HoldfastError, match=says):
        laid_out(text)


@pytest.mark.parametrize(
    ("line", "where", "says"),
    [
        (
            "set = { grac_s = 3 }",
            ":8: volumes.db.",
            "set.grac_s is not a known option.\n  Did you mean 'grace_s'?",
        ),
        ('set = { grace_s = "x" }', ":8: volumes.db.", "set.grace_s is 'x'; it must be a number."),
        ("set = { grace_s = -1 }", ":8: volumes.db.", "set.grace_s is -1; it must be"),
        (
            'policy = "sofd"',
            ":8: volumes.db.",
            "policy: There is no policy driver 'sofd'.\n  Did you mean 'soft'?",
        ),
        ("replicas = 9", ":8: volumes.db.", "replicas is 9; it must be 0 to 5."),
        ('policy = "threshold"\nset = { threshold = 4 }', ":6: volumes.db: ", "threshold"),
        ("[broken", " is", "not valid TOML"),
    ],
)
def test_a_wrong_value_in_the_file_is_named_with_file_line_and_path(
    line: str, where: str, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(f"{THREE}{line}\n", encoding="utf-8")
    assert run(["whatif", "--topology", str(path)]) == 3
    said = capsys.readouterr().err
    assert f"{path}{where}" in said
    assert says in said


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--faults", "flood"], 2, "no kind"),
        (["--down", "0"], 2, "--down"),
        (["--sync-rate", "slow"], 2, "--sync-rate"),
        (["--sync-rate", "1KiB"], 2, "--sync-rate"),
        (["--policy", "wishful"], 4, "wishful"),
        (["--policy", "soft", "--set", "patience=3"], 2, "--set of policy soft: patience"),
        (["--policy", "threshold", "--set", "threshold=4"], 2, "threshold"),
        (["--svg", "/nowhere/x.svg", "--faults", "zone", "--down", "5"], 5, "/nowhere"),
        (["--svg", "/dev/full", "--faults", "zone", "--down", "5"], 7, "space left"),
        (["--topology", "/nowhere.toml"], 5, "nowhere.toml"),
        (["--topology", "/"], 2, "/ cannot be used: Is a directory."),
    ],
)
def test_options_that_make_no_sense_are_refused(
    words: list[str], code: int, says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "three.toml"
    path.write_text(THREE, encoding="utf-8")
    assert run(["whatif", "--topology", str(path), *words]) == code
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
