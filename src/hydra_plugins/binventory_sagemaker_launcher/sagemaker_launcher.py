"""`hydra/launcher=sagemaker`: the jobs of a sweep as training jobs of Amazon SageMaker."""

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
from binventory.sagemaker.settings import LaunchSettings


@dataclass
class SageMakerLauncherConf(LaunchSettings):
    """What `hydra.launcher` may hold: see LaunchSettings."""

    _target_: str = "hydra_plugins.binventory_sagemaker_launcher.sagemaker_launcher.SageMakerLauncher"


@dataclass
class SpotConf(SageMakerLauncherConf):
    """Spare capacity: cheaper, and taken back at any time."""

    use_spot: bool = True
    max_wait_s: Optional[int] = 2 * 86_400


@dataclass
class DistributedConf(SageMakerLauncherConf):
    """Each job on two machines: takes trainer=ddp with trainer.devices=GPUs of one of them."""

    instance_type: str = "ml.g4dn.12xlarge"
    instance_count: int = 2


@dataclass
class LocalConf(SageMakerLauncherConf):
    """The same on this machine: no account, no Docker."""

    local: bool = True
    region: Optional[str] = "us-east-1"
    instance_type: str = "ml.m5.large"
    max_parallel: Optional[int] = 1
    poll_s: float = 0.5


class SageMakerLauncher(Launcher):
    """Sends each job to SageMaker as soon as there is room for it, and brings its run folder back."""

    def __init__(self, **settings: Any) -> None:
        self._given = settings
        self.n_jobs: int | None = settings.get("max_parallel")
        self.on_failure: str = settings.get("on_failure", "continue")
        self.dry_run: bool = bool(settings.get("dry_run"))
        self._jobs: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives to every launcher, and send the project's source.

        Raises:
            ConfigError: a value of `hydra.launcher` is out of range, or no region is set.
            InputError: the source cannot be sent.
        """
        from hydra_plugins.binventory_sagemaker_launcher._core import SageMakerJobs

        settings = LaunchSettings.of(self._given)
        self._jobs = SageMakerJobs(settings, hydra_context, task_function, config)

    def submit(self, overrides: Sequence[str], index: int, *, resume_dir: Path | None = None) -> JobHandle:
        """Send a job, or let it wait until there is room.

        Args:
            overrides: the job's own.
            index: its number, `hydra.job.num`.
            resume_dir: run folder that it goes on in: a training job that still runs is waited for, another one is sent
                that goes on from the checkpoint on S3.
        """
        handle: JobHandle = self._jobs.submit(overrides, index, resume_dir)
        return handle

    def as_completed(self, timeout: float | None = None) -> Iterator[JobHandle]:
        """Yield each job as it ends; return when none is left, or when none ended for `timeout` seconds."""
        yield from self._jobs.as_completed(timeout)

    def cancel(self, handle: JobHandle, signum: int | None = None) -> None:
        """Drop a job that waits; stop one that runs, or let go of it (`on_interrupt=detach`)."""
        self._jobs.cancel(handle, signum)

    def stop(self, signum: int) -> None:
        """End all jobs and wait for their end, or let go of them (`on_interrupt=detach`)."""
        self._jobs.stop(signum)

    def interrupt(self) -> None:
        """Break off what takes long while a job is sent. May be called by a signal's handler."""
        if self._jobs is not None:
            self._jobs.interrupt()

    def show_requests(self, job_overrides: Sequence[Sequence[str]]) -> None:
        """Print the requests of jobs, and send nothing: `dry_run=true`."""
        self._jobs.show_requests(job_overrides)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run jobs and wait for all of them: what Hydra's own sweepers call."""
        if self.dry_run:
            self.show_requests(job_overrides)
            return []
        returned: list[JobReturn] = self._jobs.launch(job_overrides, initial_job_idx)
        return returned


for _name, _node in (
    ("sagemaker", SageMakerLauncherConf),
    ("sagemaker_spot", SpotConf),
    ("sagemaker_dist", DistributedConf),
    ("sagemaker_local", LocalConf),
):
    ConfigStore.instance().store(
        group="hydra/launcher", name=_name, node=_node, provider="binventory_sagemaker_launcher"
    )
