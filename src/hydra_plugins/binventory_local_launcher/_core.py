"""The jobs of the local launcher, from overrides to processes and Hydra's JobReturn."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobRuntime, JobStatus, setup_globals
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from binventory.config.capture import redact_yaml
from binventory.errors import ConfigError, UserError
from binventory.launch.frozen import freeze
from binventory.launch.handle import JobHandle
from binventory.launch.job_process import pack, run_foreign, run_frozen
from binventory.launch.pool import Job, Pool, Work
from binventory.launch.ranks import returned_value
from binventory.launch.runner import EXIT_USER_ERROR
from binventory.launch.spec import JobSpec
from binventory.tracking.resume import AUTO
from binventory.tracking.run_folder import RunFolder

if TYPE_CHECKING:
    from hydra_plugins.binventory_local_launcher.local_launcher import LocalLauncher

ON_FAILURE = ("continue", "stop")


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
        self.context, self.task, self.config = context, task, config
        self.task_name: str | None = getattr(task, "task_name", None)
        self.allow_pickled_task = asked.allow_pickled_task
        preload = ["binventory.launch.preload"] if self.task_name else ["binventory.launch.job_process", "hydra"]
        self.pool = Pool(asked.n_jobs, asked.threads_per_job, preload)
        self._by_job: dict[Job, JobHandle] = {}
        self._composed: dict[JobHandle, DictConfig] = {}
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
        setup_globals()
        redact_yaml(Path(str(self.config.hydra.sweep.dir)) / "multirun.yaml")
        handles = [
            self.submit(overrides, initial_job_idx + place, None) for place, overrides in enumerate(job_overrides)
        ]
        try:
            for _ in self.as_completed(None):
                pass
        finally:
            self.stop(signal.SIGINT)
        return [handle.job_return for handle in handles if handle.job_return is not None]

    # One job

    def _prepare(self, handle: JobHandle, resume_dir: Path | None) -> Work | None:
        before = HydraConfig.instance().cfg
        try:
            composed = self._compose(handle)
            if self.task_name is None:
                return self._foreign_work(handle, composed)
            handle.run_dir = resume_dir or Path(composed.hydra.runtime.output_dir)
            return self._frozen_work(handle, composed, self.task_name, resume_dir)
        except (UserError, HydraException, OmegaConfBaseException) as error:  # one job's fault, and one failed row
            handle.failure, handle.exit_code = str(error), EXIT_USER_ERROR
            return None
        finally:
            HydraConfig.instance().cfg = before

    def _compose(self, handle: JobHandle) -> DictConfig:
        """Compose a job's config, and set Hydra's global config to it, as Hydra's run_job does."""
        composed = self.context.config_loader.load_sweep_config(self.config, list(handle.overrides))
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

    def _frozen_work(self, handle: JobHandle, composed: DictConfig, task: str, resume_dir: Path | None) -> Work:
        with open_dict(composed):
            composed.resume_sweep = None  # the sweep's, not the job's
        spec = freeze(task, composed)
        if resume_dir is not None:
            RunFolder(resume_dir).wait_for_writer()
            config = {**spec.config, "resume": AUTO} if "resume" in spec.config else spec.config
            spec = replace(spec, run_dir=str(resume_dir), config=config)
        handle.run_dir = Path(spec.run_dir)
        path = handle.run_dir / "job.json"
        spec.save(path)
        environment = {**os.environ, **spec.environment()}
        return Work(run_frozen, (str(path), environment), _num_gpus(spec))

    def _foreign_work(self, handle: JobHandle, composed: DictConfig) -> Work:
        name = getattr(self.task, "__qualname__", "<locals>")
        task: Any = f"{self.task.__module__}:{name}"
        if "." in name or "<" in name:
            if not self.allow_pickled_task:
                raise ConfigError(
                    f"hydra/launcher=local: {name} of {self.task.__module__} cannot be imported by name; make it a"
                    " function of its module, or send it as a pickle with hydra.launcher.allow_pickled_task=true"
                )
            task = self.task
        descriptor, answer = tempfile.mkstemp(prefix="binventory-", suffix=".return")
        os.close(descriptor)
        self._answers[handle] = Path(answer)
        packed = pack(self.context, Singleton.get_state(), task, composed)
        return Work(run_foreign, (answer, packed, dict(os.environ)))

    def _end(self, handle: JobHandle, job: Job) -> None:
        if job.exit_code is not None:
            handle.exit_code = job.exit_code
        answer = self._answers.pop(handle, None)
        if answer is not None:
            handle.job_return = _read_answer(answer)
            if handle.job_return is not None and handle.job_return.hydra_cfg is not None:
                handle.run_dir = Path(str(OmegaConf.select(handle.job_return.hydra_cfg, "hydra.runtime.output_dir")))
        if self.task_name is not None:
            handle.job_return = self._made_return(handle)
        elif handle.job_return is None:
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
            returned.return_value = returned_value(handle.run_dir, OmegaConf.to_container(composed, resolve=False))  # type: ignore[arg-type]
        else:
            returned.return_value = RuntimeError(handle.failure or f"{handle.run_dir}: exit code {handle.exit_code}")
        return returned


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


def _read_answer(path: Path) -> JobReturn | None:
    """Return what a job left in the file that this process made for it, which only this user can write."""
    import cloudpickle

    try:
        packed = path.read_bytes()
        return cloudpickle.loads(packed) if packed else None
    finally:
        path.unlink()
