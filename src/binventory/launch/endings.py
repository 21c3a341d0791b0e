"""How a job of a sweep ended: what its run folder says, and what it could not say any more."""

from __future__ import annotations

import signal

from hydra.core.utils import JobStatus

from binventory.config.capture import one_line
from binventory.errors import InputError
from binventory.signals import STOP_SIGNALS
from binventory.tracking.run_folder import RunFolder
from binventory.tracking.sweep_record import SweepJob

HINTS: dict[int, str] = {signal.SIGKILL: " (out of memory, or kill -9)"}


def judge(
    job: SweepJob, failure: str | None, objective: str | None, *, is_stopping: bool, otherwise: str | None = None
) -> None:
    """Set the state of a job of ours: its status.json says it, unless it had no chance to write one.

    Args:
        job: its `exit_code` is that of its process; negative: the signal that killed it; None: not known.
        failure: why it failed, where it never started.
        objective: logged name of the metric that becomes the job's value.
        is_stopping: whether the sweep sends signals to its jobs.
        otherwise: what is said of a job whose run folder has no end and whose exit code is not known.
    """
    code = job.exit_code
    if failure is None and code is not None and code < 0:
        failure = f"killed by {signal.Signals(-code).name}{HINTS.get(-code, '')}"
    elif failure is None:
        job.look_up()
        if job.state in ("queued", "running") and not is_stopping:
            failure = otherwise or f"ended with exit code {code} before it was done"
    # A job that a signal reached before it could listen has no status of its own.
    if is_stopping and ((code is not None and -code in STOP_SIGNALS) or job.state in ("queued", "running")):
        job.state = "preempted" if job.run_dir is not None and job.run_dir.exists() else "queued"
    elif failure is not None:
        job.state, job.error = "failed", one_line(failure)
        _write_failure(job)
    job.value = job.metrics.get(objective or "") if job.state == "done" else None


def judge_foreign(job: SweepJob, failure: str | None, *, is_stopping: bool) -> None:
    """Set the state of a job whose task is not ours: Hydra's JobReturn says it."""
    returned = job.job_return
    if failure is None and returned is not None and returned.status == JobStatus.FAILED:
        failure = f"{type(returned._return_value).__name__}: {returned._return_value}"
    if failure is None and job.exit_code:
        failure = f"ended with exit code {job.exit_code}"
    job.state = "done" if failure is None else "preempted" if is_stopping else "failed"
    job.error = None if failure is None else one_line(failure)
    value = returned._return_value if returned is not None else None
    if job.state == "done" and isinstance(value, int | float):
        job.value = float(value)


def _write_failure(job: SweepJob) -> None:
    """Write the status of a job that could not do it itself: it was killed, or it never started."""
    if job.run_dir is None or not job.run_dir.is_dir():
        return
    folder = RunFolder(job.run_dir)
    try:
        folder.wait_for_writer()  # ranks of it may still be leaving
        folder.open()
    except InputError:
        return
    try:
        if folder.read_state() != "failed":
            folder.write_status("failed", exit_code=job.exit_code, error=KilledError(job.error or ""))
    finally:
        folder.close()


class KilledError(RuntimeError):
    """A job of a sweep ended without saying why."""
