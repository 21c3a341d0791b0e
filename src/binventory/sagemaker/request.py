"""The CreateTrainingJob request of one job. A pure function: what is dry-run, snapshot-tested and sent is the same."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from binventory.errors import ConfigError
from binventory.sagemaker.entry import CHECKPOINTS_VARIABLE, DATA_CHANNEL, JOB_CHANNEL
from binventory.sagemaker.secret_references import REFERENCE, REFERENCES_VARIABLE

ENTRY_SCRIPT = "sagemaker_entry.py"  # at the root of the source archive
CHECKPOINT_DIR = "checkpoints"
PIP = {"PIP_QUIET": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}  # or the log begins with a line for each package
# Their disks are the machine's own and encrypted by it: AWS refuses a key for a volume that is not there.
LOCAL_STORAGE = re.compile(r"ml\.(g4dn|g5|g6e?|p3dn|p4de?|p5\w*|p6\w*|trn\w*|\w+\dg?d)\.")
MAX_VARIABLE_CHARACTERS = 512
ROLE = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/[\w+=,.@/-]+")


@dataclass(frozen=True)
class JobSettings:
    """What all jobs of a launch have in common.

    Attributes:
        role_arn: IAM role that the job runs as.
        image_uri: training image.
        instance_type: e.g. ml.g4dn.xlarge.
        instance_count: machines a job runs on.
        volume_size_gb: of the disk under /opt/ml.
        max_runtime_s: after that the job is stopped.
        use_spot: take spare capacity, which can be taken back.
        max_wait_s: with `use_spot`: training and waiting for capacity together; at least `max_runtime_s`.
        input_mode: of the bins' channel: File or FastFile.
        subnets, security_group_ids: both or neither.
        kms_key_id: encrypts the volume and the output; None: AWS's own keys.
        environment: variables of the container. No secrets: a request is readable by whoever may describe the job.
        secrets: variable -> `secretsmanager:NAME` or `ssm:NAME`, read in the container.
        tags: of the job.
    """

    role_arn: str
    image_uri: str
    instance_type: str = "ml.g4dn.xlarge"
    instance_count: int = 1
    volume_size_gb: int = 50
    max_runtime_s: int = 86_400
    use_spot: bool = False
    max_wait_s: int | None = None
    input_mode: str = "File"
    subnets: tuple[str, ...] = ()
    security_group_ids: tuple[str, ...] = ()
    kms_key_id: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    secrets: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Find what AWS would refuse only after everything is uploaded.

        Raises:
            ConfigError: names the key and the value.
        """
        if not ROLE.fullmatch(self.role_arn):
            raise ConfigError(f"role_arn={self.role_arn}: not an IAM role; write arn:aws:iam::ACCOUNT:role/NAME")
        if self.use_spot and self.max_wait_s is not None and self.max_wait_s < self.max_runtime_s:
            raise ConfigError(
                f"max_wait_s={self.max_wait_s}: holds the {self.max_runtime_s} s of max_runtime_s too; make it larger"
            )
        if not self.use_spot and self.max_wait_s is not None:
            raise ConfigError(f"max_wait_s={self.max_wait_s}: only spot jobs wait; set use_spot=true or leave it out")
        if bool(self.subnets) != bool(self.security_group_ids):
            raise ConfigError("subnets, security_group_ids: a VPC needs both; give both or neither")
        for name, reference in self.secrets.items():
            if not REFERENCE.fullmatch(reference):
                # Not the value: it may be the secret itself.
                raise ConfigError(f"secrets.{name} holds no reference; write secretsmanager:NAME or ssm:NAME")
        check_variables({**self.environment, **_references(self.secrets)})


@dataclass(frozen=True)
class JobPlaces:
    """Where a job's parts lie on S3.

    Attributes:
        source: the source archive.
        job: prefix that holds job.json.
        output: prefix under which AWS makes a folder with the job's name.
        checkpoints: prefix of the run folder while it runs.
        data: prefix of the bins; None where the job reads them from elsewhere.
        files: channel -> prefix of a file that the job's config names.
    """

    source: str
    job: str
    output: str
    checkpoints: str
    data: str | None = None
    files: Mapping[str, str] = field(default_factory=dict)


def training_job_request(name: str, settings: JobSettings, places: JobPlaces) -> dict[str, Any]:
    """Return the whole request.

    Args:
        name: of the job, see `names.job_name`.
        settings: checked ones.
        places: where its parts lie.
    """
    key = {} if settings.kms_key_id is None else {"KmsKeyId": settings.kms_key_id}
    has_volume = not LOCAL_STORAGE.match(settings.instance_type)
    volume_key = {"VolumeKmsKeyId": settings.kms_key_id} if settings.kms_key_id is not None and has_volume else {}
    channels = [_channel(JOB_CHANNEL, places.job, "File")]
    if places.data is not None:
        channels.append(_channel(DATA_CHANNEL, places.data, settings.input_mode))
    channels += [_channel(channel, uri, "File") for channel, uri in places.files.items()]
    request: dict[str, Any] = {
        "TrainingJobName": name,
        "RoleArn": settings.role_arn,
        "AlgorithmSpecification": {"TrainingImage": settings.image_uri, "TrainingInputMode": "File"},
        # All that the toolkit itself needs; what the job needs is on its channel.
        "HyperParameters": {"sagemaker_program": ENTRY_SCRIPT, "sagemaker_submit_directory": places.source},
        "InputDataConfig": channels,
        "OutputDataConfig": {"S3OutputPath": places.output, **key},
        "CheckpointConfig": {"S3Uri": places.checkpoints},
        "ResourceConfig": {
            "InstanceType": settings.instance_type,
            "InstanceCount": settings.instance_count,
            "VolumeSizeInGB": settings.volume_size_gb,
            **volume_key,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": settings.max_runtime_s},
        "EnableManagedSpotTraining": settings.use_spot,
        "Environment": {
            **PIP,
            **settings.environment,
            CHECKPOINTS_VARIABLE: CHECKPOINT_DIR,
            **_references(settings.secrets),
        },
        "Tags": [{"Key": name, "Value": value} for name, value in settings.tags.items()],
    }
    if settings.use_spot:
        request["StoppingCondition"]["MaxWaitTimeInSeconds"] = settings.max_wait_s or settings.max_runtime_s
    if settings.subnets:
        request["VpcConfig"] = {
            "Subnets": list(settings.subnets),
            "SecurityGroupIds": list(settings.security_group_ids),
        }
    return request


def check_variables(environment: Mapping[str, str]) -> None:
    """Refuse variables that are longer than a request takes. Raises ConfigError."""
    for name, value in environment.items():
        if len(value) > MAX_VARIABLE_CHARACTERS:
            what = "secrets: their references have" if name == REFERENCES_VARIABLE else f"environment.{name}: has"
            raise ConfigError(f"{what} {len(value)} characters; SageMaker takes {MAX_VARIABLE_CHARACTERS}")


def cost_ceiling(settings: JobSettings, num_jobs: int, price_per_hour: float) -> float:
    """Return what jobs cost if each runs as long as it may, in the currency of an instance's `price_per_hour`."""
    return hours_ceiling(settings, num_jobs) * price_per_hour


def hours_ceiling(settings: JobSettings, num_jobs: int) -> float:
    """Return how many hours of instances jobs take if each runs as long as it may."""
    return num_jobs * settings.instance_count * settings.max_runtime_s / 3600


def _channel(name: str, s3_uri: str, mode: str) -> dict[str, Any]:
    # The slash: a prefix alone would also hold what merely begins with the same letters.
    place = {"S3DataType": "S3Prefix", "S3Uri": s3_uri.rstrip("/") + "/", "S3DataDistributionType": "FullyReplicated"}
    return {"ChannelName": name, "InputMode": mode, "DataSource": {"S3DataSource": place}}


def _references(secrets: Mapping[str, str]) -> dict[str, str]:
    return {REFERENCES_VARIABLE: json.dumps(dict(secrets), sort_keys=True)} if secrets else {}
