"""Requests are held against the service model and against AWS's own rules, in AWS's words."""

from __future__ import annotations

import copy
import functools
import json
import re
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from binventory.sagemaker.local.api import load_model
from binventory.sagemaker.local.patterns import compile_pattern
from binventory.sagemaker.local.server import LocalSageMaker
from tests.sagemaker.local.lab import BUCKET, Lab, signed_headers

MODEL = load_model()


NO_PATTERNS = {"CustomerMetadataKey", "CustomerMetadataValue"}  # `${1,128}` is a slip in the model itself


def all_patterns() -> Iterator[tuple[str, str]]:
    """Every pattern of the service, not only those of training jobs."""
    for name in MODEL.shape_names:
        pattern = MODEL.shape_for(name).metadata.get("pattern")
        if pattern and name not in NO_PATTERNS:
            yield name, pattern


def test_every_pattern_of_the_model_compiles_without_a_warning() -> None:
    patterns = list(all_patterns())
    assert len(patterns) > 450
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, pattern in patterns:
            try:
                compile_pattern(pattern)
            except ValueError as error:
                pytest.fail(f"{name}: {error}")


@pytest.mark.parametrize(
    ("pattern", "text", "is_match"),
    [
        (r"([\p{L}\p{Z}\p{N}_.:/=+\-@]*)", "Größe 数 ½ a_b.c:/=+-@", True),
        (r"([\p{L}\p{Z}\p{N}_.:/=+\-@]*)", "no;semicolon", False),
        (r"([\p{L}\p{Z}\p{N}_.:/=+\-@]*)", "tab\t", False),
        (r"arn:[\p{Alnum}\-]+", "arn:aws-cn", True),
        (r"arn:[\p{Alnum}\-]+", "arn:ä", False),
        (".*", "one line", True),
        (".*", "two\nlines", False),
        (".*", "two\u2028lines", False),
        (r"[\S\s]*", "two\nlines", True),
        (r"\d+K", "٣K", False),  # an Arabic digit: Java's \d is ASCII
        (r"[.]", "x", False),
        (r"[a-z]+$", "ab\n", False),
        (r"a(?<!-)", "a", True),
        (r"[\u0020-\uD7FF\uD800\uDC00-\uDBFF\uDFFF]*", "a😀", True),  # UTF-16 pairs are one character each
        (r"[\u0020-\uD7FF\uD800\uDC00-\uDBFF\uDFFF]*", "a\ufffd", False),
    ],
)
def test_patterns_match_as_java_does(pattern: str, text: str, is_match: bool) -> None:
    assert bool(compile_pattern(pattern).fullmatch(text)) is is_match


def test_a_pattern_that_cannot_be_translated_is_refused() -> None:
    for pattern in ("[a[b]]", "[a&&b]", r"\p{IsGreek}", r"\P{L}"):
        with pytest.raises(ValueError, match="pattern"):
            compile_pattern(pattern)


def changed(request: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The request with one value replaced; path "ResourceConfig.InstanceCount", list positions as numbers."""
    request = copy.deepcopy(request)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    at: Any = request
    for part in parents:
        at = at[part] if isinstance(part, int) else at.setdefault(part, {})
    at[last] = value
    return request


BROKEN = [
    # path, value, what the message says
    ("TrainingJobName", "a_b", "Value 'a_b' at 'trainingJobName' failed to satisfy constraint: Member must satisfy regular expression pattern: [a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}"),
    ("TrainingJobName", "-ab", "Member must satisfy regular expression pattern"),
    ("TrainingJobName", "ab\n", "Member must satisfy regular expression pattern"),
    ("TrainingJobName", "a-" * 31 + "aa", "at 'trainingJobName' failed to satisfy constraint: Member must have length less than or equal to 63"),
    ("RoleArn", "arn:aws:iam::12:role/x-role-of-mine", "at 'roleArn' failed to satisfy constraint: Member must satisfy regular expression pattern: arn:aws[a-z\\-]*:iam::\\d{12}:role/?[a-zA-Z_0-9+=,.@\\-_/]+"),
    ("ResourceConfig.InstanceType", "ml.huge", "Value 'ml.huge' at 'resourceConfig.instanceType' failed to satisfy constraint: Member must satisfy enum value set: [ml.m4.xlarge, "),
    ("ResourceConfig.InstanceCount", -1, "Value '-1' at 'resourceConfig.instanceCount' failed to satisfy constraint: Member must have value greater than or equal to 0"),
    ("StoppingCondition.MaxRuntimeInSeconds", 0, "Value '0' at 'stoppingCondition.maxRuntimeInSeconds' failed to satisfy constraint: Member must have value greater than or equal to 1"),
    ("ResourceConfig.KeepAlivePeriodInSeconds", 21601, "Member must have value less than or equal to 21600"),
    ("AlgorithmSpecification.TrainingInputMode", "Files", "Value 'Files' at 'algorithmSpecification.trainingInputMode' failed to satisfy constraint: Member must satisfy enum value set: [Pipe, File, FastFile]"),
    ("HyperParameters", {"spec": "x" * 2501}, "at 'hyperParameters' failed to satisfy constraint: Map value must satisfy constraint: [Member must have length less than or equal to 2500, "),
    ("HyperParameters", {"spec": "two\nlines"}, "Map value must satisfy constraint: "),
    ("HyperParameters", {"k" * 257: "x"}, "Map keys must satisfy constraint: [Member must have length less than or equal to 256, "),
    ("HyperParameters", {f"k{i}": "x" for i in range(101)}, "Member must have length less than or equal to 100"),
    ("Environment", {"9LIVES": "x"}, "at 'environment' failed to satisfy constraint: Map keys must satisfy constraint: "),
    ("Environment", {"SPEC": "x" * 513}, "Map value must satisfy constraint: [Member must have length less than or equal to 512, "),
    ("Tags", [{"Key": "a", "Value": "b;c"}], "Value 'b;c' at 'tags.1.member.value' failed to satisfy constraint: Member must satisfy regular expression pattern: "),
    ("Tags", [{"Key": f"k{i}", "Value": ""} for i in range(51)], "at 'tags' failed to satisfy constraint: Member must have length less than or equal to 50"),
    ("InputDataConfig.0.ChannelName", "a/b", "Value 'a/b' at 'inputDataConfig.1.member.channelName' failed"),
    ("InputDataConfig.0.DataSource.S3DataSource.S3Uri", "bins", "at 'inputDataConfig.1.member.dataSource.s3DataSource.s3Uri' failed"),
    ("VpcConfig", {"SecurityGroupIds": ["sg_1"], "Subnets": ["subnet-1"]}, "Value '[sg_1]' at 'vpcConfig.securityGroupIds' failed to satisfy constraint: Member must satisfy constraint: [Member must have length less than or equal to 32, "),
    ("OutputDataConfig.KmsKeyId", "key with spaces", "at 'outputDataConfig.kmsKeyId' failed"),
    ("CheckpointConfig", {"S3Uri": f"s3://{BUCKET}/c", "LocalPath": "x" * 4097}, "at 'checkpointConfig.localPath' failed"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "value", "said"), BROKEN, ids=[f"{path}-{i}" for i, (path, _, _) in enumerate(BROKEN)]
)
def test_what_breaks_the_model_is_refused(api_lab: Lab, path: str, value: Any, said: str) -> None:
    error = refusal(api_lab, changed(api_lab.request("job"), path, value))
    assert error["Code"] == "ValidationException"
    assert error["Message"].startswith("1 validation error detected: Value ")
    assert said in error["Message"]


def test_two_broken_rules_are_both_named(api_lab: Lab) -> None:
    request = api_lab.request("a_b", RoleArn="arn:aws:iam::12:role/some-role-of-mine")
    message = refusal(api_lab, request)["Message"]
    assert message.startswith("2 validation errors detected: ")
    assert message.count("failed to satisfy constraint") == 2
    assert "; Value 'arn:" in message


def test_what_botocore_would_not_send_is_refused_too(api_lab: Lab) -> None:
    request = api_lab.request("job")
    for body, code, said in [
        (request | {"Hyperparameters": {}}, "ValidationException", "at 'hyperparameters' failed to satisfy constraint: Member is not known"),
        (request | {"RoleArn": None}, "ValidationException", "Value null at 'roleArn' failed to satisfy constraint: Member must not be null"),
        (changed(request, "ResourceConfig.InstanceCount", "1"), "SerializationException", "str at 'resourceConfig.instanceCount' can not be converted to integer"),
        (changed(request, "ResourceConfig.InstanceCount", True), "SerializationException", "bool at"),
        (changed(request, "ResourceConfig.InstanceCount", 1.5), "SerializationException", "float at"),
        (changed(request, "HyperParameters", {"lr": 0.1}), "SerializationException", "float at 'hyperParameters.lr.member'"),
        ([], "SerializationException", "not a JSON object"),
        (b"{", "SerializationException", "not JSON"),
    ]:  # fmt: skip
        status, answer = post(api_lab.plane, "SageMaker.CreateTrainingJob", body)
        assert status == 400
        assert answer["__type"] == code, answer
        assert said in answer["message"]


ROLE_ELSEWHERE = "arn:aws:iam::999999999999:role/somebody-elses"
TWO_CHANNELS = [
    {
        "ChannelName": "photos",
        "DataSource": {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": f"s3://{BUCKET}/data"}},
    }
] * 2

REFUSED = [
    ({"RoleArn": ROLE_ELSEWHERE}, "AccessDeniedException", "Cross-account pass role is not allowed"),
    ({"StoppingCondition": None}, "ValidationException", "StoppingCondition is required"),
    ({"InputDataConfig": TWO_CHANNELS}, "ValidationException", "Duplicate channel names"),
    ({"Tags": [{"Key": "a", "Value": "1"}, {"Key": "a", "Value": "2"}]}, "ValidationException", "Duplicate tag keys"),
    ({"Tags": [{"Key": "aws:a", "Value": "1"}]}, "ValidationException", "must not begin with aws:"),
    ({"OutputDataConfig": {"S3OutputPath": "s3://no-such-bucket/out"}}, "ValidationException", "OutputDataConfig.S3OutputPath s3://no-such-bucket/out: S3 answers 404"),
    ({"CheckpointConfig": {"S3Uri": "s3://no-such-bucket/c"}}, "ValidationException", "CheckpointConfig.S3Uri s3://no-such-bucket/c: S3 answers 404"),
    ({"CheckpointConfig": {"S3Uri": f"s3://{BUCKET}/"}}, "ValidationException", "names no prefix"),
    ({"CheckpointConfig": {"S3Uri": f"s3://{BUCKET}/c", "LocalPath": "/opt/ml/model"}}, "ValidationException", "is reserved by SageMaker"),
    ({"CheckpointConfig": {"S3Uri": f"s3://{BUCKET}/c", "LocalPath": "/opt/ml/../etc"}}, "ValidationException", "not supported by the local control plane"),
    ({"EnableManagedSpotTraining": True}, "ValidationException", "Invalid MaxWaitTimeInSeconds. It must be present and be greater than or equal to MaxRuntimeInSeconds"),
    ({"EnableManagedSpotTraining": True, "StoppingCondition": {"MaxRuntimeInSeconds": 100, "MaxWaitTimeInSeconds": 99}}, "ValidationException", "Invalid MaxWaitTimeInSeconds"),
    ({"StoppingCondition": {"MaxRuntimeInSeconds": 100, "MaxWaitTimeInSeconds": 100}}, "ValidationException", "only be given with EnableManagedSpotTraining"),
    ({"EnableNetworkIsolation": True}, "ValidationException", "EnableNetworkIsolation is not supported by the local control plane"),
    ({"AlgorithmSpecification": {"AlgorithmName": "mine", "TrainingInputMode": "File"}}, "ValidationException", "AlgorithmSpecification.AlgorithmName is not supported"),
    ({"AlgorithmSpecification": {"TrainingImage": "x", "TrainingInputMode": "Pipe"}}, "ValidationException", "input mode Pipe is not supported"),
    ({"OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/out", "CompressionType": "NONE"}}, "ValidationException", "CompressionType NONE is not supported"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "code", "said"), REFUSED, ids=[said[:40] for _, _, said in REFUSED])
def test_what_aws_refuses_is_refused(api_lab: Lab, changes: dict[str, Any], code: str, said: str) -> None:
    error = refusal(api_lab, api_lab.request("job", **changes))
    assert error["Code"] == code
    assert said in error["Message"]


@pytest.mark.parametrize("uri", [f"s3://{BUCKET}/nothing-here", "s3://no-such-bucket/data"])
def test_a_channel_needs_objects(api_lab: Lab, uri: str) -> None:
    request = changed(api_lab.request("job"), "InputDataConfig.0.DataSource.S3DataSource.S3Uri", uri)
    error = refusal(api_lab, request)
    assert error["Code"] == "ValidationException"
    assert error["Message"].startswith(f'No S3 objects found under S3 URL "{uri}" given in input data source.')
    assert '"s3:ListBucket"' in error["Message"]


def refusal(lab: Lab, request: dict[str, Any]) -> dict[str, Any]:
    """The error that a client gets which leaves every check to the service."""
    client = unchecking_client(lab.plane)
    before = list(lab.plane.jobs)
    with pytest.raises(ClientError) as caught:
        client.create_training_job(**request)
    assert list(lab.plane.jobs) == before
    error: dict[str, Any] = caught.value.response["Error"]
    return error


@functools.cache
def unchecking_client(plane: LocalSageMaker) -> Any:
    session = boto3.Session(*plane.keys, region_name="us-east-1")
    return session.client("sagemaker", endpoint_url=plane.url, config=Config(parameter_validation=False))


def post(plane: LocalSageMaker, target: str, body: Any) -> tuple[int, dict[str, Any]]:
    """A call that no client would make."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"X-Amz-Target": target, "Content-Type": "application/x-amz-json-1.1"}
    signed = signed_headers(plane.keys, "POST", f"{plane.url}/", content, headers)
    call = urllib.request.Request(plane.url, content, signed)
    try:
        with urllib.request.urlopen(call, timeout=10) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_calls_that_are_not_there_are_kept(api_lab: Lab) -> None:
    plane = api_lab.plane
    with pytest.raises(ClientError, match=r"UnknownOperation.*CreateEndpoint is not supported by the local control"):
        api_lab.sagemaker.create_endpoint(EndpointName="e", EndpointConfigName="c")
    status, answer = post(plane, "SageMaker.MakeCoffee", {})
    assert (status, answer["__type"]) == (400, "UnknownOperationException")
    assert re.search("MakeCoffee is not known to SageMaker", answer["message"])
    assert plane.unknown == ["CreateEndpoint", "MakeCoffee"]
    assert plane.requests[-1].error == "UnknownOperationException"
