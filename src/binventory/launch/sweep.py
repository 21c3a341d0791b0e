"""Run the jobs of a sweep: whatever happens to one of them, the others go on and nothing is lost."""

from __future__ import annotations

import itertools
import shlex
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, cast

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf

from binventory.config.capture import redact
from binventory.config.quoting import pasteable
from binventory.errors import InputError, UserError
from binventory.files import write_text
from binventory.launch.endings import judge, judge_foreign
from binventory.launch.handle import JobHandle
from binventory.launch.runner import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    report_user_error,
)
from binventory.reports.sweep_table import SweepDisplay
from binventory.signals import passed_on, stop_signals
from binventory.tracking.epochs import read_epochs
from binventory.tracking.resume import override_key
from binventory.tracking.run_folder import RunFolder, request_prune
from binventory.tracking.sweep_record import SWEEP_FILE, SweepJob, SweepRecord, now


class Sweep:
    """The jobs of one sweep, their record, their table, and what a signal does to them.

    A launcher with `submit`, `as_completed` and `cancel` starts each job as soon as there is room. With any other,
    jobs that are submitted wait until `as_completed`, which launches them as one blocking batch.

    Args:
        launcher: the launcher that Hydra made.
        task_function: what Hydra was given to run; of ours it has a `task_name`.
        config: the sweep's composed config.

    Raises:
        InputError: the folder holds another sweep, or another process runs this one.
    """

    def __init__(self, launcher: Launcher, task_function: Any, config: DictConfig) -> None:
        self.launcher: Any = launcher
        self.folder = Path(config.hydra.sweep.dir).absolute()
        self.task_name: str | None = getattr(task_function, "task_name", None)
        self.can_refill = all(hasattr(launcher, name) for name in ("submit", "as_completed", "cancel"))
        self.n_jobs: int | None = getattr(launcher, "n_jobs", None) if self.can_refill else None
        self.signum = 0
        self._has_failed = self._has_detached = self._is_passed_on = False
        self._stop_at_failure = getattr(launcher, "on_failure", "continue") == "stop"
        self._queued: list[SweepJob] = []
        overrides = config.hydra.overrides
        # Unresolved: an override may hold ${…} that only a job can answer.
        of_hydra, of_task = (OmegaConf.to_container(overrides[name], resolve=False) for name in ("hydra", "task"))
        assert isinstance(of_hydra, list)
        assert isinstance(of_task, list)
        said = [text for text in of_hydra if not text.startswith(("hydra.sweep.dir=", "hydra.mode="))]
        objective = OmegaConf.select(config, "objective_metric", default=None)
        name = self.task_name or str(config.hydra.job.name)
        task_overrides = [text for text in of_task if override_key(text) != "resume_sweep"]
        self.record = SweepRecord(self.folder, name, [*said, *task_overrides], objective)
        self._take_folder(is_resumed=OmegaConf.select(config, "resume_sweep", default=None) is not None, config=config)
        self._display = SweepDisplay(self.record)

    def _take_folder(self, *, is_resumed: bool, config: DictConfig) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        if not is_resumed and (self.folder / SWEEP_FILE).exists() and self.task_name is not None:
            again = pasteable("resume_sweep", self.folder)
            raise InputError(f"hydra.sweep.dir={self.folder}: holds a sweep; {again} goes on with it")
        self._lock = RunFolder(self.folder)
        self._lock.open()
        if is_resumed:
            self.record.read_jobs()
        else:
            plain = OmegaConf.to_container(config, resolve=False)
            write_text(self.folder / "multirun.yaml", OmegaConf.to_yaml(OmegaConf.create(cast(Any, redact(plain)))))

    @property
    def jobs(self) -> list[SweepJob]:
        """All jobs, those of earlier attempts included."""
        return self.record.jobs

    @property
    def num_queued(self) -> int:
        """Jobs that wait for the next batch of a launcher that blocks."""
        return len(self._queued)

    @property
    def is_stopping(self) -> bool:
        """Whether no more jobs shall be submitted: a signal came, or one failed under on_failure=stop."""
        return bool(self.signum) or (self._stop_at_failure and self._has_failed)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Pass signals to stop on to the jobs, once, and keep the record and the table until the block ends."""

        def stop(signum: int, _frame: FrameType | None) -> None:
            self.signum = self.signum or signum
            if hasattr(self.launcher, "interrupt"):
                self.launcher.interrupt()
            if not self.can_refill:
                raise KeyboardInterrupt  # a launcher that blocks has to be woken up

        before = {signum: signal.signal(signum, stop) for signum in stop_signals()}
        self.record.write("running")
        try:
            with self._display:
                yield
        finally:
            self._end_left_over()
            for signum, handler in before.items():
                signal.signal(signum, handler)
            self._lock.close()

    def submit(self, overrides: Sequence[str], *, job: SweepJob | None = None) -> SweepJob:
        """Start a job, or queue it until there is room.

        Args:
            overrides: the job's own.
            job: that of an earlier attempt, which goes on in its own run folder from its checkpoint.
        """
        if job is None:
            job = SweepJob(max((job.number for job in self.jobs), default=-1) + 1, tuple(overrides))
            self.jobs.append(job)
        else:
            job.state, job.error, job.exit_code = "queued", None, None
        self.record.write("running")  # before it starts: a kill between the two must not lose it
        if self.can_refill:
            job.handle = self.launcher.submit(list(overrides), job.number, resume_dir=job.run_dir)
            self._look_at_open()
        else:
            self._queued.append(job)
        return job

    def as_completed(self, timeout_s: float) -> Iterator[SweepJob]:
        """Yield each job as it ends; return when none is left, or when none ended for so long."""
        if not self.can_refill:
            yield from self._launch_batch()
            return
        deadline = time.monotonic() + timeout_s
        while open_jobs := [job for job in self.jobs if job.handle is not None]:
            if self.is_stopping and not self._is_passed_on:
                self._stop_open(open_jobs)
                self._is_passed_on = True
                continue
            for handle in self.launcher.as_completed(0.3):
                job = next(job for job in self.jobs if job.handle is handle)
                self._end(job)
                yield job
                deadline = time.monotonic() + timeout_s
                if self.is_stopping:
                    break
            self._look_at_open()
            if time.monotonic() > deadline:
                return

    def wait(self) -> None:
        """Wait until all submitted jobs have ended."""
        while self.num_queued or any(job.handle is not None for job in self.jobs):
            for _ in self.as_completed(3600):
                pass

    def prune(self, job: SweepJob) -> None:
        """Ask a running job to stop at its next step: it ends as pruned, with exit code 0."""
        if job.run_dir is not None:
            request_prune(job.run_dir)

    def values(self, job: SweepJob) -> list[tuple[int, float]]:
        """Return what a job has reached so far: (epoch from 1, objective metric), in order."""
        if job.run_dir is None or self.record.objective is None:
            return []
        rows = read_epochs(job.run_dir)
        return [(int(row["epoch"]), float(row[name])) for row in rows if row.get(name := self.record.objective)]

    def finish(self) -> int:
        """Print the table and return the exit code: 0 all done, 1 any failed, 130 or 143 stopped."""
        if self.signum:
            code = EXIT_INTERRUPTED if self.signum == signal.SIGINT else EXIT_PREEMPTED
        else:
            running_on = ("running",) if self._has_detached else ()
            code = 0 if all(job.is_finished or job.state in running_on for job in self.jobs) else EXIT_FAILED
        is_open = self._has_detached and not self.signum and not code
        self.record.write("preempted" if self.signum else "failed" if code else "running" if is_open else "done", code)
        self._display.print_table()
        if self._has_detached:
            print(f"binventory sagemaker attach {shlex.quote(str(self.folder))} collects what runs on", flush=True)
        if code and self.task_name is not None:
            print(f"{pasteable('resume_sweep', self.folder)} runs what is not done", flush=True)
        return code

    def returns(self, batch_size: int | None) -> list[list[JobReturn]]:
        """Return what Hydra expects of a sweeper: the jobs' returns in order, in batches."""
        returned = [job.job_return for job in self.jobs if job.job_return is not None]
        size = batch_size or max(1, len(returned))
        return [returned[start : start + size] for start in range(0, len(returned), size)]

    # One job

    def _stop_open(self, open_jobs: Sequence[SweepJob]) -> None:
        for job in open_jobs:
            if not job.handle.is_started:
                self.launcher.cancel(job.handle)
                job.handle = None
            elif self.signum:
                self.launcher.cancel(job.handle, passed_on(self.signum))
        if self.signum and any(job.handle is not None for job in open_jobs):
            self._display.say(f"{signal.Signals(self.signum).name}: the running jobs save and leave")

    def _look_at_open(self) -> None:
        for job in self.jobs:
            if job.handle is not None and job.state == "queued" and job.handle.is_started:
                job.run_dir, job.state, job.started = job.handle.run_dir, "running", now()
                self.record.write("running")
                self._display.job_started(job)
        self._display.refresh()

    def _end(self, job: SweepJob) -> None:
        handle: JobHandle = job.handle
        job.handle = None
        job.run_dir = handle.run_dir or job.run_dir
        job.job_return, job.exit_code = handle.job_return, handle.exit_code
        if handle.is_detached:
            self._detach(job)
            return
        if self.task_name is None:
            judge_foreign(job, handle.failure, is_stopping=bool(self.signum))
        else:
            judge(job, handle.failure, self.record.objective, is_stopping=bool(self.signum))
        self._close(job)

    def _detach(self, job: SweepJob) -> None:
        job.state, job.started = "running", job.started or now()
        self._has_detached = True
        self.record.write("running")

    def _close(self, job: SweepJob) -> None:
        job.ended = now()
        job.started = job.started or job.ended
        self._has_failed = self._has_failed or job.state == "failed"
        self.record.write("running")
        self._display.job_ended(job)

    # Launchers that are not ours

    def _launch_batch(self) -> Iterator[SweepJob]:
        batch, self._queued = self._queued, []
        if self.is_stopping:
            return
        for job in batch:
            job.state, job.started = "running", now()
        self.record.write("running")
        # A launcher counts on from the first job's number, and by its number a job finds its folder.
        for _, block in itertools.groupby(enumerate(batch), key=lambda pair: pair[1].number - pair[0]):
            yield from self._launch_block([job for _, job in block])

    def _launch_block(self, block: Sequence[SweepJob]) -> Iterator[SweepJob]:
        returned: Sequence[JobReturn | None]
        failure = None
        try:
            returned = list(self.launcher.launch([list(job.overrides) for job in block], block[0].number))
        except (KeyboardInterrupt, SystemExit) as stopped:  # the second where the job ran in this process
            code = stopped.code if isinstance(stopped, SystemExit) else EXIT_INTERRUPTED
            if code not in (EXIT_INTERRUPTED, EXIT_PREEMPTED):
                raise
            self.signum = self.signum or (signal.SIGTERM if code == EXIT_PREEMPTED else signal.SIGINT)
            returned = [None] * len(block)
        except Exception as error:  # whichever its launcher raises when a job was killed
            if self.task_name is None:
                raise
            returned, failure = [None] * len(block), f"{type(error).__name__}: {error}"
        for job, job_return in zip(block, returned, strict=True):
            job.job_return = job_return
            if job_return is not None:
                job.run_dir = Path(str(OmegaConf.select(cast(Any, job_return.hydra_cfg), "hydra.runtime.output_dir")))
            if self.task_name is None:
                judge_foreign(job, failure, is_stopping=bool(self.signum))
            else:
                # Its run folder knows. Where the launcher raised, other jobs may still be at work.
                job.run_dir = job.run_dir or self.folder / str(job.number)
                while not self.signum and RunFolder(job.run_dir).writer() is not None:
                    time.sleep(0.5)
                judge(job, None, self.record.objective, is_stopping=bool(self.signum), otherwise=failure)
            self._close(job)
            yield job

    def _end_left_over(self) -> None:
        """End what still runs when the block is left by an error: no job may outlive its sweep."""
        if self.can_refill:
            self.launcher.stop(passed_on(self.signum))
        for job in self.jobs:
            if job.handle is not None:
                self._end(job)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Answer what the user can mend with one line and exit code 2; inside Hydra it would be a traceback."""
    try:
        yield
    except UserError as error:
        report_user_error(error)
        sys.exit(EXIT_USER_ERROR)
