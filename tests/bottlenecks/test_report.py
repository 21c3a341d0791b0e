"""The report's plain values, and what is printed: nine lines at most, an override never broken."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from binventory.bottlenecks.finding import Finding, not_evaluable
from binventory.bottlenecks.report import judge, make_report, print_findings
from binventory.bottlenecks.samples import Observations, Sample, Step
from tests.bottlenecks.hand_made import SETUP, ranks, sample

SAMPLES = [sample(cpu=20, gpu=None, memory=None), sample(cpu=40, gpu=50, memory=60, io_wait=None)]


def triggered(number: int) -> list[Finding]:
    return [
        Finding(f"Rule{one}", "triggered", {}, "It did.", "so much of it", f"data.batch_size={one}")
        for one in range(number)
    ]


def test_plain_values() -> None:
    steps = [Step(0.3, 0.1), Step(0.3, None), Step(0.5, 0.3)]
    seen = Observations(SAMPLES, steps, [0.4, 0.8], 12.3456789, ranks({9: 1.0}, {2: 1.0}).loads)
    setup = replace(SETUP, num_ranks=2, local_ranks=2)
    report = make_report(seen, setup, judge(seen, setup), attempt=2, training="preempted", sample_every_s=0.5)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert list(report) == ["attempt", "training", "sample_every_s", "setup", "overview", "ranks", "findings"]
    assert (report["attempt"], report["training"], report["setup"]["num_ranks"]) == (2, "preempted", 2)
    overview = report["overview"]
    assert overview["data_wait_percent"] == pytest.approx(100 * 0.4 / 1.2, abs=1e-5), "of the steps whose wait is known"
    assert (overview["num_samples"], overview["num_steps"], overview["initialization_s"]) == (2, 3, 12.345679)
    assert (overview["step_median_s"], overview["data_wait_median_s"]) == (0.6, 0.2)
    assert (overview["cpu_mean_percent"], overview["io_wait_mean_percent"], overview["gpu_mean_percent"]) == (30, 1, 50)
    assert [rank["mean_percent"] for rank in report["ranks"]] == [90, 20]
    assert len(report["findings"]) == 9
    for finding in report["findings"]:
        assert list(finding) == ["rule", "verdict", "figures", "meaning", "override"]


def test_of_nothing_nothing_is_claimed() -> None:
    report = make_report(
        Observations(), SETUP, judge(Observations(), SETUP), attempt=None, training="done", sample_every_s=1
    )
    assert {finding["verdict"] for finding in report["findings"]} == {"not evaluable"}
    assert {value for name, value in report["overview"].items() if not name.startswith("num_")} == {None}


@pytest.mark.parametrize(("number", "num_lines"), [(1, 3), (7, 9), (8, 9), (9, 9)])
def test_one_line_for_each_that_triggered_and_nine_at_most(
    number: int, num_lines: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    findings = triggered(number) + [not_evaluable(f"Silent{one}", "No data.") for one in range(9 - number)]
    print_findings(findings)
    lines = capsys.readouterr().out.rstrip("\n").split("\n")
    assert len(lines) == num_lines
    for one, line in enumerate(lines[1:-1]):
        assert line.split() == [f"Rule{one}", "so", "much", "of", "it", f"data.batch_size={one}"]
    assert "Silent" not in "".join(lines)
    assert f"0 ok, {9 - number} not evaluable" in lines[-1]
    assert ("more triggered" in lines[-1]) == (number > 7)


def test_the_longest_row_fits(capsys: pytest.CaptureFixture[str]) -> None:
    short, override = (
        "p95: CPU 69 %, GPU 69 %, its memory 69 %",
        "data.batch_size=1024 trainer.accumulate_grad_batches=16",
    )
    print_findings([Finding("MaxInitializationTime", "triggered", {}, "It did.", short, override)])
    line = capsys.readouterr().out.split("\n")[1]
    assert short in line
    assert override in line


def test_where_nothing_triggered_it_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_findings([Finding("Rule", "ok", {}, "Fine."), not_evaluable("Other", "No data.")])
    assert capsys.readouterr().out == ("bottlenecks: no rule triggered, 1 ok, 1 not evaluable: see bottlenecks.json\n")


def test_samples_have_the_columns_that_the_overview_reads() -> None:
    assert Sample._fields == (
        "time_s", "cpu_percent", "process_cpu_percent", "io_wait_percent", "memory_bytes", "gpu_percent", "gpu_memory_percent",
    )  # fmt: skip
