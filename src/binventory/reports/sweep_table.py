"""A sweep on the terminal: a live table while it runs (plain lines where stdout is no terminal), and one at the end."""

from __future__ import annotations

import json
import re
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from binventory.config.capture import redact_text
from binventory.data.text import printable
from binventory.files import read_limited
from binventory.tracking.epochs import read_epochs
from binventory.tracking.sweep_record import SweepJob, SweepRecord

REFRESH_S = 1.0
LONG_NUMBER = re.compile(r"(?<=[=,\[(])-?\d+\.\d{5,}(?:e-?\d+)?(?![\w.])")  # as drawn from an interval
MAX_LIVE_ROWS, MAX_NOTES = 24, 8
STYLES = {"done": "green", "failed": "red", "running": "cyan", "preempted": "yellow", "pruned": "magenta"}


class SweepDisplay:
    """Says how a sweep goes.

    Args:
        record: the sweep's; its jobs are looked at whenever there is news.
    """

    def __init__(self, record: SweepRecord) -> None:
        self.record = record
        self._console = Console()
        self._live: Live | None = None
        self._refreshed = 0.0
        self._started = time.monotonic()
        self._ended_here = 0
        self._max_epochs: dict[Path, int | None] = {}

    def __enter__(self) -> SweepDisplay:
        self._started = time.monotonic()
        if sys.stdout.isatty():
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def say(self, line: str) -> None:
        """Print a line, above the live table where there is one."""
        self._console.print(Text(line), soft_wrap=True)

    def job_started(self, job: SweepJob) -> None:
        """Tell that a job runs now."""
        if self._live is None:
            self.say(f"job {job.number} started: {self._said(job)}")
        self.refresh(force=True)

    def job_ended(self, job: SweepJob) -> None:
        """Tell what came of a job, and why where it failed."""
        self._ended_here += 1
        parts = [f"job {job.number} {job.state}"]
        if job.value is not None:
            parts.append(f"{self.record.objective or 'value'} {job.value:.4f}")
        if job.error is not None:
            parts.append(job.error)
        if self._live is None or job.state == "failed":
            self.say(f"{': '.join(parts)} ({self._where_it_is()})")
        self.refresh(force=True)

    def refresh(self, *, force: bool = False) -> None:
        """Draw the live table again, at most once a second unless there is news."""
        if self._live is None or not (force or time.monotonic() - self._refreshed > REFRESH_S):
            return
        self._refreshed = time.monotonic()
        jobs = self.record.jobs
        if len(jobs) > MAX_LIVE_ROWS:  # what happens, then what ended last, then what comes next
            rank = {"running": 0, "failed": 1}
            jobs = sorted(jobs, key=lambda job: (rank.get(job.state, 2 if job.ended else 3), -job.number))
            jobs = sorted(jobs[:MAX_LIVE_ROWS], key=lambda job: job.number)
        table = self._table(jobs, is_live=True)
        table.caption = self._where_it_is()
        self._live.update(Group(table, *_notes(jobs)), refresh=True)

    def print_table(self) -> None:
        """Print all jobs, and where what they left lies."""
        self._console.print(self._table(self.record.jobs, is_live=False))
        for job in self.record.jobs:
            if job.state == "failed":
                self.say(f"job {job.number}: {job.error or 'failed'}; see {self._log(job)}")
        # Not through the console: it would break a long path over lines.
        print(f"sweep folder: {self.record.folder}", flush=True)

    def _table(self, jobs: list[SweepJob], *, is_live: bool) -> Table:
        table = Table(title=f"Sweep, {len(self.record.jobs)} jobs", title_justify="left", caption_justify="left")
        for name in ("job", "overrides", "state"):
            table.add_column(name, overflow="fold")
        table.add_column(self.record.objective or "value", justify="right")
        table.add_column("epoch", justify="right")
        table.add_column("time", justify="right")
        if is_live:
            table.add_column("left", justify="right")
        for job in jobs:
            state = Text(job.state, STYLES.get(job.state, ""))
            cells = self._cells(job)
            table.add_row(str(job.number), Text(self._said(job)), state, *(cells if is_live else cells[:-1]))
        return table

    def _cells(self, job: SweepJob) -> tuple[str, str, str, str]:
        """Return the metric, the epoch, the time it took so far, and what is left of it."""
        rows = read_epochs(job.run_dir) if job.run_dir is not None and job.state != "queued" else []
        last = rows[-1].get(self.record.objective or "", "") if rows else ""
        value = f"{job.value:.4f}" if job.value is not None else f"{float(last):.4f}" if last else "-"
        max_epochs = self._epochs_asked(job.run_dir) if job.run_dir is not None else None
        epoch = f"{rows[-1]['epoch']}/{max_epochs or '?'}" if rows else "-"
        left = "-"
        if job.state == "running" and rows and max_epochs:
            seconds = sum(float(row["seconds"]) for row in rows) / len(rows)
            left = _duration(seconds * (max_epochs - int(rows[-1]["epoch"])))
        return value, epoch, _duration(_seconds(job)), left

    def _said(self, job: SweepJob) -> str:
        """Return what sets this job apart; all of it where the sweep has one job."""
        common = set.intersection(*(set(other.overrides) for other in self.record.jobs))
        apart = [text for text in job.overrides if text not in common]
        text = " ".join(map(redact_text, apart or job.overrides))
        return LONG_NUMBER.sub(lambda found: f"{float(found[0]):.4g}", text)

    def _epochs_asked(self, run_dir: Path) -> int | None:
        if run_dir not in self._max_epochs:
            try:
                config = json.loads(read_limited(run_dir / "job.json"))["config"]
                self._max_epochs[run_dir] = config["trainer"]["max_epochs"]
            except (OSError, ValueError, KeyError):
                return None
        return self._max_epochs[run_dir]

    def _where_it_is(self) -> str:
        jobs = self.record.jobs
        left = sum(job.state in ("queued", "running") for job in jobs)
        failed = sum(job.state == "failed" for job in jobs)
        said = f"{len(jobs) - left} of {len(jobs)} ended" + (f", {failed} failed" if failed else "")
        if self._ended_here and left:
            said += f", about {_duration((time.monotonic() - self._started) / self._ended_here * left)} left"
        return said

    def _log(self, job: SweepJob) -> str:
        if job.run_dir is None:
            return str(self.record.folder)
        log = job.run_dir / "output.log"
        return str(log if log.exists() else job.run_dir)


def _notes(jobs: list[SweepJob]) -> list[Text]:
    """A line for what each job's launcher says of it, such as the last one of its log; terminal codes are escaped."""
    said = [(job.number, str(getattr(job.handle, "note", ""))) for job in jobs if job.state == "running"]
    lines = [f"job {number}: {printable(note, 300)}" for number, note in said if note]
    return [Text(line, "dim", no_wrap=True, overflow="ellipsis") for line in lines[:MAX_NOTES]]


def _seconds(job: SweepJob) -> float | None:
    if job.started is None:
        return None
    started = datetime.fromisoformat(job.started)
    ended = datetime.fromisoformat(job.ended) if job.ended else datetime.now(started.tzinfo)
    return (ended - started).total_seconds()


def _duration(seconds: float | None) -> str:
    return "-" if seconds is None else str(timedelta(seconds=round(seconds)))
