"""The record of a sweep: sweep.json and results.csv, rewritten after every job, and how a sweep is gone on with."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from binventory.config.capture import one_line, redact, redact_text
from binventory.config.older import upgrade_overrides
from binventory.config.quoting import quote_value
from binventory.config.secrets import REDACTED
from binventory.config.targets import check_overrides
from binventory.errors import ConfigError, InputError
from binventory.files import is_below, read_limited, write_json, write_text
from binventory.tracking.provenance import is_signed, sign
from binventory.tracking.resume import override_key
from binventory.tracking.run_folder import RunFolder, State

RECORD_VERSION = 2
SWEEP_FILE, RESULTS_FILE = "sweep.json", "results.csv"

JOB_KINDS: dict[str, Any] = {
    "job": int, "overrides": list, "state": str, "run_dir": str | None, "exit_code": int | None, "error": str | None,
    "value": int | float | None, "metrics": dict, "started": str | None, "ended": str | None,
}  # fmt: skip

# What a sweep's own command may set in Hydra's node when it is read back from its folder.
HYDRA_KEYS = (
    "hydra/launcher", "hydra/sweeper", "hydra.launcher.n_jobs", "hydra.launcher.threads_per_job",
    "hydra.launcher.on_failure", "hydra.sweeper.",
    # Of the SageMaker launcher: not where jobs are sent, as whom, with what in them. That is the user's own to say.
    *(f"hydra.launcher.{name}" for name in (
        "region", "instance_type", "instance_count", "volume_size_gb", "max_runtime_s", "use_spot", "max_wait_s",
        "input_mode", "extras", "max_source_mb", "max_parallel", "wait", "on_interrupt", "poll_s",
    )),
)  # fmt: skip


@dataclass(eq=False)
class SweepJob:
    """One job of a sweep.

    Attributes:
        number: its place, from 0.
        overrides: what is its own on the command line.
        state: as in status.json; queued: not started yet, or stopped before it was.
        run_dir: its run folder; None before it is known.
        exit_code: of the job; negative: the signal that killed its process.
        error: what went wrong, in one line.
        value: the objective metric of a job that is done.
        metrics: final figures by logged name, e.g. `test/accuracy`.
        started, ended: ISO 8601, UTC.
        handle: the launcher's own.
        job_return: Hydra's JobReturn once the job ended.
    """

    number: int
    overrides: tuple[str, ...]
    state: State = "queued"
    run_dir: Path | None = None
    exit_code: int | None = None
    error: str | None = None
    value: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    started: str | None = None
    ended: str | None = None
    handle: Any = field(default=None, repr=False)
    job_return: Any = field(default=None, repr=False)

    @property
    def is_finished(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.state in ("done", "pruned")

    def look_up(self) -> None:
        """Take over what the run folder says of the job: state, error and figures. Nothing where it says nothing."""
        if self.run_dir is None:
            return
        try:
            status = RunFolder(self.run_dir).read_status()
        except InputError as damaged:
            self.state, self.error = "failed", str(damaged)
            return
        if "state" not in status:
            return
        self.state, self.exit_code = status["state"], status.get("exit_code")
        error = status.get("error")
        self.error = None
        if error and self.state == "failed":
            self.error = one_line(f"{error['type']}: {error['message']}")
        if self.is_finished:
            self.metrics = read_metrics(self.run_dir)


class SweepRecord:
    """sweep.json and results.csv of a sweep's folder.

    Args:
        folder: of the sweep.
        task: train, predict, …
        overrides: the sweep's own command line, Hydra's part first.
        objective: the metric that jobs are compared by.
    """

    def __init__(self, folder: Path, task: str, overrides: Sequence[str], objective: str | None) -> None:
        self.folder = folder
        self.task = task
        self.overrides = list(overrides)
        self.objective = objective
        self.started = now()
        self.jobs: list[SweepJob] = []

    def read_jobs(self) -> None:
        """Take up the jobs of an earlier attempt, in the states that their run folders are in now.

        Raises:
            InputError: sweep.json is missing or damaged.
        """
        saved = read_sweep(self.folder)
        self.started = saved["started"]
        self.jobs = [self._read_job(values) for values in saved["jobs"]]

    def _read_job(self, values: dict[str, Any]) -> SweepJob:
        place = values["run_dir"]
        if place is None and (self.folder / str(values["job"]) / "status.json").exists():
            place = str(values["job"])  # killed before this could be written
        run_dir = None if place is None else self.folder / place
        job = SweepJob(values["job"], tuple(values["overrides"]), values["state"], run_dir)
        for name in ("exit_code", "error", "value", "metrics", "started", "ended"):
            setattr(job, name, values[name])
        if not job.is_finished and run_dir is not None and not is_below(run_dir, self.folder):
            job.run_dir = None  # resume=auto finds it by its config again
        if not job.is_finished:
            job.look_up()
            job.value = job.metrics.get(self.objective or "") if job.state == "done" else None
        return job

    def write(self, state: str, exit_code: int | None = None) -> None:
        """Write both files."""
        jobs = [self._plain(job) for job in self.jobs]
        write_json(
            self.folder / SWEEP_FILE,
            {
                "version": RECORD_VERSION,
                "task": self.task,
                "state": state,
                "exit_code": exit_code,
                "started": self.started,
                "ended": None if state == "running" else now(),
                "objective_metric": self.objective,
                "overrides": redact(self.overrides),
                "jobs": jobs,
                "signature": sign([*redact(self.overrides), *(text for job in jobs for text in job["overrides"])]),
            },
        )
        write_text(self.folder / RESULTS_FILE, _csv(self._row(job) for job in self.jobs))

    def _plain(self, job: SweepJob) -> dict[str, Any]:
        return {
            "job": job.number,
            "overrides": redact(list(job.overrides)),
            "state": job.state,
            "run_dir": self.place(job),
            "exit_code": job.exit_code,
            "error": job.error,
            "value": finite(job.value),
            "metrics": job.metrics,
            "started": job.started,
            "ended": job.ended,
        }

    def _row(self, job: SweepJob) -> dict[str, Any]:
        return {
            "job": job.number,
            "overrides": " ".join(map(redact_text, job.overrides)),
            "state": job.state,
            "exit_code": job.exit_code,
            "value": finite(job.value),
            **job.metrics,
            "run_dir": self.place(job),
            "error": job.error,
        }

    def place(self, job: SweepJob) -> str | None:
        """Return the job's run folder, relative where it lies in the sweep's: the folder can be moved."""
        if job.run_dir is None:
            return None
        is_inside = job.run_dir.is_relative_to(self.folder)
        return os.fspath(job.run_dir.relative_to(self.folder) if is_inside else job.run_dir)


def read_sweep(folder: Path) -> dict[str, Any]:
    """Read sweep.json.

    Raises:
        InputError: missing, damaged, or of another version.
    """
    path = folder / SWEEP_FILE
    try:
        saved = json.loads(read_limited(path))
    except FileNotFoundError:
        raise InputError(f"resume_sweep={folder}: no sweep ({SWEEP_FILE} is not there); name its folder") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    kinds = {"task": str, "overrides": list, "jobs": list, "started": str}
    if not isinstance(saved, dict) or saved.get("version") not in (1, RECORD_VERSION):
        raise InputError(f"{path}: not a sweep of version {RECORD_VERSION}; run the sweep again")
    if wrong := [name for name, kind in kinds.items() if not isinstance(saved.get(name), kind)]:
        raise InputError(f"{path}: not a sweep (see {wrong[0]!r}); run the sweep again")
    for job in saved["jobs"]:
        if not isinstance(job, dict) or job.keys() != JOB_KINDS.keys():
            raise InputError(f"{path}: not a sweep (see 'jobs'); run the sweep again")
        if wrong := [name for name, kind in JOB_KINDS.items() if not isinstance(job[name], kind)]:
            raise InputError(f"{path}: not a sweep (see {wrong[0]!r} of 'jobs'); run the sweep again")
        _check_run_dir(path, job, saved["overrides"])
    if saved["version"] == 1:
        for node in (saved, *saved["jobs"]):
            if isinstance(node["overrides"], list):
                node["overrides"] = upgrade_overrides(node["overrides"])
    return saved


def _check_run_dir(path: Path, job: dict[str, Any], overrides: list[Any]) -> None:
    """Refuse a job that names a folder elsewhere, unless its sweep looked for its run there: it would be written to."""
    if isinstance(job["job"], bool) or job["job"] < 0:  # it names a folder too
        raise InputError(f"{path}: job={job['job']!r}: not the number of a job; run the sweep again")
    place = job["run_dir"]
    if place is not None and "resume=auto" not in overrides and not is_below(path.parent / place, path.parent):
        raise InputError(
            f"{path}: run_dir={place!r} of job {job['job']}: not a folder in that of the sweep; run the sweep again"
        )


def overrides_to_resume_sweep(folder: Path, task: str, added: Sequence[str]) -> list[str]:
    """Return the command of a sweep again, set to its folder, with what is added to it.

    Raises:
        InputError: no sweep of this task.
        ConfigError: something is added that would change what its jobs are, or a secret is missing.
    """
    folder = folder.absolute()
    saved = read_sweep(folder)
    if saved["task"] != task:
        raise InputError(f"resume_sweep={folder}: a sweep of {saved['task']}.py, not of {task}.py")
    before = [text for text in saved["overrides"] if isinstance(text, str)]
    added = [text for text in added if override_key(text) != "resume_sweep"]
    named = {override_key(text) for text in added}
    kept = [text for text in before if override_key(text) not in named]
    secret_keys = {override_key(text) for text in before if REDACTED in text}
    if hidden := [text for text in kept if REDACTED in text]:
        raise ConfigError(f"resume_sweep={folder}: {hidden[0]} was a secret and is not kept; give it again")
    same = {*before, *(text for text in added if override_key(text) in secret_keys)}
    if foreign := [text for text in added if not text.startswith(("hydra.", "hydra/")) and text not in same]:
        raise ConfigError(
            f"{foreign[0]}: resume_sweep runs the sweep's own jobs: only hydra.* can be added; start a new sweep"
        )
    of_jobs = [str(text) for job in saved["jobs"] for text in job["overrides"]]
    is_own = is_signed([*saved["overrides"], *of_jobs], saved.get("signature"))
    checked = [*kept, *dict.fromkeys(text for text in of_jobs if REDACTED not in text)]
    check_overrides(checked, str(folder / SWEEP_FILE), of_hydra=HYDRA_KEYS, is_own=is_own)
    place = quote_value(folder)
    return [*kept, *added, f"resume_sweep={place}", f"hydra.sweep.dir={place}", "hydra.mode=MULTIRUN"]


def read_metrics(run_dir: Path) -> dict[str, float]:
    """Return the figures of metrics.json by logged name, per-count ones left out; nothing where there is none."""
    try:
        figures = json.loads(read_limited(run_dir / "metrics.json"))
    except (OSError, ValueError):
        return {}
    return {
        f"{split}/{name}": value
        for split in ("val", "test")
        for name, value in (figures.get(split) or {}).items()
        if isinstance(value, int | float)
    }


def finite(value: float | None) -> float | None:
    """Return None for NaN and infinity, which JSON does not have."""
    return value if value is not None and math.isfinite(value) else None


def now() -> str:
    """Return the time in ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _csv(rows: Iterable[dict[str, Any]]) -> str:
    written = list(rows)
    last = ("run_dir", "error")
    columns = [name for name in dict.fromkeys(name for row in written for name in row) if name not in last]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns, *last], lineterminator="\n")
    writer.writeheader()
    writer.writerows(written)
    return text.getvalue()
