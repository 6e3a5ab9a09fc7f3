"""What the benchmark program says of its figures: the verdict on goals, and a chart that can be drawn."""

from xml.etree import ElementTree as ET

from benchmarks.chart import SVG, chart
from benchmarks.jobs import Figures
from benchmarks.report import OURS, Report


def figures(iops: float) -> Figures:
    return Figures(iops, iops / 100, 100.0, 200.0, 300.0, 400.0, 30.0, 10.0, 50.0, 1.0)


def report(rates: dict[str, float], job: str = "randwrite-d16") -> Report:
    made = Report({"machine": "a test"})
    for peer, rate in rates.items():
        made.add(peer, job, figures(rate))
    return made


def test_a_goal_is_held_against_the_better_of_several_peers() -> None:
    text = report({"quorum": 100.0, "mirror": 200.0, OURS: 1000.0}).text()
    assert "| randwrite-d16 | quorum or mirror | 5 | 5.00 | reached |" in text
    text = report({"quorum": 100.0, "mirror": 201.0, OURS: 1000.0}).text()
    assert "| randwrite-d16 | quorum or mirror | 5 | 4.98 | MISSED |" in text


def test_latency_and_processor_time_have_limits() -> None:
    text = report({OURS: 1000.0}).text()
    assert "| randwrite-d16 | us of processor time, at most | 75 | 40.00 | reached |" in text
    text = report({"nbdkit": 100.0, OURS: 50.0}, "randwrite-d1").text()
    assert "| randwrite-d1 | p50 of nbdkit, at most | 2.4 | 1.00 | reached |" in text


def test_nothing_is_said_of_goals_whose_peer_was_not_measured() -> None:
    assert "Goals" not in report({OURS: 1000.0}, "randread-d32").text()


def test_the_median_of_the_rounds_counts() -> None:
    made = report({"nbdkit": 100.0})
    for rate in (50.0, 70.0, 1.0):
        made.add(OURS, "randwrite-d16", figures(rate))
    assert made.main(OURS, "randwrite-d16") == 50.0


def test_the_chart_has_a_bar_for_each_peer_and_job() -> None:
    made = report({"nbdkit": 100.0, OURS: 50.0})
    made.add(OURS, "write-1m-d4", figures(7.0))
    drawing = ET.fromstring(chart(made))  # noqa: S314 - our own.
    bars = drawing.findall(f"{{{SVG}}}rect")[1:]
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert len(widths) == 3
    assert widths[1] == widths[0] / 2
