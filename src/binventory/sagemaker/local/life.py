"""The life of one training job, from its start over interruptions to its end."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from binventory.errors import UserError
from binventory.sagemaker.local.container import OPT_ML, Container, write_config
from binventory.sagemaker.local.faults import Interruption
from binventory.sagemaker.local.jobs import ENDINGS, FAILURE_REASON_LENGTH, Job
from binventory.sagemaker.local.logs import LogStream
from binventory.sagemaker.local.transfer import CheckpointSync, DownloadError, Order, download, upload_archive

POLL_S = 0.05
LOG_END_S = 10.0  # a process that escaped its container may hold the output open
STOP_GRACE_S = 120.0  # between SIGTERM and SIGKILL, as on AWS
NO_CAPACITY = (
    "CapacityError: Unable to provision requested ML compute capacity. Please retry using a different ML instance type."
)


@dataclass
class Plant:
    """What jobs are run with.

    Attributes:
        s3, logs: boto3 clients.
        toolkit: Python of the training toolkit, made on its first use.
        folder: where instances live; every job removes its own folder in the end.
        environment: what every container gets besides its request's Environment.
        namespace: see container.namespace_command.
        time_scale: seconds of job time that pass in one real second; limits and graces are in job time.
        checkpoint_period_s: real seconds between two uploads of the checkpoint directory.
        upload_order: in which order changed checkpoint files are uploaded.
        is_closing: set when the control plane ends: jobs are stopped without grace.
    """

    s3: Any
    logs: Any
    toolkit: Callable[[], Path]
    folder: Path
    environment: Mapping[str, str]
    namespace: Sequence[str] | None
    time_scale: float
    checkpoint_period_s: float
    upload_order: Order
    is_closing: threading.Event = field(default_factory=threading.Event)
    _addresses: set[int] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def now(self) -> float:
        """Job time, seconds since some moment."""
        return time.monotonic() * self.time_scale

    def take_addresses(self, count: int) -> list[int]:
        """Numbers of loopback addresses that no other running job has: n stands for 127.0.0.n, from 2 on."""
        with self._lock:
            free = (number for number in range(2, 255) if number not in self._addresses)
            taken = [next(free) for _ in range(count)]
            self._addresses.update(taken)
            return taken

    def give_back(self, addresses: Sequence[int]) -> None:
        """Let other jobs have these addresses."""
        with self._lock:
            self._addresses.difference_update(addresses)


class JobLife:
    """Runs one job to its end; `run` is a thread's."""

    def __init__(self, job: Job, plant: Plant) -> None:
        self._job, self._plant, self._request = job, plant, job.request
        self._folder = plant.folder / job.name
        limits = self._request["StoppingCondition"]
        self._max_runtime_s = float(limits.get("MaxRuntimeInSeconds", 86_400))
        self._max_wait_s = float(limits.get("MaxWaitTimeInSeconds", "inf"))
        self._created = plant.now()
        self._mls: list[Path] = []  # what the last attempt's hosts see as /opt/ml
        count = int(self._request["ResourceConfig"]["InstanceCount"])
        self._addresses = plant.take_addresses(count)
        self._hosts = [f"algo-{rank}" for rank in range(1, count + 1)] if plant.namespace else ["localhost"]

    def run(self) -> None:
        """Move the job from state to state; whatever happens, it ends and leaves nothing."""
        ending = "Failed"
        try:
            ending = self._live()
        except (DownloadError, UserError) as error:
            self._job.failure_reason = str(error)
        except Exception as error:
            self._job.failure_reason = f"InternalServerError: {type(error).__name__}: {error}"
            raise
        finally:
            if self._job.training_started is not None:
                self._job.training_ended = time.time()
            shutil.rmtree(self._folder, ignore_errors=True)
            self._plant.give_back(self._addresses)
            self._job.move(ending)
            self._job.ended.set()

    def _live(self) -> str:
        ending = self._wait_for_instances()
        first_start = self._plant.now()
        while not ending:
            started = self._plant.now()
            try:
                ending = self._attempt()
            finally:
                self._job.billable_s += self._plant.now() - started
                self._job.training_s = self._plant.now() - first_start
            if ending == "Interrupted":
                ending = self._limit() if self._job.move_unless_stopping("Interrupted") else "Stopped"
                if not ending and not self._job.move_unless_stopping("Restarting"):
                    ending = "Stopped"
        return ending

    def _wait_for_instances(self) -> str:
        faults = self._job.faults
        if faults.get("no_capacity") and not self._job.is_spot:
            self._job.failure_reason = NO_CAPACITY
            return "Failed"
        self._job.move_unless_stopping("Pending")
        wait_s = float("inf") if faults.get("no_capacity") else faults.get("slow_start", 0.0)
        until = self._plant.now() + wait_s
        while self._plant.now() < until:
            if ending := self._limit():
                return ending
            self._job.stop_asked.wait(POLL_S)
        return self._limit()

    def _limit(self, attempt_started: float | None = None) -> str:
        """The SecondaryStatus that the job must end with now, "" for none."""
        if self._job.stop_asked.is_set():
            return "Stopped"
        now = self._plant.now()
        if now - self._created >= self._max_wait_s:
            return "MaxWaitTimeExceeded"
        ran_s = self._job.billable_s + (now - attempt_started if attempt_started is not None else 0.0)
        return "MaxRuntimeExceeded" if ran_s >= self._max_runtime_s else ""

    def _attempt(self) -> str:
        """Run the instances once; returns the job's ending, or "Interrupted"."""
        job, started = self._job, self._plant.now()
        job.num_attempts += 1
        if not job.move_unless_stopping("Downloading"):
            return "Stopped"
        if job.training_started is None:
            job.training_started = time.time()
        home = self._folder / f"attempt-{job.num_attempts}"
        self._mls = [home / host / "ml" for host in self._hosts]
        syncs = self._download()
        if not job.move_unless_stopping("Training"):
            return "Stopped"
        containers, streams = self._start(home)
        ending = "Failed"
        try:
            ending = self._watch(containers, syncs, started)
        finally:
            for container in containers:
                container.kill()
            for stream in streams:
                stream.join(LOG_END_S)
            if ending != "Interrupted":
                self._push(syncs, None)
            job.uploads += [name for sync in syncs for name in sync.uploaded]
        if ending != "Interrupted":
            self._upload(ending)
        shutil.rmtree(home, ignore_errors=True)
        return ending

    def _download(self) -> list[CheckpointSync]:
        """Bring channels and checkpoints to every host."""
        syncs = []
        checkpoints = self._request.get("CheckpointConfig")
        for rank, (host, ml) in enumerate(zip(self._hosts, self._mls, strict=True)):
            interface = "lo" if self._plant.namespace else "eth0"
            write_config(ml, self._request, host, self._hosts, network_interface=interface)
            for channel in self._request.get("InputDataConfig") or []:
                source = channel["DataSource"]["S3DataSource"]
                is_sharded = source.get("S3DataDistributionType") == "ShardedByS3Key"
                shard = (rank, len(self._hosts)) if is_sharded else (0, 1)
                download(self._plant.s3, source["S3Uri"], ml / "input" / "data" / channel["ChannelName"], shard=shard)
            if checkpoints:
                local = ml / Path(checkpoints.get("LocalPath", f"{OPT_ML}/checkpoints")).relative_to(OPT_ML)
                local.mkdir(parents=True, exist_ok=True)
                sync = CheckpointSync(self._plant.s3, local, checkpoints["S3Uri"], self._plant.upload_order)
                sync.pull()
                syncs.append(sync)
        return syncs

    def _start(self, home: Path) -> tuple[list[Container], list[LogStream]]:
        addresses = {host: f"127.0.0.{number}" for host, number in zip(self._hosts, self._addresses, strict=True)}
        environment = {
            **self._plant.environment,
            "TRAINING_JOB_NAME": self._job.name,
            "TRAINING_JOB_ARN": self._job.arn,
            **(self._request.get("Environment") or {}),
        }
        containers: list[Container] = []
        streams: list[LogStream] = []
        toolkit = self._plant.toolkit()
        started_ms = time.time_ns() // 1_000_000
        try:
            for rank, host in enumerate(self._hosts, 1):
                container = Container(home / host, host, addresses, toolkit, environment, self._plant.namespace)
                containers.append(container)
                name = f"{self._job.name}/algo-{rank}-{started_ms}"
                streams.append(LogStream(self._plant.logs, name, container.output))
        except BaseException:
            for container in containers:
                container.kill()
            raise
        return containers, streams

    def _watch(self, containers: Sequence[Container], syncs: Sequence[CheckpointSync], started: float) -> str:
        """Wait for the end of the attempt; returns the job's ending, or "Interrupted"."""
        training_from = self._plant.now()
        next_push = time.monotonic() + self._plant.checkpoint_period_s
        while True:
            statuses = [container.exit_status() for container in containers]
            if any(statuses) or None not in statuses:
                return self._exited(statuses)
            if ending := self._limit(started):
                if ending != "Stopped":
                    self._job.move("Stopping")
                self._stop(containers, STOP_GRACE_S)
                return ending
            if interruption := self._due(syncs, training_from):
                limit = interruption.upload_limit
                if interruption.sigterm:
                    self._stop(containers, interruption.grace_s)
                elif limit is None:
                    limit = 0  # nobody is left to upload anything
                for container in containers:
                    container.kill()
                self._push(syncs, limit)
                return "Interrupted"
            if time.monotonic() >= next_push:
                self._push(syncs, None)
                next_push = time.monotonic() + self._plant.checkpoint_period_s
            self._job.stop_asked.wait(POLL_S)

    def _due(self, syncs: Sequence[CheckpointSync], training_from: float) -> Interruption | None:
        planned: Sequence[Interruption] = self._job.faults.get("interrupt", ())
        if not self._job.is_spot or self._job.num_attempts > len(planned):
            return None
        interruption = planned[self._job.num_attempts - 1]
        is_time = interruption.after_s is not None and self._plant.now() - training_from >= interruption.after_s
        is_there = interruption.when_file is not None and any(sync.has(interruption.when_file) for sync in syncs)
        return interruption if is_time or is_there else None

    def _stop(self, containers: Sequence[Container], grace_s: float) -> None:
        for container in containers:
            container.terminate()
        deadline = time.monotonic() + grace_s / self._plant.time_scale
        while any(container.exit_status() is None for container in containers) and time.monotonic() < deadline:
            if self._plant.is_closing.wait(POLL_S):
                break

    def _exited(self, statuses: Sequence[int | None]) -> str:
        if not any(statuses):
            return "Completed"
        rank, status = next((rank, status) for rank, status in enumerate(statuses) if status)
        failure = self._mls[rank] / "output" / "failure"
        said = failure.read_bytes().decode("utf-8", "replace") if failure.is_file() else ""
        start, end = "AlgorithmError: ", f", exit code: {status}"
        self._job.failure_reason = start + said[: FAILURE_REASON_LENGTH - len(start + end)] + end
        return "Failed"

    def _push(self, syncs: Sequence[CheckpointSync], limit: int | None) -> None:
        for sync in syncs:
            before = len(sync.uploaded)
            sync.push(limit)
            if limit is not None:
                limit -= len(sync.uploaded) - before

    def _upload(self, ending: str) -> None:
        assert ending in ENDINGS
        self._job.move("Uploading")
        if ending != "Failed":
            upload_archive(self._plant.s3, [ml / "model" for ml in self._mls], self._job.model_uri)
        outputs = [ml / "output" / "data" for ml in self._mls]
        upload_archive(self._plant.s3, outputs, self._job.output_uri("output.tar.gz"))
