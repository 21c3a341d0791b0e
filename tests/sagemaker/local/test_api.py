"""Listing, tags, duplicates, throttling: calls of unmodified clients about jobs that need not run."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from binventory.errors import ConfigError
from binventory.sagemaker.local.faults import Faults, Interruption
from binventory.sagemaker.local.server import LocalSageMaker
from tests.sagemaker.local.conftest import CACHE, TIME_SCALE
from tests.sagemaker.local.lab import Lab, states, wait_until

NAMES = [f"{word}-{number}" for number, word in enumerate(["grid", "Sweep", "grid", "spot", "sweep"])]


@pytest.fixture(scope="module")
def five(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Five jobs that find no capacity: two fail at once, three spot jobs wait."""
    with LocalSageMaker(tmp_path_factory.mktemp("five"), cache=CACHE, time_scale=TIME_SCALE) as plane:
        lab = Lab(plane)
        plane.faults.no_capacity("*", jobs=len(NAMES))
        for number, name in enumerate(NAMES):
            time.sleep(0.01)
            request = lab.spot if number > 1 else lab.request
            lab.sagemaker.create_training_job(**request(name, Tags=[{"Key": "number", "Value": str(number)}]))
        for name in NAMES[:2]:
            lab.finish(name)
        yield lab


def listed(lab: Lab, **query: Any) -> list[str]:
    answer = lab.sagemaker.list_training_jobs(**query)
    return [summary["TrainingJobName"] for summary in answer["TrainingJobSummaries"]]


def test_list_sorts(five: Lab) -> None:
    assert listed(five) == NAMES
    assert listed(five, SortOrder="Descending") == NAMES[::-1]
    assert listed(five, SortBy="Name") == sorted(NAMES)
    assert listed(five, SortBy="Status", SortOrder="Descending")[:3] == NAMES[2:]


def test_list_filters(five: Lab) -> None:
    assert listed(five, NameContains="grid") == ["grid-0", "grid-2"]
    assert listed(five, StatusEquals="Failed") == NAMES[:2]
    assert listed(five, StatusEquals="InProgress", NameContains="sweep") == ["sweep-4"]
    third = five.sagemaker.describe_training_job(TrainingJobName=NAMES[2])["CreationTime"]
    assert listed(five, CreationTimeAfter=third) in (NAMES[2:], NAMES[3:])  # clients send whole seconds
    later = third + datetime.timedelta(hours=1)
    assert listed(five, CreationTimeAfter=later) == []
    assert listed(five, CreationTimeBefore=later) == NAMES
    assert listed(five, LastModifiedTimeAfter=later) == []
    assert listed(five, LastModifiedTimeBefore=later) == NAMES
    assert listed(five, WarmPoolStatusEquals="Available") == []


def test_list_in_pages(five: Lab) -> None:
    pages = five.sagemaker.get_paginator("list_training_jobs").paginate(PaginationConfig={"PageSize": 2})
    found = [[job["TrainingJobName"] for job in page["TrainingJobSummaries"]] for page in pages]
    assert found == [NAMES[:2], NAMES[2:4], NAMES[4:]]
    token = five.sagemaker.list_training_jobs(MaxResults=2)["NextToken"]
    for query in ({"NextToken": "nonsense"}, {"NextToken": token, "NameContains": "grid"}):
        with pytest.raises(ClientError, match="Invalid pagination token"):
            five.sagemaker.list_training_jobs(**query)
    assert listed(five, NextToken=token, MaxResults=1) == [NAMES[2]]


def test_tags(five: Lab) -> None:
    arn = five.sagemaker.describe_training_job(TrainingJobName="grid-0")["TrainingJobArn"]
    assert arn == "arn:aws:sagemaker:us-east-1:123456789012:training-job/grid-0"
    added = five.sagemaker.add_tags(
        ResourceArn=arn, Tags=[{"Key": "owner", "Value": "a"}, {"Key": "number", "Value": "9"}]
    )
    expected = [{"Key": "number", "Value": "9"}, {"Key": "owner", "Value": "a"}]
    assert added["Tags"] == five.sagemaker.list_tags(ResourceArn=arn)["Tags"] == expected
    five.sagemaker.delete_tags(ResourceArn=arn, TagKeys=["number", "unknown"])
    assert five.sagemaker.list_tags(ResourceArn=arn)["Tags"] == expected[1:]
    many = [{"Key": f"k{number}", "Value": ""} for number in range(50)]
    with pytest.raises(ClientError, match=r"ResourceLimitExceeded.*at most 50 tags"):
        five.sagemaker.add_tags(ResourceArn=arn, Tags=many)
    with pytest.raises(ClientError, match="must not begin with aws:"):
        five.sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "AWS:x", "Value": ""}])
    with pytest.raises(ClientError, match="Requested resource not found"):
        five.sagemaker.list_tags(ResourceArn=f"{arn}-not")


def test_no_capacity(five: Lab) -> None:
    failed = five.sagemaker.describe_training_job(TrainingJobName="grid-0")
    assert (failed["TrainingJobStatus"], states(failed)) == ("Failed", ["Starting", "Failed"])
    assert failed["FailureReason"].startswith("CapacityError: ")
    assert not {"TrainingStartTime", "BillableTimeInSeconds", "ModelArtifacts"} & set(failed)
    waiting = five.sagemaker.describe_training_job(TrainingJobName="grid-2")
    assert (waiting["TrainingJobStatus"], waiting["SecondaryStatus"]) == ("InProgress", "Pending")


def test_names_are_unique(five: Lab) -> None:
    with pytest.raises(five.sagemaker.exceptions.ResourceInUse, match="a training job with this name already exists"):
        five.sagemaker.create_training_job(**five.request("grid-0"))


def test_a_job_that_is_not_there(five: Lab) -> None:
    for call in (five.sagemaker.describe_training_job, five.sagemaker.stop_training_job):
        with pytest.raises(ClientError, match=r"ValidationException.*Requested resource not found"):
            call(TrainingJobName="grid-9")


def test_throttling_passes(five: Lab) -> None:
    five.plane.faults.throttle(2, "DescribeTrainingJob")
    assert listed(five) == NAMES  # another operation
    before = len(five.plane.requests)
    five.sagemaker.describe_training_job(TrainingJobName="grid-0")  # the client tries again
    answers = [seen.error for seen in five.plane.requests[before:]]
    assert answers == ["ThrottlingException", "ThrottlingException", ""]


def test_requests_are_kept_whole(five: Lab, tmp_path: Path) -> None:
    five.plane.faults.slow_start("kept", 3600)
    request = five.spot("kept", Environment={"A": "b"}, RetryStrategy={"MaximumRetryAttempts": 3})
    five.sagemaker.create_training_job(**request)
    assert five.plane.requests[-1].body == request
    files = sorted((five.plane.folder / "requests").glob("*.json"))
    assert len(files) == len(five.plane.requests)
    assert json.loads(files[-1].read_text()) == {"operation": "CreateTrainingJob", "error": "", "request": request}
    described = five.sagemaker.describe_training_job(TrainingJobName="kept")
    assert {name: described.get(name) for name in request} == request
    five.sagemaker.stop_training_job(TrainingJobName="kept")
    stopped = five.finish("kept")
    assert (stopped["TrainingJobStatus"], states(stopped)) == (
        "Stopped",
        ["Starting", "Pending", "Stopping", "Stopped"],
    )
    with pytest.raises(ClientError, match="rejected because the training job is in status Stopped"):
        five.sagemaker.stop_training_job(TrainingJobName="kept")


def test_s3_sts_iam_and_logs_answer(five: Lab) -> None:
    plane = five.plane
    assert plane.client("sts").get_caller_identity()["Account"] == "123456789012"
    assert plane.client("iam").get_role(RoleName="binventory-local")["Role"]["Arn"] == plane.role_arn
    assert plane.client("logs").describe_log_groups()["logGroups"][0]["logGroupName"] == "/aws/sagemaker/TrainingJobs"


def test_nothing_leads_to_aws(five: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    import boto3

    for name, value in five.plane.environment.items():
        monkeypatch.setenv(name, value)
    session = boto3.Session()
    for service in session.get_available_services():
        if service in ("sagemaker", "s3", "sts", "iam", "logs", "ec2", "secretsmanager", "sagemaker-runtime"):
            client = session.client(service)  # type: ignore[call-overload]
            assert client.meta.endpoint_url.startswith("http://127.0.0.1:"), service
    with pytest.raises(ClientError):
        session.client("secretsmanager").list_secrets()
    assert "secretsmanager.ListSecrets" in five.plane.unknown


def test_max_wait_is_over_without_capacity(five: Lab) -> None:
    five.plane.faults.no_capacity("never", jobs=1)
    limits = {"MaxRuntimeInSeconds": 20, "MaxWaitTimeInSeconds": 30}
    five.sagemaker.create_training_job(**five.spot("never", StoppingCondition=limits))
    described = five.finish("never")
    assert (described["TrainingJobStatus"], described["SecondaryStatus"]) == ("Stopped", "MaxWaitTimeExceeded")
    assert states(described) == ["Starting", "Pending", "MaxWaitTimeExceeded"]


def test_faults_as_the_command_line_names_them() -> None:
    faults = Faults()
    for text in ("interrupt=a-*:after_s=5", "interrupt=a-*:when_file=*.ckpt,sigterm=no,upload_limit=2"):
        faults.add_text(text)
    for text in ("no_capacity=b", "slow_start=b:30"):
        faults.add_text(text)
    first, second = Interruption(after_s=5), Interruption(when_file="*.ckpt", sigterm=False, upload_limit=2)
    assert faults.take("a-1") == {"interrupt": (first, second)}
    assert faults.take("b") == {"no_capacity": True, "slow_start": 30.0}
    assert faults.take("c") == {}
    for text in ("x", "interrupt=", "interrupt=a", "interrupt=a:after_s=x", "interrupt=a:sigterm=no", "slow_start=a",
                 "interrupt=a:after_s=1,sigterm=maybe", "interrupt=a:soon=1", "throttle=x", "no_capacity="):  # fmt: skip
        with pytest.raises(ConfigError):
            faults.add_text(text)


def test_settings_that_cannot_be(tmp_path: Path) -> None:
    for settings, said in [
        ({"upload_order": "random"}, "upload order 'random' is not known"),
        ({"time_scale": 0.0}, "time scale 0.0 must be above 0"),
        ({"checkpoint_period_s": float("nan")}, "checkpoint period nan"),
    ]:
        with pytest.raises(ConfigError, match=said):
            LocalSageMaker(tmp_path, **settings)  # type: ignore[arg-type]


def test_a_port_that_is_taken(five: Lab, tmp_path: Path) -> None:
    port = int(five.plane.url.rpartition(":")[2])
    with (
        pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 cannot be used"),
        LocalSageMaker(tmp_path, port=port),
    ):
        pass


def test_slow_start(five: Lab) -> None:
    five.plane.faults.slow_start("slow", 3600)
    five.sagemaker.create_training_job(**five.request("slow"))
    wait_until(lambda: five.job("slow").secondary == "Pending")
    five.sagemaker.stop_training_job(TrainingJobName="slow")
    assert states(five.finish("slow")) == ["Starting", "Pending", "Stopping", "Stopped"]
