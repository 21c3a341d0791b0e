"""One launch: what all its jobs share is sent once, and each job becomes one CreateTrainingJob request."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from binventory.config.capture import redact
from binventory.config.targets import ALLOW_VARIABLE
from binventory.data.sources.s3 import split_folder
from binventory.errors import ConfigError
from binventory.files import write_text
from binventory.launch.spec import SECRETS_VARIABLE, JobSpec
from binventory.sagemaker.aws import Aws
from binventory.sagemaker.bucket import S3Folder, naming_node
from binventory.sagemaker.entry import CWD_VARIABLE, JOB_FILE, PICKLE_VARIABLE, TASK_FILE
from binventory.sagemaker.image import default_image, python_of
from binventory.sagemaker.inputs import InputSender, JobInputs
from binventory.sagemaker.names import job_name, sweep_uri
from binventory.sagemaker.request import (
    ENTRY_SCRIPT,
    JobPlaces,
    check_variables,
    cost_ceiling,
    hours_ceiling,
    training_job_request,
)
from binventory.sagemaker.requirements import container_requirements
from binventory.sagemaker.settings import PREFIX, LaunchSettings
from binventory.sagemaker.source import SourceArchive, write_source

NODE = "hydra.launcher"
SOURCE_FOLDER = "source"
MANIFEST = "source-manifest.txt"
LOGGER_EXTRAS = ("wandb", "tensorboard")
GPU_FAMILIES = ("p", "g")  # ml.p4d…, ml.g5…

# What the toolkit starts, at the root of the archive. The guard: workers of a job import it again.
ENTRY = b'''"""Run this container's job: the script that SageMaker's training toolkit starts."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

if __name__ == "__main__":
    from binventory.sagemaker.entry import main

    sys.exit(main())
'''


@dataclass(frozen=True)
class Submission:
    """A job that can be sent.

    Attributes:
        name: of the training job.
        request: all of CreateTrainingJob's.
        places: where its parts lie.
        files: its own channel: name -> content.
    """

    name: str
    request: dict[str, Any]
    places: JobPlaces
    files: dict[str, bytes]


class Launch:
    """What the jobs of one sweep share.

    Args:
        settings: checked ones; `role_arn` and `s3_uri` are set.
        aws: where jobs are sent.
        sweep: see `record.sweep_name`.
        loggers: the sweep's loggers by name, which say what extras jobs need.

    Attributes:
        folder: the prefix on S3 that everything lies below.

    Raises:
        ConfigError, InputError: the source cannot be packed, or AWS has no image.
    """

    def __init__(self, settings: LaunchSettings, aws: Aws, sweep: str, loggers: Collection[str]) -> None:
        assert settings.s3_uri is not None
        self._settings, self._aws, self._sweep = settings, aws, sweep
        bucket, prefix = split_folder(settings.s3_uri)
        self.folder = S3Folder(aws.s3(), bucket, prefix, settings.kms_key_id)
        self.prefix = sweep_uri(settings.s3_uri, sweep)
        self._image = settings.image_uri or default_image(aws.region, settings.instance_type)
        self._jobs = settings.job_settings(self._image)
        with tempfile.TemporaryDirectory(prefix="binventory-source-") as folder:
            self._archive = self._pack(Path(folder), loggers)
            self.manifest = self._archive.manifest()
            self._archive_bytes = self._archive.path.read_bytes()
        self.source_uri = f"{self.folder.uri}/{SOURCE_FOLDER}/{self._archive.sha256}.tar.gz"
        self._inputs = InputSender(self.folder, settings.data, sends=not settings.dry_run)

    def _pack(self, folder: Path, loggers: Collection[str]) -> SourceArchive:
        settings = self._settings
        root = project_root(settings.source_dir)
        extras = settings.extras
        if extras is None:
            extras = ["s3", *(name for name in LOGGER_EXTRAS if name in loggers)]
        python = None if settings.local else python_of(self._image)
        requirements = container_requirements(root, extras, python)
        return write_source(
            root,
            folder,
            max_source_mb=settings.max_source_mb,
            allow_secrets=settings.allow_secrets,
            extra={ENTRY_SCRIPT: ENTRY, "requirements.txt": requirements.encode()},
        )

    def send_source(self) -> None:
        """Send the archive, unless S3 has it.

        Raises:
            InputError: S3 refuses.
        """
        key = f"{SOURCE_FOLDER}/{self._archive.sha256}.tar.gz"
        with naming_node(NODE):
            self.folder.connection.check_bucket(self.folder.bucket)
            if key not in self.folder.sizes(SOURCE_FOLDER):
                self.folder.put(key, self._archive_bytes)

    def write_manifest(self, path: Path) -> None:
        """Write down what was sent, and say so."""
        write_text(path, "\n".join(self.manifest) + "\n")
        print(f"source: {self.source_uri}: {self.manifest[-1]}; listed in {path}", flush=True)

    def prepare(self, number: int, attempt: int, spec: JobSpec, checkpoints: str | None = None) -> Submission:
        """Send what a job of ours reads, and make its request.

        Args:
            number: its place in the sweep.
            attempt: how often it was sent before.
            spec: frozen, with paths of this machine.
            checkpoints: where its earlier attempts left theirs.

        Raises:
            ConfigError: it cannot run elsewhere, or needs a secret that is not given by reference.
        """
        self._check(spec)
        with naming_node(NODE):
            inputs = self._inputs.send(spec.config)
        sent = replace(spec, config={**inputs.config, "resume": None})
        files = {JOB_FILE: json.dumps(sent.saved()).encode()}
        return self._submission(number, attempt, inputs, files, spec, checkpoints)

    def prepare_pickled(self, number: int, attempt: int, packed: bytes) -> Submission:
        """Make the request of a job of another Hydra application."""
        return self._submission(number, attempt, JobInputs({}), {TASK_FILE: packed}, None)

    def _submission(
        self,
        number: int,
        attempt: int,
        inputs: JobInputs,
        files: dict[str, bytes],
        spec: JobSpec | None,
        checkpoints: str | None = None,
    ) -> Submission:
        name = job_name(self._sweep, number, attempt)
        places = JobPlaces(
            source=self.source_uri,
            job=f"{self.prefix}/specs/{name}",
            output=f"{self.prefix}/output",
            checkpoints=checkpoints or f"{self.prefix}/checkpoints/{number}",
            data=inputs.data,
            files=inputs.files,
        )
        # A pickled task may name files of where it comes from, which are there where that is this machine.
        own = {PICKLE_VARIABLE: "1", CWD_VARIABLE: str(Path.cwd())} if spec is None else _variables(spec)
        jobs = replace(self._jobs, environment={**self._jobs.environment, **own})
        request = training_job_request(name, jobs, places)
        try:
            check_variables(request["Environment"])
        except ConfigError as error:
            raise ConfigError(f"{PREFIX}{error}") from error
        return Submission(name, request, places, files)

    def send_files(self, submission: Submission) -> None:
        """Send what is on a job's own channel. Raises InputError."""
        _, folder = split_folder(submission.places.job)
        own = replace(self.folder, folder=folder)
        with naming_node(NODE):
            for name, content in submission.files.items():
                own.put(name, content)

    def describe(self, submission: Submission) -> str:
        """Return a request as JSON, after what is put on the job's own channel: what a dry run prints."""
        sent = [f"{submission.places.job}/{name}: {len(content):,} bytes" for name, content in submission.files.items()]
        return "\n".join([*sent, json.dumps(submission.request, indent=2)])

    def cost(self, num_jobs: int) -> str:
        """Return the most that jobs may cost, as a line."""
        price = self._settings.price_per_hour
        hours = hours_ceiling(self._jobs, num_jobs)
        said = f"{num_jobs} jobs on {self._jobs.instance_count} x {self._jobs.instance_type}: at most {hours:,.1f} h"
        if price is None:
            return f"{said}; {PREFIX}price_per_hour=… says what that costs"
        return f"{said}, {cost_ceiling(self._jobs, num_jobs, price):,.2f} at {price:,.2f} an hour"

    def _check(self, spec: JobSpec) -> None:
        trainer = spec.config.get("trainer")
        if trainer is None:
            task = spec.task.partition(":")[0].rpartition(".")[2]
            raise ConfigError(f"hydra/launcher=sagemaker: runs train.py, not {task}.py; run that on this machine")
        count = self._settings.instance_count
        if count > 1 and trainer["strategy"] != "ddp":
            raise ConfigError(
                f"{PREFIX}instance_count={count}: needs DDP; take trainer=ddp (or ddp_cpu) with trainer.devices=GPUs of"
                " one instance"
            )
        world, batch = count * trainer["devices"], spec.config["data"]["batch_size"]
        if batch % world:
            raise ConfigError(
                f"data.batch_size={batch}: the global batch doesn't divide over {count} instances of"
                f" {trainer['devices']} devices; take {max(1, batch // world) * world}"
            )
        needed = json.loads(spec.environment()[SECRETS_VARIABLE])
        if needed and SECRETS_VARIABLE not in self._settings.secrets:
            raise ConfigError(
                f"{sorted(needed)[0]}: is a secret, which no request may hold; put JSON of keys and values"
                f" ({', '.join(sorted(needed))}) into a secret and add"
                f" {PREFIX}secrets.{SECRETS_VARIABLE}=secretsmanager:NAME"
            )
        is_gpu = self._jobs.instance_type.removeprefix("ml.").startswith(GPU_FAMILIES)
        if is_gpu and trainer["accelerator"] == "cpu" and not self._settings.local:
            print(f"warning: trainer.accelerator=cpu leaves the GPU of {self._jobs.instance_type} idle; trainer=gpu")


def project_root(source_dir: str | None) -> Path:
    """Return the project that is sent.

    Raises:
        ConfigError: the folder has no pyproject.toml.
    """
    root = Path(source_dir) if source_dir is not None else Path(__file__).resolve().parents[3]
    if not (root / "pyproject.toml").is_file():
        key = f"{PREFIX}source_dir={source_dir}" if source_dir else f"{PREFIX}source_dir: binventory is installed in"
        raise ConfigError(f"{key} {root}: no checkout of binventory (no pyproject.toml); name one")
    return root


def _variables(spec: JobSpec) -> dict[str, str]:
    """What the user's own command line allows and sets there: classes that may be made, and Hydra's variables."""
    allowed = spec.environment()[ALLOW_VARIABLE]
    variables: dict[str, str] = spec.config.get("hydra", {}).get("job", {}).get("env_set", {})
    hidden = redact(variables, at="hydra.job.env_set")
    if secret := next((name for name in variables if hidden[name] != variables[name]), None):
        raise ConfigError(
            f"hydra.job.env_set.{secret}: is a secret, which no request may hold; add {PREFIX}secrets.{secret}, as"
            " secretsmanager:NAME or ssm:NAME"
        )
    return {**({ALLOW_VARIABLE: allowed} if allowed else {}), **variables}
