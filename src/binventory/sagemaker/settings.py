"""What `hydra.launcher` holds for the SageMaker launcher, and the checks that need no network."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional  # noqa: UP035  OmegaConf resolves these at run time

from binventory.config.capture import redact
from binventory.config.paths import as_path
from binventory.errors import ConfigError
from binventory.sagemaker.names import check_s3_uri
from binventory.sagemaker.request import JobSettings

PREFIX = "hydra.launcher."
ON_FAILURE, ON_INTERRUPT, INPUT_MODES = ("continue", "stop"), ("stop", "detach"), ("File", "FastFile")


@dataclass
class LaunchSettings:
    """The keys of `hydra.launcher` for hydra/launcher=sagemaker and its presets."""

    # IAM role that the jobs run as
    role_arn: Optional[str] = "${oc.env:BINVENTORY_SAGEMAKER_ROLE,null}"  # noqa: UP045
    # s3://BUCKET/PREFIX below which source, bins, job specs, checkpoints and outputs lie
    s3_uri: Optional[str] = "${oc.env:BINVENTORY_SAGEMAKER_S3_URI,null}"  # noqa: UP045
    # AWS region; null: the environment's or the profile's
    region: Optional[str] = None  # noqa: UP045
    # machine of a job, and how many of them; more than one: DDP over all of them
    instance_type: str = "ml.g4dn.xlarge"
    instance_count: int = 1
    # GB of the disk under /opt/ml
    volume_size_gb: int = 50
    # after that a job is stopped; resume_sweep goes on with it
    max_runtime_s: int = 86_400
    # spare capacity, which can be taken back; the job then goes on from its checkpoint
    use_spot: bool = False
    # training and waiting for spot capacity together; null: max_runtime_s
    max_wait_s: Optional[int] = None  # noqa: UP045
    # training image; null: AWS's PyTorch image, see binventory.sagemaker.image
    image_uri: Optional[str] = None  # noqa: UP045
    # auto: a local source is uploaded once and mounted, as is what `sagemaker upload` left on S3; other S3 sources are
    # read by the job. s3://…: this is mounted as the source. null: nothing is mounted
    data: Optional[str] = "auto"  # noqa: UP045
    # how bins are mounted: File (copied before the job starts) or FastFile (streamed)
    input_mode: str = "File"
    # VPC: both or neither
    subnets: List[str] = field(default_factory=list)  # noqa: UP006
    security_group_ids: List[str] = field(default_factory=list)  # noqa: UP006
    # encrypts volumes, outputs and what is uploaded; null: AWS's own keys
    kms_key_id: Optional[str] = None  # noqa: UP045
    # variables of the containers: anybody who may describe a job can read them
    environment: Dict[str, str] = field(default_factory=dict)  # noqa: UP006
    # variables that are secret: NAME: secretsmanager:NAME or ssm:NAME, read in the container with the job's role
    secrets: Dict[str, str] = field(default_factory=dict)  # noqa: UP006
    tags: Dict[str, str] = field(default_factory=dict)  # noqa: UP006
    # extras of the project that jobs need; null: s3, and those of the loggers in use
    extras: Optional[List[str]] = None  # noqa: UP006, UP045
    # the project: what is sent; null: the checkout that binventory lies in
    source_dir: Optional[str] = None  # noqa: UP045
    # most that the project's files may hold, and patterns of files in which secrets are not looked for
    max_source_mb: float = 50.0
    allow_secrets: List[str] = field(default_factory=list)  # noqa: UP006
    # jobs at once; null: all of them
    max_parallel: Optional[int] = 4  # noqa: UP045
    # whether to wait for the jobs; false: they are collected by `binventory sagemaker attach SWEEP`
    wait: bool = True
    # what Ctrl-C does to running jobs: stop, or detach (they run on)
    on_interrupt: str = "stop"
    # what a failed job does to those that have not started: continue or stop
    on_failure: str = "continue"
    # seconds between two looks at the jobs
    poll_s: float = 10.0
    # print the exact requests and send nothing
    dry_run: bool = False
    # of one instance, in any currency: dry_run then says what the jobs cost at most
    price_per_hour: Optional[float] = None  # noqa: UP045
    # whether a task that cannot be imported may be sent as a pickle (other Hydra applications; never needed for ours)
    allow_pickled_task: bool = False
    # run the jobs on this machine: hydra/launcher=sagemaker_local
    local: bool = False

    @classmethod
    def of(cls, node: Mapping[str, Any]) -> LaunchSettings:
        """Make settings of a resolved `hydra.launcher`, and check them.

        Raises:
            ConfigError: a value cannot be; names its key.
        """
        plain = {name: value for name, value in node.items() if name != "_target_"}
        for name in ("data", "source_dir"):
            if isinstance(plain.get(name), str):
                plain[name] = as_path(f"{PREFIX}{name}", plain[name])
        settings = cls(**plain)
        settings.check()
        return settings

    def check(self) -> None:
        """Find what cannot be before anything is made or sent. Raises ConfigError: names key, value and fix."""
        for name, choices in (
            ("on_interrupt", ON_INTERRUPT),
            ("on_failure", ON_FAILURE),
            ("input_mode", INPUT_MODES),
        ):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{PREFIX}{name}={getattr(self, name)}: must be one of {', '.join(choices)}")
        for name in ("max_parallel", "instance_count", "volume_size_gb", "max_runtime_s", "poll_s", "max_source_mb"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{PREFIX}{name}={value}: must be above 0")
        if not self.wait and self.max_parallel is not None:
            raise ConfigError(f"{PREFIX}wait=false: sends all jobs at once; add {PREFIX}max_parallel=null")
        if self.price_per_hour is not None and not self.dry_run:
            raise ConfigError(f"{PREFIX}price_per_hour={self.price_per_hour}: only {PREFIX}dry_run=true reads it")
        self._check_environment()
        if self.local:
            self._check_local()
            return
        for name, example in (("role_arn", "arn:aws:iam::ACCOUNT:role/NAME"), ("s3_uri", "s3://BUCKET/PREFIX")):
            if getattr(self, name) is None:
                variable = "BINVENTORY_SAGEMAKER_" + ("ROLE" if name == "role_arn" else "S3_URI")
                raise ConfigError(f"{PREFIX}{name}: no value is set; add {PREFIX}{name}={example} or set {variable}")
        assert self.s3_uri is not None
        try:
            check_s3_uri(self.s3_uri)
            self.job_settings(self.image_uri or "unknown").check()
        except ConfigError as error:
            raise ConfigError(f"{PREFIX}{error}") from error
        if self.data not in (None, "auto") and not self.data.startswith("s3://"):
            raise ConfigError(f"{PREFIX}data={self.data}: must be auto, null or s3://BUCKET/PREFIX")

    def _check_environment(self) -> None:
        """Refuse secrets where everybody who may describe a job can read them; the value is not named."""
        for key, variables in (("environment", dict(self.environment)), ("tags", dict(self.tags))):
            hidden = redact(variables)
            for name in variables:
                if hidden[name] == variables[name]:
                    continue
                raise ConfigError(
                    f"{PREFIX}{key} has {name}, which looks like a secret, and a request can be read; put it into"
                    f" Secrets Manager or SSM and name that under {PREFIX}secrets, as secretsmanager:NAME or ssm:NAME"
                )

    def _check_local(self) -> None:
        if not self.wait or self.on_interrupt == "detach":
            key = "wait=false" if not self.wait else "on_interrupt=detach"
            raise ConfigError(f"{PREFIX}{key}: jobs of sagemaker_local end with the command that started them")

    def job_settings(self, image_uri: str) -> JobSettings:
        """Return what requests are made of, with this image."""
        shared = {declared.name for declared in dataclasses.fields(JobSettings)} - {"image_uri"}
        given = {name: getattr(self, name) for name in shared}
        for name in ("subnets", "security_group_ids"):
            given[name] = tuple(given[name])
        return JobSettings(**given, image_uri=image_uri)
