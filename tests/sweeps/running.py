"""Start sweeps as a user does, in this process: their jobs are forked from one server that all tests share."""

from __future__ import annotations

import csv
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from binventory.launch.entry import main
from tests.running import TINY

UNRULY = "objective._target_=tests.sweeps.unruly.Unruly"
SMALL = [*TINY, "trainer.max_epochs=1", UNRULY]


@dataclass
class Outcome:
    """What a sweep came to."""

    exit_code: int
    folder: Path

    @property
    def record(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads((self.folder / "sweep.json").read_text())
        return read

    @property
    def jobs(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.record["jobs"]
        return found

    @property
    def states(self) -> list[str]:
        return [job["state"] for job in self.jobs]

    @property
    def rows(self) -> list[dict[str, str]]:
        with (self.folder / "results.csv").open(newline="") as file:
            return list(csv.DictReader(file))

    def status(self, job: int) -> dict[str, Any]:
        read: dict[str, Any] = json.loads((self.folder / str(job) / "status.json").read_text())
        return read

    def metrics(self, job: int) -> dict[str, Any]:
        read = json.loads((self.folder / str(job) / "metrics.json").read_text())
        return {split: read[split] for split in ("val", "test")}


def sweep_here(folder: Path, *overrides: str) -> Outcome:
    """Run `train.py -m …` (or `resume_sweep=DIR`) in `folder`, in this process."""
    before, known = Path.cwd(), set(folder.glob("outputs/sweeps/*"))
    os.chdir(folder)
    code = 0
    try:
        main("train", list(overrides))
    except SystemExit as left:
        code = int(left.code or 0)
    finally:
        os.chdir(before)
    made = set(folder.glob("outputs/sweeps/*")) - known
    named = [Path(text.split("=", 1)[1]) for text in overrides if text.startswith("resume_sweep=")]
    assert len(made) + len(named) == 1, (made, named)
    return Outcome(code, (list(made) or named)[0])


def meanwhile(condition: Callable[[], bool], action: Callable[[], None]) -> threading.Thread:
    """Do something as soon as a condition holds, while this thread is busy."""

    def watch() -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            if condition():
                action()
                return
            time.sleep(0.02)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def signal_self(signum: signal.Signals) -> Callable[[], None]:
    """Return what sends a signal to this process."""
    return lambda: os.kill(os.getpid(), signum)


def fails_in_one_line(capsys: pytest.CaptureFixture[str], folder: Path, *overrides: str) -> str:
    """Run what must be refused; return the line that says why."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        with pytest.raises(SystemExit) as left:
            main("train", list(overrides))
    finally:
        os.chdir(before)
    lines = capsys.readouterr().err.strip().splitlines()
    assert left.value.code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]
