"""From a job's overrides to its composed config, its frozen spec and Hydra's JobReturn: the same for every launcher."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, setup_globals
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from binventory.config.capture import redact_yaml
from binventory.config.compose import as_job
from binventory.config.quoting import literal
from binventory.errors import ConfigError, UserError
from binventory.launch.frozen import freeze
from binventory.launch.handle import JobHandle
from binventory.launch.job_process import pack
from binventory.launch.ranks import returned_value
from binventory.launch.runner import EXIT_USER_ERROR
from binventory.launch.spec import JobSpec
from binventory.tracking.run_folder import RunFolder

ON_FAILURE = ("continue", "stop")


class Composer:
    """Composes the jobs of one sweep.

    Args:
        context: Hydra's.
        task: what Hydra was given to run; of ours it has a `task_name`.
        config: the sweep's composed config.
        launcher: its name in messages.
        allow_pickled_task: whether a task that cannot be imported may be sent as a pickle.

    Attributes:
        task_name: train, predict, …; None: another application's task.
    """

    def __init__(
        self, context: HydraContext, task: Any, config: DictConfig, *, launcher: str, allow_pickled_task: bool
    ) -> None:
        self.task_name: str | None = getattr(task, "task_name", None)
        self.config = config
        self._context, self._task = context, task
        self._launcher, self._allow_pickled_task = launcher, allow_pickled_task
        self._composed: dict[JobHandle, DictConfig] = {}
        self._numbers: dict[Path, int] = {}  # run folder -> its job

    @contextmanager
    def preparing(self, handle: JobHandle) -> Iterator[None]:
        """A block that composes a job: what is wrong with it is that job's failure, and no other's."""
        before = HydraConfig.instance().cfg
        try:
            yield
        except (UserError, HydraException, OmegaConfBaseException) as error:  # one job's fault, and one failed row
            handle.failure, handle.exit_code = str(error), EXIT_USER_ERROR
        finally:
            HydraConfig.instance().cfg = before

    def compose(self, handle: JobHandle) -> DictConfig:
        """Compose a job's config, and set Hydra's global config to it, as Hydra's run_job does."""
        composed = self._context.config_loader.load_sweep_config(self.config, list(handle.overrides))
        with open_dict(composed):
            composed.hydra.job.id = str(handle.number)
            composed.hydra.job.num = handle.number
        if self.task_name is None:
            return composed
        HydraConfig.instance().set_config(composed)
        place = Path(str(composed.hydra.sweep.dir)) / str(composed.hydra.sweep.subdir)
        with read_write(composed.hydra.runtime), open_dict(composed.hydra.runtime):
            composed.hydra.runtime.output_dir = str(place.absolute())
        HydraConfig.instance().set_config(composed)
        self._composed[handle] = composed
        return composed

    def freeze(self, handle: JobHandle, composed: DictConfig, resume_dir: Path | None) -> JobSpec:
        """Freeze a job of ours.

        Args:
            handle: gets its `run_dir`.
            composed: what `compose` returned.
            resume_dir: run folder of an earlier attempt, which it goes on in.
        """
        assert self.task_name is not None
        with open_dict(composed):
            composed.resume_sweep = None  # the sweep's, not the job's
        with as_job(composed):
            spec = freeze(self.task_name, composed, resume_dir)
        if resume_dir is not None:
            RunFolder(resume_dir).wait_for_writer()
        handle.run_dir = Path(spec.run_dir)
        owner = self._numbers.setdefault(handle.run_dir.resolve(), handle.number)
        if owner != handle.number:
            raise ConfigError(f"hydra.sweep.subdir: {spec.run_dir} is the folder of job {owner}; name one for each job")
        return spec

    def pack_own(self, composed: DictConfig, spec: JobSpec) -> bytes:
        """Pack what Hydra does around a job of ours: logging, environment, callbacks. `run_frozen` runs it.

        Args:
            composed: what `compose` returned.
            spec: the frozen job.

        Raises:
            ConfigError: a callback cannot be sent to another process.
        """
        run_dir = Path(spec.run_dir)
        with read_write(composed.hydra), open_dict(composed.hydra):
            # Not anew in the job's process: asking for the sweep's folder makes one.
            composed.hydra.sweep.dir, composed.hydra.sweep.subdir = literal(run_dir.parent), literal(run_dir.name)
        HydraConfig.instance().set_config(composed)
        try:
            return pack(self._context, Singleton.get_state(), None, composed)
        except Exception as error:  # whatever an object that cannot be pickled raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ConfigError(
                f"hydra.callbacks: cannot be sent to a job's process ({reason}); take hydra/launcher=basic"
            ) from error

    def pack(self, composed: DictConfig, *, by_name: bool = True) -> bytes:
        """Pack a job of another application.

        Args:
            composed: what `compose` returned.
            by_name: whether the task's module can be imported where it runs.

        Raises:
            ConfigError: its task cannot be imported, and pickles are not allowed.
        """
        name = getattr(self._task, "__qualname__", "<locals>")
        task: Any = f"{self._task.__module__}:{name}"
        if not by_name or "." in name or "<" in name:
            if not self._allow_pickled_task:
                raise ConfigError(
                    f"hydra/launcher={self._launcher}: {name} of {self._task.__module__} cannot be imported by name;"
                    " make it a function of its module, or send it as a pickle with"
                    " hydra.launcher.allow_pickled_task=true"
                )
            task = self._task
        return pack(self._context, Singleton.get_state(), task, composed)

    def end(self, handle: JobHandle, answer: bytes | None) -> None:
        """Give an ended job's handle its JobReturn.

        Args:
            handle: of the job.
            answer: the pickled JobReturn of another application's job, where there is one.
        """
        if self.task_name is not None:
            handle.job_return = self._made_return(handle)
            return
        if answer:
            import cloudpickle

            handle.job_return = cloudpickle.loads(answer)
            if handle.job_return.hydra_cfg is not None:
                handle.run_dir = Path(str(OmegaConf.select(handle.job_return.hydra_cfg, "hydra.runtime.output_dir")))
        else:
            handle.job_return = JobReturn(overrides=list(handle.overrides), status=JobStatus.FAILED)
            handle.job_return.return_value = RuntimeError(handle.failure or f"exit code {handle.exit_code}")

    def _made_return(self, handle: JobHandle) -> JobReturn:
        """Make what Hydra's run_job returns from the config that the job was frozen from."""
        returned = JobReturn(overrides=list(handle.overrides), task_name=JobRuntime.instance().get("name"))
        composed = self._composed.pop(handle, None)
        if composed is not None:
            returned.cfg = OmegaConf.masked_copy(composed, [str(name) for name in composed if name != "hydra"])
            returned.hydra_cfg = OmegaConf.masked_copy(composed, ["hydra"])
            returned.working_dir = os.getcwd()  # noqa: PTH109  a string, as Hydra's is
        returned.status = JobStatus.COMPLETED if handle.exit_code == 0 else JobStatus.FAILED
        if returned.status == JobStatus.COMPLETED and handle.run_dir is not None and composed is not None:
            metric = OmegaConf.select(composed, "objective_metric", default=None)  # resolved: presets compute it
            returned.return_value = returned_value(handle.run_dir, {"objective_metric": metric})
        else:
            returned.return_value = RuntimeError(handle.failure or f"{handle.run_dir}: exit code {handle.exit_code}")
        return returned


class Jobs(Protocol):
    """What `launch_all` needs of a launcher."""

    def submit(self, overrides: Sequence[str], index: int, resume_dir: Path | None) -> JobHandle:
        """Queue a job."""

    def as_completed(self, timeout: float | None) -> Iterator[JobHandle]:
        """Yield handles as their jobs end."""

    def stop(self, signum: int) -> None:
        """End all jobs."""


def launch_all(
    jobs: Jobs, config: DictConfig, job_overrides: Sequence[Sequence[str]], initial_job_idx: int, signum: int
) -> list[JobReturn]:
    """Run jobs to their end, for Hydra's own sweepers; what is left gets `signum` when the wait is broken off."""
    setup_globals()
    redact_yaml(Path(str(config.hydra.sweep.dir)) / "multirun.yaml")
    handles = [jobs.submit(overrides, initial_job_idx + place, None) for place, overrides in enumerate(job_overrides)]
    try:
        for _ in jobs.as_completed(None):
            pass
    finally:
        jobs.stop(signum)
    return [handle.job_return for handle in handles if handle.job_return is not None]
