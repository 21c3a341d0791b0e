"""What AWS checks of a training job beyond the service model, and what this control plane cannot run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from botocore.exceptions import ClientError

from binventory.sagemaker.local.container import OPT_ML
from binventory.sagemaker.local.errors import ServiceError, invalid
from binventory.sagemaker.local.transfer import split_uri

ACCOUNT = "123456789012"  # moto's
RESERVED = ("input", "output", "model", "code")  # below /opt/ml
# Members of the request that would change what the job does and that nothing here honours.
UNSUPPORTED = (
    ("EnableNetworkIsolation",),
    ("ServerlessJobConfig",),
    ("ModelPackageConfig",),
    ("MlflowConfig",),
    ("DebugRuleConfigurations",),
    ("ProfilerRuleConfigurations",),
    ("TensorBoardOutputConfig",),
    ("AlgorithmSpecification", "AlgorithmName"),
    ("AlgorithmSpecification", "ContainerEntrypoint"),
    ("AlgorithmSpecification", "ContainerArguments"),
    ("ResourceConfig", "InstanceGroups"),
    ("ResourceConfig", "TrainingPlanArn"),
    ("ResourceConfig", "InstancePlacementConfig"),
)


def check_training_job(request: Mapping[str, Any], s3: Any, region: str, *, has_namespaces: bool) -> None:
    """Refuse a valid request that AWS would refuse for what it says, or that cannot be run here.

    Raises:
        ServiceError: in AWS's words; what is only missing here says "not supported by the local control plane".
    """
    _check_supported(request)
    for name in ("AlgorithmSpecification", "ResourceConfig", "StoppingCondition"):
        if not request.get(name):
            raise invalid(f"{name} is required for a training job")
    _check_role(request["RoleArn"])
    _check_resources(request["ResourceConfig"], has_namespaces=has_namespaces)
    if not request["AlgorithmSpecification"].get("TrainingImage"):
        raise invalid("Either AlgorithmSpecification.TrainingImage or AlgorithmSpecification.AlgorithmName is required")
    _check_spot(request)
    _check_tags(request.get("Tags") or [])
    _check_channels(request, s3, region)
    _check_bucket(s3, request["OutputDataConfig"]["S3OutputPath"], "OutputDataConfig.S3OutputPath")
    if checkpoints := request.get("CheckpointConfig"):
        _check_checkpoints(checkpoints, s3)


def _unsupported(what: str) -> ServiceError:
    return invalid(f"{what} is not supported by the local control plane")


def _check_supported(request: Mapping[str, Any]) -> None:
    for path in UNSUPPORTED:
        value: Any = request
        for name in path:
            value = (value or {}).get(name)
        if value:
            raise _unsupported(".".join(path))
    if request["OutputDataConfig"].get("CompressionType", "GZIP") != "GZIP":
        raise _unsupported("OutputDataConfig.CompressionType NONE")
    modes = [(request.get("AlgorithmSpecification") or {}).get("TrainingInputMode")]
    for channel in request.get("InputDataConfig") or []:
        modes.append(channel.get("InputMode"))
        where = f"InputDataConfig channel {channel['ChannelName']}"
        source = channel["DataSource"].get("S3DataSource")
        if source is None:
            raise _unsupported(f"{where}: a data source other than S3DataSource")
        if source["S3DataType"] != "S3Prefix":
            raise _unsupported(f"{where}: S3DataType {source['S3DataType']}")
        if channel.get("RecordWrapperType", "None") != "None" or channel.get("CompressionType", "None") != "None":
            raise _unsupported(f"{where}: RecordWrapperType and CompressionType other than None")
    if "Pipe" in modes:
        raise _unsupported("input mode Pipe")


def _check_role(arn: str) -> None:
    if arn.split(":")[4] != ACCOUNT:
        raise ServiceError(
            "AccessDeniedException", f"Cross-account pass role is not allowed: {arn}; use account {ACCOUNT}"
        )


def _check_resources(resources: Mapping[str, Any], *, has_namespaces: bool) -> None:
    for name in ("InstanceType", "InstanceCount", "VolumeSizeInGB"):
        if not resources.get(name):
            raise invalid(f"ResourceConfig.{name} is required unless InstanceGroups are given")
    if resources["InstanceCount"] > 1 and not has_namespaces:
        reason = "this system allows no private mount namespaces (unshare --mount)"
        raise _unsupported(
            f"ResourceConfig.InstanceCount {resources['InstanceCount']}: {reason}; more than one instance"
        )
    if resources["InstanceCount"] > 8:
        raise ServiceError("ResourceLimitExceeded", "The local control plane runs at most 8 instances a job")


def _check_spot(request: Mapping[str, Any]) -> None:
    limits = request["StoppingCondition"]
    wait_s = limits.get("MaxWaitTimeInSeconds")
    if not request.get("EnableManagedSpotTraining"):
        if wait_s is not None:
            raise invalid("MaxWaitTimeInSeconds can only be given with EnableManagedSpotTraining")
        return
    if wait_s is None or wait_s < limits.get("MaxRuntimeInSeconds", 86_400):
        raise invalid(
            "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds"
        )


def _check_tags(tags: list[Mapping[str, str]]) -> None:
    keys = [tag["Key"] for tag in tags]
    if len(set(keys)) != len(keys):
        raise invalid("Duplicate tag keys are not allowed")
    for key in keys:
        if key.lower().startswith("aws:"):
            raise invalid(f"Tag key {key!r} is reserved: keys must not begin with aws:")


def _check_channels(request: Mapping[str, Any], s3: Any, region: str) -> None:
    channels = request.get("InputDataConfig") or []
    names = [channel["ChannelName"] for channel in channels]
    if len(set(names)) != len(names):
        raise invalid("Duplicate channel names are not allowed in InputDataConfig")
    for channel in channels:
        uri = channel["DataSource"]["S3DataSource"]["S3Uri"]
        _check_scheme(uri, "S3DataSource.S3Uri")
        bucket, prefix = split_uri(uri)
        problem = ""
        try:
            if not s3.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1).get("KeyCount"):
                problem = "No object"
        except ClientError as error:
            problem = error.response["Error"]["Message"]
        if problem:
            raise invalid(
                f'No S3 objects found under S3 URL "{uri}" given in input data source. Please ensure that the bucket '
                f"exists in the selected region ({region}), that objects exist under that S3 prefix, and that the role "
                f'"{request["RoleArn"]}" has "s3:ListBucket" permissions on bucket "{bucket}". '
                f"Error message from S3: {problem}"
            )


def _check_checkpoints(checkpoints: Mapping[str, Any], s3: Any) -> None:
    _check_bucket(s3, checkpoints["S3Uri"], "CheckpointConfig.S3Uri")
    if not split_uri(checkpoints["S3Uri"])[1].strip("/"):
        raise invalid(f"CheckpointConfig.S3Uri {checkpoints['S3Uri']} names no prefix in its bucket")
    local = PurePosixPath(checkpoints.get("LocalPath", f"{OPT_ML}/checkpoints"))
    below = local.relative_to(OPT_ML).parts if local.is_relative_to(OPT_ML) else ()
    if not below or ".." in below:
        raise _unsupported(f"CheckpointConfig.LocalPath {local} outside {OPT_ML}")
    if below[0] in RESERVED:
        raise invalid(f"CheckpointConfig.LocalPath {local} is reserved by SageMaker")


def _check_bucket(s3: Any, uri: str, member: str) -> None:
    _check_scheme(uri, member)
    bucket, _ = split_uri(uri)
    try:
        s3.head_bucket(Bucket=bucket)
    except ClientError as error:
        status = error.response["ResponseMetadata"]["HTTPStatusCode"]
        raise invalid(f"{member} {uri}: S3 answers {status} for bucket {bucket}; is it in this region?") from error


def _check_scheme(uri: str, member: str) -> None:
    if not uri.startswith("s3://"):
        raise _unsupported(f"{member} {uri}: a URI that does not begin with s3://")
