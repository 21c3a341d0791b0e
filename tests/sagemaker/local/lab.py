"""Training jobs of tiny scripts on a local control plane, created by boto3 as any client would."""

from __future__ import annotations

import io
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from botocore.auth import S3SigV4Auth, SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from binventory.sagemaker.local.guard import Keys
from binventory.sagemaker.local.jobs import Job
from binventory.sagemaker.local.logs import GROUP
from binventory.sagemaker.local.server import LocalSageMaker

BUCKET = "lab-bucket"
IMAGE = "763104351884.dkr.ecr.us-east-1.amazonaws.com/pytorch-training:2.9.0-cpu-py312"
MARK = "LAB_MARK"  # in the environment of every process of a lab's jobs

# Every script begins with these names
PRELUDE = """
import json, os, signal, socket, subprocess, sys, time
from pathlib import Path
model, output = Path(os.environ["SM_MODEL_DIR"]), Path(os.environ["SM_OUTPUT_DATA_DIR"])
checkpoints = model.parent / "checkpoints"
def say(name, value):
    (output / (name + ".json")).write_text(json.dumps(value))
"""


def tar_gz(files: dict[str, str]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    return content.getvalue()


def wait_until(condition: Callable[[], Any], timeout_s: float = 20) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not so in time"
        time.sleep(0.02)


def marked_processes(mark: str) -> list[psutil.Process]:
    """Processes whose environment holds the mark, zombies left out."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return found


class Lab:
    """A control plane with a bucket, and scripts that run on it."""

    def __init__(self, plane: LocalSageMaker) -> None:
        self.plane = plane
        self.sagemaker, self.s3, self.logs = (plane.client(name) for name in ("sagemaker", "s3", "logs"))
        self.s3.create_bucket(Bucket=BUCKET)
        self.put("data/a.txt", "alpha")
        self.put("data/deep/b.txt", "beta")

    def put(self, key: str, content: str | bytes) -> None:
        self.s3.put_object(Bucket=BUCKET, Key=key, Body=content)

    def keys(self, prefix: str) -> list[str]:
        listed = self.s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix).get("Contents", [])
        return [item["Key"][len(prefix) :] for item in listed]

    def read(self, key: str) -> str:
        text: str = self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read().decode()
        return text

    def request(self, name: str, **changes: Any) -> dict[str, Any]:
        """A valid CreateTrainingJob request; a change of None takes a member away."""
        source = {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/data"}
        request = {
            "TrainingJobName": name,
            "RoleArn": self.plane.role_arn,
            "AlgorithmSpecification": {"TrainingImage": IMAGE, "TrainingInputMode": "File"},
            "HyperParameters": {
                "sagemaker_program": "train.py",
                "sagemaker_submit_directory": f"s3://{BUCKET}/code/{name}.tar.gz",
            },
            "InputDataConfig": [{"ChannelName": "photos", "DataSource": {"S3DataSource": source}}],
            "OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out/"},
            "ResourceConfig": {"InstanceType": "ml.g4dn.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 30},
            "StoppingCondition": {"MaxRuntimeInSeconds": 3600},
        } | changes
        return {member: value for member, value in request.items() if value is not None}

    def spot(self, name: str, **changes: Any) -> dict[str, Any]:
        """A valid request for a spot job with checkpoints."""
        spot = {
            "EnableManagedSpotTraining": True,
            "StoppingCondition": {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200},
            "CheckpointConfig": {"S3Uri": f"s3://{BUCKET}/checkpoints/{name}"},
        }
        return self.request(name, **(spot | changes))

    def start(self, request: dict[str, Any], script: str, files: dict[str, str] | None = None) -> str:
        name: str = request["TrainingJobName"]
        self.put(f"code/{name}.tar.gz", tar_gz({"train.py": PRELUDE + script} | (files or {})))
        self.sagemaker.create_training_job(**request)
        return name

    def run(self, request: dict[str, Any], script: str, files: dict[str, str] | None = None) -> dict[str, Any]:
        """Run a job to its end and return its description."""
        return self.finish(self.start(request, script, files))

    def finish(self, name: str, timeout_s: float = 60) -> dict[str, Any]:
        self.plane.wait(name, timeout_s)
        described: dict[str, Any] = self.sagemaker.describe_training_job(TrainingJobName=name)
        return described

    def job(self, name: str) -> Job:
        return self.plane.jobs[name]

    def wait_for_training(self, name: str, key: str = "ready") -> None:
        """Wait until the script has written a checkpoint file of this name and it has been uploaded."""
        wait_until(lambda: key in self.keys(f"checkpoints/{name}/"))

    def unpacked(self, name: str, archive: str) -> dict[str, str]:
        """Files of an output archive of a job."""
        body = self.s3.get_object(Bucket=BUCKET, Key=f"out/{name}/output/{archive}")["Body"].read()
        with tarfile.open(fileobj=io.BytesIO(body)) as opened:
            members = [member for member in opened.getmembers() if member.isfile()]
            return {member.name: opened.extractfile(member).read().decode() for member in members}  # type: ignore[union-attr]

    def log(self, name: str) -> list[str]:
        """Lines of all streams of a job."""
        streams = self.logs.describe_log_streams(logGroupName=GROUP, logStreamNamePrefix=f"{name}/")["logStreams"]
        lines = []
        for stream in streams:
            events = self.logs.get_log_events(
                logGroupName=GROUP, logStreamName=stream["logStreamName"], startFromHead=True
            )
            lines += [event["message"] for event in events["events"]]
        return lines


def signed_headers(
    keys: Keys,
    method: str,
    url: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
    service: str = "sagemaker",
) -> dict[str, str]:
    """The headers of a request that no client would make, signed."""
    request = AWSRequest(method, url, dict(headers or {}), body)
    (S3SigV4Auth if service == "s3" else SigV4Auth)(Credentials(*keys), service, "us-east-1").add_auth(request)
    return dict(request.headers.items())


def states(described: dict[str, Any]) -> list[str]:
    return [transition["Status"] for transition in described["SecondaryStatusTransitions"]]


def fresh_mark(folder: Path) -> str:
    return str(folder)  # a test's own folder: nothing else has it in its environment
