"""Training jobs: created, looked at, stopped, and brought back when they have ended."""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from binventory.config.capture import one_line
from binventory.data.sources.s3 import split_folder
from binventory.data.sources.watch import StoppedError
from binventory.errors import UserError
from binventory.files import write_text
from binventory.launch.runner import EXIT_FAILED
from binventory.sagemaker.aws import Aws, CallError
from binventory.sagemaker.bucket import S3Folder
from binventory.sagemaker.collect import collect
from binventory.sagemaker.entry import RUN
from binventory.sagemaker.job_log import JobLog
from binventory.sagemaker.record import JobRecord
from binventory.tracking.run_folder import PRUNE_REQUEST, RunFolder

# After these nobody knows whether AWS did it; "": no answer came.
UNCERTAIN = ("", "InternalFailure", "InternalServerError", "ServiceUnavailable", "ServiceUnavailableException")
# What a look may come to that says nothing against the job.
PASSING = (UserError, StoppedError, OSError, ValueError)
MISSING_S, MAX_TRIES = 300.0, 5
ENDED = ("Completed", "Failed", "Stopped")
MAX_CSV_BYTES = 64 << 20
METRICS = "metrics.csv"  # of the epochs so far: the live table and the pruners go by it


@dataclass(eq=False)
class TrainingJob:
    """One training job that somebody here waits for.

    Attributes:
        record: its run's.
        folder: its run folder, opened; None: another application's job.
        log: follows its log.
        status, secondary: as SageMaker says them.
        failure: what went wrong while it was brought back.
        missing_since: when a listing first lacked it. num_tries: to bring it back.
        is_stop_wanted, is_stop_asked: whether somebody here wants its end, and whether SageMaker was told.
    """

    record: JobRecord
    folder: RunFolder | None
    log: JobLog
    status: str = "InProgress"
    secondary: str = "Starting"
    failure: str | None = None
    is_stop_wanted: bool = False
    is_stop_asked: bool = False
    missing_since: float | None = None
    num_tries: int = 0

    @property
    def note(self) -> str:
        """What it does right now, in one line."""
        last = self.log.tail[-1] if self.log.tail else ""
        return f"{self.secondary}: {last}" if last else self.secondary

    @property
    def is_over(self) -> bool:
        """Whether it has ended on SageMaker."""
        return self.status in ENDED


class TrainingJobs:
    """The training jobs of one sweep.

    Args:
        aws: where they run.
        name_prefix: what all their names begin with: one listing tells the state of all of them.
    """

    def __init__(self, aws: Aws, name_prefix: str) -> None:
        self._aws, self._prefix = aws, name_prefix
        self._is_failing = False

    def create(self, request: dict[str, Any]) -> None:
        """Create a training job, once: what an answer that was lost had created is taken for created.

        Raises:
            CallError: refused.
        """
        try:
            self._aws.call("CreateTrainingJob", lambda: self._aws.sagemaker.create_training_job(**request))
        except CallError as error:
            if error.code not in ("ResourceInUse", *UNCERTAIN) or not self._is_created(request):
                raise

    def _is_created(self, request: dict[str, Any]) -> bool:
        """Whether a job that creating gave no clear answer of is there."""
        name = request["TrainingJobName"]
        try:
            found = self._aws.call(
                "DescribeTrainingJob", lambda: self._aws.sagemaker.describe_training_job(TrainingJobName=name)
            )
        except CallError as error:
            return error.code in UNCERTAIN  # better waited for in vain than running on unseen
        return all(found.get(key) == request[key] for key in ("HyperParameters", "OutputDataConfig"))

    def watch(self, record: JobRecord, folder: RunFolder | None) -> TrainingJob:
        """Begin to follow a training job that is there."""
        log = JobLog(self._aws, record.name, None if folder is None else folder.path / "output.log")
        return TrainingJob(record, folder, log)

    def state_of(self, name: str) -> str | None:
        """Return TrainingJobStatus; None where there is no such job. Raises CallError."""
        try:
            status: str = self._aws.training_job(name).training_job_status
            return status
        except CallError as error:
            if error.code in ("ValidationException", "ResourceNotFound"):  # AWS says the first of what is not there
                return None
            raise

    def look(self, jobs: list[TrainingJob]) -> None:
        """Bring jobs up to date: state, log, epochs so far. What cannot be reached is tried next time."""
        failed = [error for error in (self._try(lambda: self._look_at_states(jobs)), *map(self._follow, jobs)) if error]
        if failed and not self._is_failing:  # said once, not every ten seconds
            print(f"warning: {failed[0]}; looking again", file=sys.stderr, flush=True)
        self._is_failing = bool(failed)

    def _follow(self, job: TrainingJob) -> Exception | None:
        """Bring one job's log and epochs up to date, and see that it hears that it shall stop."""
        folder = job.folder
        steps: list[Callable[[], None]] = [job.log.read]
        if job.is_stop_wanted:
            steps.insert(0, lambda: self._ask_to_stop(job))
        if folder is not None:
            steps.append(lambda: self._mirror(job, folder))
        errors = [error for step in steps if (error := self._try(step)) is not None]
        return errors[0] if errors else None

    def _try(self, step: Callable[[], None]) -> Exception | None:
        try:
            step()
        except PASSING as error:
            return error
        return None

    def _look_at_states(self, jobs: list[TrainingJob]) -> None:
        by_name = {job.record.name: job for job in jobs}
        options: dict[str, Any] = {"NameContains": self._prefix, "MaxResults": 100, "SortBy": "CreationTime"}
        while by_name:
            page = self._aws.call(
                "ListTrainingJobs",
                lambda: self._aws.sagemaker.list_training_jobs(**options, SortOrder="Descending"),
            )
            for summary in page["TrainingJobSummaries"]:
                job = by_name.pop(summary["TrainingJobName"], None)
                if job is not None:
                    job.status = summary["TrainingJobStatus"]
                    job.secondary = summary.get("SecondaryStatus", job.status)
            if "NextToken" not in page:
                break
            options["NextToken"] = page["NextToken"]
        for job in by_name.values():
            self._look_for(job)

    def _look_for(self, job: TrainingJob) -> None:
        """A job that no listing has, long after it was created, is not there."""
        job.missing_since = job.missing_since or time.monotonic()
        if time.monotonic() - job.missing_since > MISSING_S and self.state_of(job.record.name) is None:
            job.status = job.secondary = "Failed"

    def _mirror(self, job: TrainingJob, folder: RunFolder) -> None:
        if job.is_over:
            return
        state = folder.read_state()
        if job.secondary == "Training" and state == "queued":
            folder.write_status("running")
        if (folder.path / PRUNE_REQUEST).exists():
            self.stop(job)
        bucket, prefix = split_folder(job.record.checkpoints)
        rows = S3Folder(self._aws.s3(), bucket, prefix).read(f"{RUN}/{METRICS}", MAX_CSV_BYTES)
        if rows:
            write_text(folder.path / METRICS, rows.decode("utf-8", "replace"))

    def stop(self, job: TrainingJob) -> None:
        """Ask for a job's end: it gets SIGTERM, and two minutes to save. Asked again until SageMaker has heard it."""
        job.is_stop_wanted = True
        try:
            self._ask_to_stop(job)
        except CallError as error:
            print(f"warning: {error}; asking again", file=sys.stderr, flush=True)

    def _ask_to_stop(self, job: TrainingJob) -> None:
        if job.is_stop_asked or job.is_over:
            return
        name = job.record.name
        try:
            self._aws.call("StopTrainingJob", lambda: self._aws.sagemaker.stop_training_job(TrainingJobName=name))
        except CallError as error:
            if error.code != "ValidationException":  # it has just ended by itself
                raise
        job.is_stop_asked = True

    def end(self, job: TrainingJob) -> bool:
        """Bring back what an ended job left; why that cannot be is in `job.failure`.

        Returns:
            False where AWS did not answer: to be tried again.
        """
        log_error = self._try(job.log.read)  # may be missing; the result is not for that
        if log_error is not None:
            print(f"warning: {log_error}; the log of {job.record.name} ends early", file=sys.stderr, flush=True)
        try:
            job.record.ended = self._ending(job.record.name)
            if job.folder is not None:
                collect(self._aws, job.record, job.folder, job.log.tail)
        except CallError as error:
            job.num_tries += 1
            job.failure = str(error)
            return job.num_tries >= MAX_TRIES
        except (*PASSING, KeyError, TypeError, csv.Error) as error:  # whatever an archive of a stranger may hold
            said = one_line(str(error) or type(error).__name__)
            is_told = isinstance(error, UserError)
            job.failure = str(error) if is_told else f"{job.record.output}/{job.record.name}: {said}"
        else:
            job.failure = None
        return True

    def _ending(self, name: str) -> dict[str, Any]:
        described = self._aws.training_job(name)
        facts = {
            "status": described.training_job_status,
            "secondary_status": described.secondary_status,
            "failure_reason": described.failure_reason,
            "training_seconds": described.training_time_in_seconds,
            "billable_seconds": described.billable_time_in_seconds,
            "transitions": [transition.status for transition in described.secondary_status_transitions or []],
        }
        return {name: value for name, value in facts.items() if isinstance(value, str | int | list)}

    def exit_code(self, job: TrainingJob) -> int:
        """Return an ended job's exit code, as its run folder says it, else as SageMaker does."""
        if job.folder is not None and job.failure is None:
            code = job.folder.read_status().get("exit_code")
            return code if isinstance(code, int) else EXIT_FAILED
        return 0 if job.failure is None and job.status == "Completed" else EXIT_FAILED
