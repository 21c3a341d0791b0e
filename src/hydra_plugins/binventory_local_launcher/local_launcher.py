"""`hydra/launcher=local`: the jobs of a sweep as processes of this machine."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from binventory.launch.handle import JobHandle


@dataclass
class LocalLauncherConf:
    """What `hydra.launcher` may hold."""

    _target_: str = "hydra_plugins.binventory_local_launcher.local_launcher.LocalLauncher"
    # jobs at once; null: as many as the GPUs allow, on the CPU one
    n_jobs: Optional[int] = None
    # CPU threads of each job; null: a fair share of the cores
    threads_per_job: Optional[int] = None
    # what a failed job does to those that have not started: continue or stop
    on_failure: str = "continue"
    # whether a task that cannot be imported may be sent as a pickle (other Hydra applications; never needed for ours)
    allow_pickled_task: bool = False


class LocalLauncher(Launcher):
    """Starts each job in a process of its own, as soon as there is room for it."""

    def __init__(
        self, n_jobs: int | None, threads_per_job: int | None, on_failure: str, allow_pickled_task: bool
    ) -> None:
        self.n_jobs = n_jobs
        self.threads_per_job = threads_per_job
        self.on_failure = on_failure
        self.allow_pickled_task = allow_pickled_task
        self._jobs: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives to every launcher.

        Raises:
            ConfigError: a value of `hydra.launcher` is out of range.
        """
        from hydra_plugins.binventory_local_launcher._core import LocalJobs

        self._jobs = LocalJobs(self, hydra_context, task_function, config)

    def submit(self, overrides: Sequence[str], index: int, *, resume_dir: Path | None = None) -> JobHandle:
        """Start a job, or let it wait until there is room.

        Args:
            overrides: the job's own.
            index: its number, `hydra.job.num`.
            resume_dir: run folder that it goes on in, from the checkpoint there.
        """
        handle: JobHandle = self._jobs.submit(overrides, index, resume_dir)
        return handle

    def as_completed(self, timeout: float | None = None) -> Iterator[JobHandle]:
        """Yield each job as it ends; return when none is left, or when none ended for `timeout` seconds."""
        yield from self._jobs.as_completed(timeout)

    def cancel(self, handle: JobHandle, signum: int | None = None) -> None:
        """Drop a job that waits; send a signal (SIGTERM) to one that runs: it saves and leaves."""
        self._jobs.cancel(handle, signum)

    def stop(self, signum: int) -> None:
        """End all jobs and wait for their end."""
        self._jobs.stop(signum)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs and wait for all of them: what Hydra's own sweepers call."""
        returned: list[JobReturn] = self._jobs.launch(job_overrides, initial_job_idx)
        return returned


ConfigStore.instance().store(
    group="hydra/launcher", name="local", node=LocalLauncherConf, provider="binventory_local_launcher"
)
