"""The request, in full, and held against the service's own model."""

from __future__ import annotations

from dataclasses import replace

import pytest

from binventory.errors import ConfigError
from binventory.sagemaker.local.api import load_model
from binventory.sagemaker.local.validation import check_request
from binventory.sagemaker.names import job_name
from binventory.sagemaker.request import JobPlaces, JobSettings, cost_ceiling, training_job_request

PLAIN = JobSettings(
    role_arn="arn:aws:iam::123456789012:role/bins", image_uri="1.dkr.ecr.eu-west-1.amazonaws.com/pytorch:2.9"
)
PLACES = JobPlaces(
    source="s3://mine/sweep/source/0a.tar.gz", job="s3://mine/sweep/0/job", output="s3://mine/sweep/0/output",
    checkpoints="s3://mine/sweep/0/checkpoints", data="s3://bins/3fe3",
)  # fmt: skip
FULL = replace(
    PLAIN, instance_type="ml.p3.16xlarge", instance_count=2, volume_size_gb=200, max_runtime_s=3600, use_spot=True,
    max_wait_s=7200, input_mode="FastFile", subnets=("subnet-1",), security_group_ids=("sg-1",),
    kms_key_id="alias/bins", environment={"WANDB_PROJECT": "bins"}, secrets={"WANDB_API_KEY": "ssm:/bins/wandb"},
    tags={"sweep": "2026-11-23_01-00-00-abcd", "job": "0"},
)  # fmt: skip


QUIET = {"PIP_QUIET": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def channel(name: str, uri: str, mode: str) -> dict[str, object]:
    source = {"S3DataType": "S3Prefix", "S3Uri": uri, "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "InputMode": mode, "DataSource": {"S3DataSource": source}}


def test_a_plain_request_in_full() -> None:
    assert training_job_request("sweep-0", PLAIN, replace(PLACES, data=None)) == {
        "TrainingJobName": "sweep-0",
        "RoleArn": "arn:aws:iam::123456789012:role/bins",
        "AlgorithmSpecification": {
            "TrainingImage": "1.dkr.ecr.eu-west-1.amazonaws.com/pytorch:2.9",
            "TrainingInputMode": "File",
        },
        "HyperParameters": {
            "sagemaker_program": "sagemaker_entry.py",
            "sagemaker_submit_directory": "s3://mine/sweep/source/0a.tar.gz",
        },
        "InputDataConfig": [channel("job", "s3://mine/sweep/0/job/", "File")],
        "OutputDataConfig": {"S3OutputPath": "s3://mine/sweep/0/output"},
        "CheckpointConfig": {"S3Uri": "s3://mine/sweep/0/checkpoints"},
        "ResourceConfig": {"InstanceType": "ml.g4dn.xlarge", "InstanceCount": 1, "VolumeSizeInGB": 50},
        "StoppingCondition": {"MaxRuntimeInSeconds": 86_400},
        "EnableManagedSpotTraining": False,
        "Environment": QUIET | {"BINVENTORY_CHECKPOINT_DIR": "checkpoints"},
        "Tags": [],
    }


def test_what_else_can_be_asked_for_in_full() -> None:
    plain, full = training_job_request("sweep-0", PLAIN, PLACES), training_job_request("sweep-0", FULL, PLACES)
    assert {name: value for name, value in full.items() if plain.get(name) != value} == {
        "InputDataConfig": [
            channel("job", "s3://mine/sweep/0/job/", "File"),
            channel("data", "s3://bins/3fe3/", "FastFile"),
        ],
        "OutputDataConfig": {"S3OutputPath": "s3://mine/sweep/0/output", "KmsKeyId": "alias/bins"},
        "ResourceConfig": {
            "InstanceType": "ml.p3.16xlarge", "InstanceCount": 2, "VolumeSizeInGB": 200, "VolumeKmsKeyId": "alias/bins",
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": 3600, "MaxWaitTimeInSeconds": 7200},
        "EnableManagedSpotTraining": True,
        "Environment": QUIET | {
            "WANDB_PROJECT": "bins",
            "BINVENTORY_CHECKPOINT_DIR": "checkpoints",
            "BINVENTORY_SECRETS": '{"WANDB_API_KEY": "ssm:/bins/wandb"}',
        },
        "Tags": [{"Key": "sweep", "Value": "2026-11-23_01-00-00-abcd"}, {"Key": "job", "Value": "0"}],
        "VpcConfig": {"Subnets": ["subnet-1"], "SecurityGroupIds": ["sg-1"]},
    }  # fmt: skip


@pytest.mark.parametrize("settings", [PLAIN, FULL])
def test_the_service_takes_it(settings: JobSettings) -> None:
    settings.check()
    name = job_name("sweep " * 60, 12)
    check_request(
        load_model().operation_model("CreateTrainingJob").input_shape, training_job_request(name, settings, PLACES)
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"role_arn": "bins"}, "role_arn=bins: not an IAM role"),
        ({"role_arn": "arn:aws:iam::12:role/bins"}, "not an IAM role"),
        ({"use_spot": True, "max_wait_s": 60}, "max_wait_s=60: holds the 86400 s"),
        ({"max_wait_s": 100_000}, "only spot jobs wait"),
        ({"subnets": ("subnet-1",)}, "a VPC needs both"),
        ({"secrets": {"WANDB_API_KEY": "0123456789abcdef"}}, "secrets.WANDB_API_KEY holds no reference"),
        ({"secrets": {"A": "ssm:" + "a" * 300, "B": "ssm:" + "b" * 300}}, "references have 6[0-9]{2} characters; SageMaker takes 512"),
        ({"environment": {"A": "a" * 513}}, "environment.A: has 513 characters; SageMaker takes 512"),
    ],
)  # fmt: skip
def test_what_aws_would_refuse_late_is_refused_at_once(changed: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said) as refused:
        replace(PLAIN, **changed).check()  # type: ignore[arg-type]
    assert "0123456789abcdef" not in str(refused.value)


@pytest.mark.parametrize(
    "instance", ["ml.g4dn.xlarge", "ml.g5.2xlarge", "ml.p4d.24xlarge", "ml.m5d.large", "ml.r6gd.large"]
)
def test_a_disk_of_the_instance_s_own_takes_no_key(instance: str) -> None:
    """AWS refuses one; it encrypts those disks itself."""
    resources = training_job_request("sweep-0", replace(FULL, instance_type=instance), PLACES)["ResourceConfig"]
    assert "VolumeKmsKeyId" not in resources


def test_a_price_bounds_the_cost() -> None:
    assert cost_ceiling(FULL, num_jobs=4, price_per_hour=0.5) == 4 * 2 * 1 * 0.5
