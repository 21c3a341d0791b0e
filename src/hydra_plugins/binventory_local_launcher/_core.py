"""The jobs of the local launcher, from overrides to processes and Hydra's JobReturn."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.utils import JobReturn
from hydra.types import HydraContext
from omegaconf import DictConfig

from binventory.errors import ConfigError
from binventory.launch.composing import ON_FAILURE, Composer, launch_all
from binventory.launch.handle import JobHandle
from binventory.launch.job_process import run_foreign, run_frozen
from binventory.launch.pool import Job, Pool, Work
from binventory.launch.spec import JobSpec

if TYPE_CHECKING:
    from hydra_plugins.binventory_local_launcher.local_launcher import LocalLauncher


class LocalJobs:
    """Composes, freezes and starts jobs.

    Args:
        asked: the launcher with its options.
        context: Hydra's.
        task: what Hydra was given to run; of ours it has a `task_name`.
        config: the sweep's composed config.

    Raises:
        ConfigError: an option is out of range.
    """

    def __init__(self, asked: LocalLauncher, context: HydraContext, task: Any, config: DictConfig) -> None:
        _check(asked)
        self.composer = Composer(context, task, config, launcher="local", allow_pickled_task=asked.allow_pickled_task)
        is_ours = self.composer.task_name is not None
        preload = ["binventory.launch.preload"] if is_ours else ["binventory.launch.job_process", "hydra"]
        self.pool = Pool(asked.n_jobs, asked.threads_per_job, preload)
        self._by_job: dict[Job, JobHandle] = {}
        self._answers: dict[JobHandle, Path] = {}

    def submit(self, overrides: Sequence[str], index: int, resume_dir: Path | None) -> JobHandle:
        """Queue a job; it is composed when it is its turn, so that a long sweep starts at once."""
        handle = JobHandle(index, tuple(overrides))

        def on_start() -> None:
            handle.is_started = True

        job = Job(index, lambda: self._prepare(handle, resume_dir), on_start)
        self._by_job[job] = handle
        self.pool.submit(job)
        return handle

    def as_completed(self, timeout: float | None) -> Iterator[JobHandle]:
        """Yield handles as their jobs end."""
        for job in self.pool.as_completed(timeout):
            handle = self._by_job.pop(job)
            self._end(handle, job)
            yield handle

    def cancel(self, handle: JobHandle, signum: int | None) -> None:
        """Drop a job that waits, signal one that runs."""
        for job in [job for job, its in self._by_job.items() if its is handle]:
            if not handle.is_started:
                del self._by_job[job]
            self.pool.cancel(job, signum or signal.SIGTERM)

    def stop(self, signum: int) -> None:
        """End all jobs; what they come to is in their handles."""
        for job in list(self.pool.waiting):
            self._by_job.pop(job, None)
        self.pool.stop(signum)
        for _ in self.as_completed(None):
            pass

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run jobs to their end, for Hydra's own sweepers."""
        return launch_all(self, self.composer.config, job_overrides, initial_job_idx, signal.SIGINT)

    # One job

    def _prepare(self, handle: JobHandle, resume_dir: Path | None) -> Work | None:
        with self.composer.preparing(handle):
            composed = self.composer.compose(handle)
            if self.composer.task_name is None:
                return self._foreign_work(handle, composed)
            handle.run_dir = resume_dir or Path(composed.hydra.runtime.output_dir)
            spec = self.composer.freeze(handle, composed, resume_dir)
            return _frozen_work(spec, self.composer.pack_own(composed, spec))
        return None

    def _foreign_work(self, handle: JobHandle, composed: DictConfig) -> Work:
        packed = self.composer.pack(composed)
        descriptor, answer = tempfile.mkstemp(prefix="binventory-", suffix=".return")
        os.close(descriptor)
        self._answers[handle] = Path(answer)
        return Work(run_foreign, (answer, packed, dict(os.environ)))

    def _end(self, handle: JobHandle, job: Job) -> None:
        if job.exit_code is not None:
            handle.exit_code = job.exit_code
        answer = self._answers.pop(handle, None)
        self.composer.end(handle, None if answer is None else _read_answer(answer))


def _frozen_work(spec: JobSpec, packed: bytes) -> Work:
    path = Path(spec.run_dir) / "job.json"
    spec.save(path)
    environment = {**os.environ, **spec.environment()}
    return Work(run_frozen, (str(path), environment, packed), _num_gpus(spec))


def _check(asked: LocalLauncher) -> None:
    for name in ("n_jobs", "threads_per_job"):
        value = getattr(asked, name)
        if value is not None and value < 1:
            raise ConfigError(f"hydra.launcher.{name}={value}: must be at least 1, or null")
    if asked.on_failure not in ON_FAILURE:
        raise ConfigError(f"hydra.launcher.on_failure={asked.on_failure}: must be one of {', '.join(ON_FAILURE)}")


def _num_gpus(spec: JobSpec) -> int:
    trainer = spec.config.get("trainer", {})
    accelerator = trainer.get("accelerator", spec.config.get("accelerator", "cpu"))
    return int(trainer.get("devices", 1)) if accelerator != "cpu" else 0


def _read_answer(path: Path) -> bytes:
    """Return what a job left in the file that this process made for it, which only this user can write."""
    try:
        return path.read_bytes()
    finally:
        path.unlink()
