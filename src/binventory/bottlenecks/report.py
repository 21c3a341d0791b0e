"""The report: `bottlenecks.json` in the run folder and a few lines on the terminal."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from binventory.bottlenecks.finding import Finding
from binventory.bottlenecks.rules import RULES
from binventory.bottlenecks.samples import Observations, Setup

REPORT = "bottlenecks.json"
MAX_ROWS = 7  # with the header and the last line: nine lines
MIN_WIDTH = 120  # an override is copied: it is not broken over lines


def judge(seen: Observations, setup: Setup) -> list[Finding]:
    """Return what each rule says, in their order."""
    return [rule(seen, setup) for rule in RULES]


def make_report(
    seen: Observations,
    setup: Setup,
    findings: Sequence[Finding],
    *,
    attempt: int | None,
    training: Literal["done", "failed", "preempted", "pruned", "queued", "running"],
    sample_every_s: float,
) -> dict[str, Any]:
    """Return the plain values of `bottlenecks.json`; docs/performance.md says what each means.

    Args:
        seen: what was measured.
        setup: what the run is.
        findings: of `judge`.
        attempt: which attempt at the run this was, from 1; None where that is not known.
        training: how it ended.
        sample_every_s: seconds between two samples.
    """
    ranks = [
        {"rank": rank, "device": load.device, "mean_percent": load.mean_percent, "num_samples": load.num_samples}
        for rank, load in enumerate(seen.loads)
    ]
    report: dict[str, Any] = {
        "attempt": attempt,
        "training": training,
        "sample_every_s": sample_every_s,
        "setup": asdict(setup),
        "overview": _overview(seen),
        "ranks": ranks,
        "findings": [
            {name: value for name, value in asdict(finding).items() if name != "short"} for finding in findings
        ],
    }
    rounded: dict[str, Any] = _rounded(report)
    return rounded


def print_findings(findings: Sequence[Finding]) -> None:
    """Print one line for each rule that triggered, with the override to try, and one for the others; nine at most."""
    triggered = [finding for finding in findings if finding.verdict == "triggered"]
    num_ok = sum(finding.verdict == "ok" for finding in findings)
    others = f"{num_ok} ok, {len(findings) - len(triggered) - num_ok} not evaluable: see {REPORT}"
    console = Console()
    console.width = max(MIN_WIDTH, console.width)
    if not triggered:
        console.print(f"bottlenecks: no rule triggered, {others}", highlight=False)
        return
    table = Table(box=None, pad_edge=False)
    for name in ("bottleneck", "found", "try"):
        table.add_column(name, no_wrap=True)
    for finding in triggered[:MAX_ROWS]:
        table.add_row(finding.rule, finding.short, finding.override)
    console.print(table)
    more = f"{len(triggered) - MAX_ROWS} more triggered, " if len(triggered) > MAX_ROWS else ""
    console.print(f"other rules: {more}{others}", highlight=False)


def _overview(seen: Observations) -> dict[str, float | None]:
    """Return the whole attempt in a few figures, its start included; None for what nothing told."""
    samples = seen.samples
    columns = zip(*samples, strict=True) if samples else [()] * 7
    times, cpu, process, io_wait, memory, gpu, gpu_memory = (
        [value for value in column if value is not None] for column in columns
    )
    waits = [step.data_wait_s for step in seen.steps if step.data_wait_s is not None]

    def of(function: Any, values: Sequence[float]) -> float | None:
        return float(function(values)) if values else None

    return {
        "sampled_s": of(max, times),
        "num_samples": len(samples),
        "num_steps": len(seen.steps),
        "initialization_s": seen.initialization_s,
        "step_median_s": of(statistics.median, seen.durations_s),
        "step_p95_s": of(lambda values: np.percentile(values, 95), seen.durations_s),
        "data_wait_median_s": of(statistics.median, waits),
        "data_wait_percent": seen.data_wait_percent,
        "cpu_mean_percent": of(statistics.fmean, cpu),
        "process_cpu_mean_percent": of(statistics.fmean, process),
        "io_wait_mean_percent": of(statistics.fmean, io_wait),
        "memory_max_bytes": max(memory, default=None),
        "gpu_mean_percent": of(statistics.fmean, gpu),
        "gpu_memory_max_percent": of(max, gpu_memory),
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(child) for name, child in value.items()}
    if isinstance(value, list):
        return [_rounded(child) for child in value]
    return round(value, 6) if isinstance(value, float) else value
