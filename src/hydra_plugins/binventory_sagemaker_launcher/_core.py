"""The jobs of the SageMaker launcher, from overrides to training jobs and Hydra's JobReturn."""

from __future__ import annotations

import signal
import time
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf

from binventory.config.capture import one_line
from binventory.data.sources.watch import StoppedError
from binventory.errors import ConfigError, InputError, UserError
from binventory.launch.composing import Composer, launch_all
from binventory.launch.handle import JobHandle
from binventory.launch.spec import JobSpec
from binventory.sagemaker.aws import Aws, CallError
from binventory.sagemaker.collect import fetch_answer
from binventory.sagemaker.entry import ANSWER_FILE
from binventory.sagemaker.jobs import TrainingJob, TrainingJobs
from binventory.sagemaker.names import name_prefix
from binventory.sagemaker.plane import LocalPlane
from binventory.sagemaker.record import JobRecord, keep_sweep_name, read_record, sweep_name
from binventory.sagemaker.settings import LaunchSettings
from binventory.sagemaker.submit import MANIFEST, Launch, Submission
from binventory.tracking.provenance import git_facts
from binventory.tracking.resume import override_key
from binventory.tracking.run_folder import RunFolder

LOOK_S = 0.1

# Settings of Hydra for the process that a job runs in, which is none of Hydra's here.
OF_JOB_PROCESS = ("hydra.verbose", "hydra.job_logging", "hydra.output_subdir")


class SageMakerJobs:
    """Composes, sends, watches and collects jobs.

    Args:
        settings: checked ones.
        context: Hydra's.
        task: what Hydra was given to run; of ours it has a `task_name`.
        config: the sweep's composed config.

    Raises:
        ConfigError, InputError: AWS or the bucket cannot be reached, or the source cannot be sent.
    """

    def __init__(self, settings: LaunchSettings, context: HydraContext, task: Any, config: DictConfig) -> None:
        self.composer = Composer(
            context, task, config, launcher="sagemaker", allow_pickled_task=settings.allow_pickled_task
        )
        if self.composer.task_name is not None:
            _refuse_around_jobs(context, config)
        lets_go = not settings.wait or settings.on_interrupt == "detach"
        if lets_go and self.composer.task_name is None:
            raise ConfigError("hydra.launcher: only jobs of binventory can be left to run on; wait, and stop them")
        if not settings.wait and config.hydra.runtime.choices["hydra/sweeper"] != "binventory_grid":
            raise ConfigError("hydra.launcher.wait=false: a search goes by what its jobs return; leave it out")
        if settings.dry_run and OmegaConf.select(config, "resume_sweep", default=None) is not None:
            raise ConfigError("hydra.launcher.dry_run=true: shows the requests of a new sweep; leave resume_sweep out")
        self._plane = LocalPlane() if settings.local else None
        if self._plane is not None:
            # With this object or with the process, whichever ends first; what runs then is stopped without grace.
            weakref.finalize(self, self._plane.close)
            settings = self._plane.open(settings)
        self.settings = settings
        self._folder = Path(str(config.hydra.sweep.dir)).absolute()
        self._waiting: deque[tuple[JobHandle, Path | None]] = deque()
        self._running: dict[JobHandle, TrainingJob] = {}
        self._ended: deque[JobHandle] = deque()
        self._next_look = 0.0
        self._has_no_quota = False
        self._git = git_facts()
        self._name = sweep_name(self._folder)
        self._is_name_kept = False
        try:
            self._aws = Aws(settings.region)
            # Not the group's choice, which Hydra does not tell where there are several.
            loggers = OmegaConf.select(config, "logger", default=None)
            names = list(map(str, loggers)) if OmegaConf.is_dict(loggers) else []
            self._launch = Launch(settings, self._aws, self._name, names)
            if not settings.dry_run:
                self._launch.send_source()
        except UserError:
            _remove_if_empty(self._folder)
            raise
        self._jobs = TrainingJobs(self._aws, name_prefix(self._name))

    def submit(self, overrides: Sequence[str], index: int, resume_dir: Path | None) -> JobHandle:
        """Queue a job; it is composed and sent when there is room for it."""
        handle = JobHandle(index, tuple(overrides))
        self._waiting.append((handle, resume_dir))
        return handle

    def as_completed(self, timeout: float | None) -> Iterator[JobHandle]:
        """Yield handles as their jobs end."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            self._look()
            while self._ended:
                yield self._ended.popleft()
                deadline = None if timeout is None else time.monotonic() + timeout
            # Not before: whoever was told may not want any more to start.
            self._send_waiting()
            if self._ended:
                continue
            if self._running and not self._waiting and not self.settings.wait:
                for handle in list(self._running):
                    self._let_go(handle)
                continue
            if not self._running and not self._waiting:
                return
            if deadline is not None and time.monotonic() > deadline:
                return
            time.sleep(LOOK_S)

    def cancel(self, handle: JobHandle, signum: int | None) -> None:
        """Drop a job that waits, stop one that runs, or let go of it."""
        self._waiting = deque(pair for pair in self._waiting if pair[0] is not handle)
        self._aws.stop.clear()  # it broke off what it was meant for
        if handle not in self._running:
            return
        if self.settings.on_interrupt == "detach":
            self._let_go(handle)
        else:
            self._jobs.stop(self._running[handle])

    def stop(self, signum: int) -> None:
        """End all jobs, or let go of them; what they come to is in their handles."""
        self._waiting.clear()
        self._aws.stop.clear()
        for handle in list(self._running):
            self.cancel(handle, signum)
        for _ in self.as_completed(None):
            pass

    def interrupt(self) -> None:
        """Break off uploads."""
        self._aws.stop.set()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run jobs to their end, for Hydra's own sweepers."""
        return launch_all(self, self.composer.config, job_overrides, initial_job_idx, signal.SIGINT)

    def show_requests(self, job_overrides: Sequence[Sequence[str]]) -> None:
        """Print what would be sent."""
        print(*self._launch.manifest, sep="\n")
        try:
            for number, overrides in enumerate(job_overrides):
                handle = JobHandle(number, tuple(overrides))
                with self.composer.preparing(handle):
                    print(self._launch.describe(self._prepare(handle, None, None)[1]))
                if handle.failure is not None:
                    raise ConfigError(f"job {number}: {handle.failure}")
            print(self._launch.cost(len(job_overrides)), flush=True)
        finally:
            _remove_if_empty(self._folder)

    # One job

    def _send_waiting(self) -> None:
        limit = self.settings.max_parallel
        while self._waiting and self._may_send() and (limit is None or len(self._running) < limit):
            handle, resume_dir = self._waiting.popleft()
            try:
                with self.composer.preparing(handle):
                    self._send(handle, resume_dir)
            except StoppedError:  # a signal came while it was sent: whoever got it decides
                self._waiting.appendleft((handle, resume_dir))
                return
            if handle.failure is not None:
                self.composer.end(handle, None)
                self._ended.append(handle)

    def _may_send(self) -> bool:
        return not self._aws.stop.is_set() and not self._has_no_quota

    def _send(self, handle: JobHandle, resume_dir: Path | None) -> None:
        """Create a job's training job, or wait for the one that an earlier process created."""
        if not self._is_name_kept:  # not before: only now is the folder this sweep's
            keep_sweep_name(self._folder, self._name)
            self._launch.write_manifest(self._folder / MANIFEST)
            self._is_name_kept = True
        record = None if resume_dir is None else self._earlier(resume_dir)
        if resume_dir is not None and record is not None and self._is_to_be_collected(record):
            self.composer.compose(handle)
            handle.run_dir = resume_dir
            self._watch(handle, record, RunFolder(resume_dir).open())
            return
        spec, submission = self._prepare(handle, resume_dir, record)
        record = JobRecord(
            self._aws.region,
            self._aws.account,
            [*([] if record is None else record.names), submission.name],
            submission.places.output,
            submission.places.checkpoints,
            request=_facts(submission),
            git=self._git,
        )
        try:
            folder = self._create(spec, submission, record)
        except CallError as error:
            if error.code != "ResourceLimitExceeded" or not self._running or not self.settings.wait:
                raise
            # Jobs that run use the account's quota up: this one has its turn when one of them ends.
            self._waiting.appendleft((handle, resume_dir))
            self._has_no_quota = True
            return
        self._watch(handle, record, folder)

    def _create(self, spec: JobSpec | None, submission: Submission, record: JobRecord) -> RunFolder | None:
        """Create a training job and return the opened run folder of a job of ours."""
        with ExitStack() as undo:
            folder = None
            if spec is not None:
                folder = RunFolder(Path(spec.run_dir), spec.task).open()
                undo.callback(folder.close)
                spec.save(folder.path / "job.json")
                folder.write_status("queued")
                record.save(folder.path)  # before it is there: a kill between the two must not lose it
            self._launch.send_files(submission)
            self._jobs.create(submission.request)
            undo.pop_all()
        return folder

    def _prepare(
        self, handle: JobHandle, resume_dir: Path | None, earlier: JobRecord | None
    ) -> tuple[JobSpec | None, Submission]:
        composed = self.composer.compose(handle)
        if self.composer.task_name is None:
            packed = self.composer.pack(composed, by_name=False)
            return None, self._launch.prepare_pickled(handle.number, 0, packed)
        spec = self.composer.freeze(handle, composed, resume_dir)
        if earlier is None:
            return spec, self._launch.prepare(handle.number, 0, spec)
        return spec, self._launch.prepare(handle.number, len(earlier.names), spec, earlier.checkpoints)

    def _earlier(self, run_dir: Path) -> JobRecord | None:
        """Return the record of a run's earlier attempts."""
        record = read_record(run_dir)
        if record is None and (run_dir / "checkpoints").exists():
            raise ConfigError(f"{run_dir}: was begun on this machine; go on with it by hydra/launcher=local")
        if record is not None and record.region != self._aws.region:
            raise ConfigError(
                f"{run_dir}: its training job {record.name} is in {record.region}; set"
                f" hydra.launcher.region={record.region}"
            )
        if record is not None and record.account != self._aws.account:
            raise ConfigError(
                f"{run_dir}: its training job {record.name} is of account {record.account}, not {self._aws.account};"
                " log in there, e.g. by AWS_PROFILE"
            )
        return record

    def _is_to_be_collected(self, record: JobRecord) -> bool:
        """Whether the last training job still runs, or has ended and nobody has brought back what it left."""
        return not record.is_collected and self._jobs.state_of(record.name) in ("InProgress", "Stopping", "Completed")

    def _watch(self, handle: JobHandle, record: JobRecord, folder: RunFolder | None) -> None:
        self._running[handle] = self._jobs.watch(record, folder)
        handle.is_started = True

    def _look(self) -> None:
        if time.monotonic() < self._next_look or not self._running:
            return
        self._jobs.look(list(self._running.values()))
        for handle, job in list(self._running.items()):
            handle.note = job.note
            if job.is_over and self._jobs.end(job):
                self._end(handle, job)
        self._next_look = time.monotonic() + self.settings.poll_s

    def _end(self, handle: JobHandle, job: TrainingJob) -> None:
        handle.failure, handle.exit_code = job.failure, self._jobs.exit_code(job)
        answer = None
        if job.folder is not None:
            job.folder.close()
        else:
            try:
                answer = fetch_answer(self._aws, job.record, ANSWER_FILE, self._folder / f".{job.record.name}.answer")
            except (InputError, OSError) as error:
                handle.failure = str(error)
        if handle.failure is None and answer is None and job.status == "Failed":
            reason = job.record.ended.get("failure_reason", "no reason is given")
            handle.failure = None if job.folder is not None else one_line(reason)
        self.composer.end(handle, answer)
        self._forget(handle)

    def _let_go(self, handle: JobHandle) -> None:
        """Leave a job to itself: `binventory sagemaker attach` collects it."""
        folder = self._running[handle].folder
        if folder is not None:
            folder.close()
        handle.is_detached = True
        self._forget(handle)

    def _forget(self, handle: JobHandle) -> None:
        del self._running[handle]
        self._ended.append(handle)
        self._has_no_quota = False


def _refuse_around_jobs(context: HydraContext, config: DictConfig) -> None:
    """Refuse what Hydra would do around a job, in its container.

    Raises:
        ConfigError: a callback of jobs, or how they log.
    """
    for callback in context.callbacks.callbacks:
        for name in ("on_job_start", "on_job_end"):
            if getattr(type(callback), name, None) not in (None, getattr(Callback, name)):
                raise ConfigError(
                    f"hydra.callbacks: {type(callback).__name__}.{name} is for the process of a job, which"
                    " hydra/launcher=sagemaker starts elsewhere; leave it out, or take hydra/launcher=local"
                )
    said = OmegaConf.to_container(config.hydra.overrides.hydra, resolve=False)  # some can only be answered in a job
    assert isinstance(said, list)
    for text in map(str, said):
        if override_key(text).replace("/", ".").startswith(OF_JOB_PROCESS):
            raise ConfigError(
                f"{text}: is for the process of a job, which hydra/launcher=sagemaker starts elsewhere; leave it out"
            )


def _facts(submission: Submission) -> dict[str, Any]:
    """What is worth knowing of where a run was computed."""
    request = submission.request
    resources = request["ResourceConfig"]
    return {
        "instance_type": resources["InstanceType"],
        "instance_count": resources["InstanceCount"],
        "image_uri": request["AlgorithmSpecification"]["TrainingImage"],
        "is_spot": request["EnableManagedSpotTraining"],
        "source": submission.places.source,
    }


def _remove_if_empty(folder: Path) -> None:
    """Take back the folder that resolving its name made, and those above it that hold nothing else: outputs/sweeps."""
    with suppress(OSError):
        for path in (folder, *list(folder.parents)[:2]):
            path.rmdir()
