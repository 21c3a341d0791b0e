"""SageMaker's operations on training jobs and tags."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from botocore.loaders import Loader
from botocore.model import ServiceModel

from binventory.sagemaker.local.errors import ServiceError, invalid
from binventory.sagemaker.local.faults import Faults
from binventory.sagemaker.local.jobs import Job
from binventory.sagemaker.local.semantics import ACCOUNT, check_training_job
from binventory.sagemaker.local.validation import check_request

MAX_TAGS = 50
PAGE_SIZE = {"ListTrainingJobs": 10, "ListTags": 50}  # without MaxResults


def load_model() -> ServiceModel:
    """botocore's own model of SageMaker: what the clients go by."""
    return ServiceModel(Loader().load_service_model("sagemaker", "service-2"), "sagemaker")


@dataclass(frozen=True)
class SeenRequest:
    """A call as it came.

    Attributes:
        error: code of the error that was answered, "" for none.
    """

    operation: str
    body: Mapping[str, Any]
    error: str


class Api:
    """The training jobs of one account and region.

    Attributes:
        jobs: every job that was created, by name, oldest first.
        start: called with a job that was just created; it must make the job's first transition at once.
    """

    def __init__(
        self, s3: Any, region: str, faults: Faults, start: Callable[[Job], None], *, has_namespaces: bool
    ) -> None:
        self.jobs: dict[str, Job] = {}
        self._s3, self._region, self._faults, self._start = s3, region, faults, start
        self._has_namespaces = has_namespaces
        self._model = load_model()
        self._lock = threading.RLock()
        self._operations: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "CreateTrainingJob": self._create,
            "DescribeTrainingJob": lambda request: self._job(request).describe(),
            "StopTrainingJob": self._stop,
            "ListTrainingJobs": self._list,
            "AddTags": self._add_tags,
            "ListTags": self._list_tags,
            "DeleteTags": self._delete_tags,
        }

    def call(self, operation: str, request: Any) -> dict[str, Any]:
        """Carry an operation out.

        Raises:
            ServiceError: with the code and the message that AWS would give.
        """
        if operation not in self._operations:
            is_known = operation in self._model.operation_names
            reason = "is not supported by the local control plane" if is_known else "is not known to SageMaker"
            raise ServiceError("UnknownOperationException", f"{operation or 'A call without an operation'} {reason}")
        self._faults.check_throttled(operation)
        check_request(self._model.operation_model(operation).input_shape, request)
        return self._operations[operation]({name: value for name, value in request.items() if value is not None})

    def _check_quota(self, instance_type: str) -> None:
        limit, running = self._faults.max_jobs, sum(not job.ended.is_set() for job in self.jobs.values())
        if limit is not None and running >= limit:
            raise ServiceError(
                "ResourceLimitExceeded",
                f"The account-level service limit '{instance_type} for training job usage' is {limit} Instances, with"
                f" current utilization of {running} Instances and a request delta of 1 Instances. Please use AWS"
                " Service Quotas to request an increase for this quota.",
            )

    def _create(self, request: dict[str, Any]) -> dict[str, Any]:
        check_training_job(request, self._s3, self._region, has_namespaces=self._has_namespaces)
        name = request["TrainingJobName"]
        arn = f"arn:aws:sagemaker:{self._region}:{ACCOUNT}:training-job/{name.lower()}"
        with self._lock:
            if name in self.jobs:
                raise ServiceError(
                    "ResourceInUse",
                    "Training job names must be unique within an AWS account and region, and a training job with this "
                    f"name already exists ({arn})",
                )
            self._check_quota(request["ResourceConfig"]["InstanceType"])
            tags = {tag["Key"]: tag["Value"] for tag in request.get("Tags") or []}
            job = Job(request, arn, self._faults.take(name), tags)
            job.move("Starting")
            self.jobs[name] = job
        self._start(job)
        return {"TrainingJobArn": arn}

    def _job(self, request: Mapping[str, Any]) -> Job:
        job = self.jobs.get(request["TrainingJobName"])
        if job is None:
            raise invalid("Requested resource not found.")
        return job

    def _stop(self, request: dict[str, Any]) -> dict[str, Any]:
        job = self._job(request)
        if not job.ask_to_stop():
            raise invalid(f"The request was rejected because the training job is in status {job.status}.")
        return {}

    def _list(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            jobs = [job for job in self.jobs.values() if _matches(job, request)]
        keys: dict[str, Callable[[Job], Any]] = {
            "Name": lambda job: job.name,
            "CreationTime": lambda job: job.created,
            "Status": lambda job: job.status,
        }
        jobs.sort(key=keys[request.get("SortBy", "CreationTime")], reverse=request.get("SortOrder") == "Descending")
        page, token = _page("ListTrainingJobs", jobs, request)
        return {"TrainingJobSummaries": [job.summary() for job in page]} | token

    def _tagged(self, request: Mapping[str, Any]) -> Job:
        for job in self.jobs.values():
            if job.arn == request["ResourceArn"]:
                return job
        raise invalid(f"Requested resource not found: {request['ResourceArn']}")

    def _add_tags(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            job = self._tagged(request)
            tags = job.tags | {tag["Key"]: tag["Value"] for tag in request["Tags"]}
            if any(key.lower().startswith("aws:") for key in tags):
                raise invalid("Tag keys must not begin with aws:")
            if len(tags) > MAX_TAGS:
                raise ServiceError("ResourceLimitExceeded", f"A resource has at most {MAX_TAGS} tags")
            job.tags = tags
        return {"Tags": _as_list(tags)}

    def _list_tags(self, request: dict[str, Any]) -> dict[str, Any]:
        page, token = _page("ListTags", _as_list(self._tagged(request).tags), request)
        return {"Tags": page} | token

    def _delete_tags(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._lock:
            job = self._tagged(request)
            job.tags = {key: value for key, value in job.tags.items() if key not in request["TagKeys"]}
        return {}


def _as_list(tags: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


def _matches(job: Job, request: Mapping[str, Any]) -> bool:
    created, modified = job.created, job.modified
    checks: dict[str, Callable[[Any], bool]] = {
        "CreationTimeAfter": lambda moment: created > moment,
        "CreationTimeBefore": lambda moment: created < moment,
        "LastModifiedTimeAfter": lambda moment: modified > moment,
        "LastModifiedTimeBefore": lambda moment: modified < moment,
        "NameContains": lambda text: text in job.name,
        "StatusEquals": lambda status: job.status == status,
    }
    if "WarmPoolStatusEquals" in request or "TrainingPlanArnEquals" in request:
        return False  # no job here has a warm pool or a training plan
    return all(check(request[name]) for name, check in checks.items() if name in request)


def _page(operation: str, items: Iterable[Any], request: Mapping[str, Any]) -> tuple[list[Any], dict[str, str]]:
    """The page that NextToken asks for; a token belongs to one query."""
    query = {name: value for name, value in request.items() if name not in ("NextToken", "MaxResults")}
    digest = hashlib.sha256(json.dumps([operation, query], sort_keys=True).encode()).hexdigest()[:16]
    first = 0
    if "NextToken" in request:
        try:
            given, position = base64.b64decode(request["NextToken"], validate=True).decode().split(":")
            first = int(position)
        except ValueError as error:
            raise invalid("Invalid pagination token") from error
        if given != digest:
            raise invalid("Invalid pagination token: it belongs to another query")
    everything = list(items)
    size = request.get("MaxResults", PAGE_SIZE[operation])
    token = base64.b64encode(f"{digest}:{first + size}".encode()).decode()
    return everything[first : first + size], {"NextToken": token} if first + size < len(everything) else {}
