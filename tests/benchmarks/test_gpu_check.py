"""The script for a machine with a GPU, as far as a CPU goes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.running import ROOT

STEPS = {
    "paths": ["machine", "bf16", "fp16", "compile", "ddp", "residence", "nvml", "ema", "resume", "predict"],
    "speed": ["resnet50", "free_loader", "forty_epochs", "resnet18", "resnet101"],
}
NEED_A_GPU = ["fp16", "nvml"]


def gpu_check(half: str, folder: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    """Run a half; return its exit code, its report and what it printed."""
    words = [half, "--tiny", "--device", "cpu", "--out", str(folder / "out"), "--work", str(folder / "work"), *options]
    done = subprocess.run(
        ["bash", str(ROOT / "benchmarks" / "gpu_check.sh"), *words],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    report = folder / "out" / "gpu_check.json"
    return done.returncode, json.loads(report.read_text()) if report.exists() else {}, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.parametrize("half", STEPS)
def test_every_step_passes_and_none_is_run_twice(half: str, tmp_path: Path) -> None:
    code, report, printed = gpu_check(half, tmp_path)
    assert code == 0, printed
    states = {step: "not applicable" if step in NEED_A_GPU else "passed" for step in STEPS[half]}
    assert {step: entry["state"] for step, entry in report.items()} == states
    rows = {path.name: path.read_text() for path in (tmp_path / "out").glob("*.csv")}
    assert set(rows) == ({"gpu_check.csv", "training.csv"} if half == "speed" else set())
    again = gpu_check(half, tmp_path)
    assert again[:2] == (0, report)
    assert {path.name: path.read_text() for path in (tmp_path / "out").glob("*.csv")} == rows


@pytest.mark.long
def test_a_failed_step_and_one_that_is_not_reached_are_named(tmp_path: Path) -> None:
    code, report, printed = gpu_check("real", tmp_path, "--photos", str(tmp_path / "none.tar.gz"))
    assert (code, report["train_real"]["state"]) == (1, "failed")
    assert "none.tar.gz: no archive" in report["train_real"]["reason"]
    code, report, printed = gpu_check("speed", tmp_path, "--minutes", "0")
    assert (code, "resnet50 not reached" in printed) == (1, True)
