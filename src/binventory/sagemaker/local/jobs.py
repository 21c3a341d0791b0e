"""A training job as the API shows it: its request, where it stands, and how it got there."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any

# AWS's words for each SecondaryStatus.
MESSAGES = {
    "Starting": "Starting the training job",
    "Pending": "Training job waiting for capacity",
    "Downloading": "Downloading input data",
    "Training": "Training image download completed. Training in progress.",
    "Interrupted": "Training job interrupted because the spot instances were reclaimed",
    "Restarting": "Restarting the training job",
    "Stopping": "Stopping the training job",
    "Uploading": "Uploading generated training model",
    "Completed": "Training job completed",
    "Failed": "Training job failed",
    "Stopped": "Training job stopped",
    "MaxRuntimeExceeded": "Training job runtime exceeded MaxRuntimeInSeconds provided",
    "MaxWaitTimeExceeded": "Training job wait time exceeded MaxWaitTimeInSeconds provided",
}
# SecondaryStatus -> the TrainingJobStatus that it ends with
ENDINGS = {
    "Completed": "Completed",
    "Failed": "Failed",
    "Stopped": "Stopped",
    "MaxRuntimeExceeded": "Stopped",
    "MaxWaitTimeExceeded": "Stopped",
}
FAILURE_REASON_LENGTH = 1024
# Members of a job's entry in ListTrainingJobs
SUMMARY = (
    "TrainingJobName",
    "TrainingJobArn",
    "CreationTime",
    "TrainingEndTime",
    "LastModifiedTime",
    "TrainingJobStatus",
    "SecondaryStatus",
)


@dataclass
class Job:
    """One training job. Its thread moves it on; API calls read it and ask it to stop.

    Attributes:
        request: CreateTrainingJob's, as it came.
        faults: see Faults.take.
        tags: key -> value.
        stop_asked: set by StopTrainingJob.
        ended: set once the job has ended and nothing of it is left.
        num_attempts: how often its instances were started.
        uploads: checkpoint files in the order in which they reached S3, over all attempts.
    """

    request: dict[str, Any]
    arn: str
    faults: dict[str, Any]
    tags: dict[str, str]
    created: float = field(default_factory=time.time)
    status: str = "InProgress"
    transitions: list[dict[str, Any]] = field(default_factory=list)
    failure_reason: str = ""
    training_started: float | None = None
    training_ended: float | None = None
    training_s: float = 0.0
    billable_s: float = 0.0
    num_attempts: int = 0
    uploads: list[str] = field(default_factory=list)
    stop_asked: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @property
    def name(self) -> str:
        """TrainingJobName."""
        name: str = self.request["TrainingJobName"]
        return name

    @property
    def is_spot(self) -> bool:
        """Whether it asked for spot instances."""
        return bool(self.request.get("EnableManagedSpotTraining"))

    @property
    def secondary(self) -> str:
        """SecondaryStatus."""
        with self._lock:
            status: str = self.transitions[-1]["Status"]
            return status

    @property
    def modified(self) -> float:
        """When its state last changed, seconds since 1970."""
        with self._lock:
            moment: float = self.transitions[-1]["StartTime"]
            return moment

    @property
    def model_uri(self) -> str:
        """Where its model archive goes."""
        return self.output_uri("model.tar.gz")

    def output_uri(self, name: str) -> str:
        """Where a file of the job's output goes."""
        root: str = self.request["OutputDataConfig"]["S3OutputPath"]
        return f"{root.rstrip('/')}/{self.name}/output/{name}"

    def move(self, secondary: str) -> None:
        """Go on to the next SecondaryStatus; the last one ends the job."""
        now = time.time()
        with self._lock:
            if self.transitions:
                self.transitions[-1]["EndTime"] = now
            self.transitions.append({"Status": secondary, "StartTime": now, "StatusMessage": MESSAGES[secondary]})
            self.status = ENDINGS.get(secondary, self.status)
            if secondary in ENDINGS:
                self.transitions[-1]["EndTime"] = now

    def ask_to_stop(self) -> bool:
        """Begin to stop; False when the job has ended already."""
        with self._lock:
            if self.status not in ("InProgress", "Stopping"):
                return False
            if self.status == "InProgress":
                self.status = "Stopping"
                self.move("Stopping")
            self.stop_asked.set()
            return True

    def move_unless_stopping(self, secondary: str) -> bool:
        """`move`, but not once somebody asked the job to stop; then False."""
        with self._lock:
            if self.status != "InProgress":
                return False
            self.move(secondary)
            return True

    def describe(self) -> dict[str, Any]:
        """DescribeTrainingJob's answer; times in seconds since 1970."""
        shown = {key: value for key, value in self.request.items() if key not in ("Tags", "SessionChainingConfig")}
        with self._lock:
            shown |= {
                "TrainingJobArn": self.arn,
                "TrainingJobStatus": self.status,
                "SecondaryStatus": self.secondary,
                "SecondaryStatusTransitions": [dict(transition) for transition in self.transitions],
                "CreationTime": self.created,
                "LastModifiedTime": self.modified,
            }
            if self.failure_reason:
                shown["FailureReason"] = self.failure_reason[:FAILURE_REASON_LENGTH]
            if self.training_started is not None:
                shown["TrainingStartTime"] = self.training_started
            if self.training_ended is not None:
                shown["TrainingEndTime"] = self.training_ended
                shown["TrainingTimeInSeconds"] = max(1, round(self.training_s))
                shown["BillableTimeInSeconds"] = max(1, round(self.billable_s))
            if self.status in ("Completed", "Stopped") and self.training_started is not None:
                shown["ModelArtifacts"] = {"S3ModelArtifacts": self.model_uri}
        return shown

    def summary(self) -> dict[str, Any]:
        """The job's entry in ListTrainingJobs."""
        described = self.describe()
        return {name: described[name] for name in SUMMARY if name in described}
