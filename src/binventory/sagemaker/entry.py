"""What runs in a SageMaker container: find the job where the launcher put it, run it, hand over what came of it.

The `sagemaker-training` toolkit starts this, through a script at the root of the source archive, with the channels
under /opt/ml/input/data and SM_* variables. The job spec comes on a channel of its own: hyperparameters would have to
be strings of at most 2,500 characters.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from binventory.config.capture import one_line, redact_logs
from binventory.errors import InputError, UserError
from binventory.launch.ranks import Node, run_ranks, run_spec
from binventory.launch.runner import EXIT_USER_ERROR, report_user_error
from binventory.launch.spec import SECRETS_VARIABLE, JobSpec
from binventory.sagemaker.secret_references import set_secrets
from binventory.tracking.resume import FINAL_STATES
from binventory.tracking.run_folder import RunFolder

JOB_CHANNEL, DATA_CHANNEL = "job", "data"
# In a job's config: `channel://NAME/file` is what lies on that channel, wherever channels are in the container.
CHANNEL_SCHEME = "channel://"
JOB_FILE = "job.json"
# Of another Hydra application: its task, which runs only where the launcher's request allows it.
TASK_FILE, ANSWER_FILE = "task.pickle", "return.pickle"
PICKLE_VARIABLE, CWD_VARIABLE = "BINVENTORY_ALLOW_PICKLED_TASK", "BINVENTORY_WORKING_DIR"
RUN = "run"  # the run folder's name wherever it lies
# Set by the launcher: the checkpoint directory below /opt/ml where the job has one.
CHECKPOINTS_VARIABLE = "BINVENTORY_CHECKPOINT_DIR"
MASTER_PORT = 29_500
MAX_FAILURE_CHARACTERS = 1024  # AWS shows no more


@dataclass(frozen=True)
class Container:
    """Where things are in this container, from the toolkit's variables.

    Attributes:
        channels: folder that holds a folder for each channel.
        model_dir: what lies there at the end becomes model.tar.gz.
        output_dir: what lies there at the end becomes output.tar.gz.
        failure_file: its text becomes the job's FailureReason.
        checkpoint_dir: copied to S3 as it changes, and back when the job is restarted; None where the job has none.
        hosts: names of all instances, the first one first.
        host: this one's.
    """

    channels: Path
    model_dir: Path
    output_dir: Path
    failure_file: Path
    checkpoint_dir: Path | None
    hosts: tuple[str, ...]
    host: str

    @classmethod
    def here(cls, environment: Mapping[str, str] = os.environ) -> Container:
        """Read the environment.

        Raises:
            InputError: the toolkit did not start this.
        """
        try:
            output = Path(environment["SM_OUTPUT_DIR"])
            checkpoints = environment.get(CHECKPOINTS_VARIABLE)
            return cls(
                channels=Path(environment["SM_INPUT_DIR"]) / "data",
                model_dir=Path(environment["SM_MODEL_DIR"]),
                output_dir=Path(environment["SM_OUTPUT_DATA_DIR"]),
                failure_file=output / "failure",
                checkpoint_dir=None if checkpoints is None else output.parent / checkpoints,
                hosts=tuple(json.loads(environment["SM_HOSTS"])),
                host=environment["SM_CURRENT_HOST"],
            )
        except KeyError as error:
            raise InputError(f"{error.args[0]} is not set: only SageMaker's training toolkit starts this") from error

    @property
    def is_first(self) -> bool:
        """Whether the job's run folder is this instance's."""
        return self.host == self.hosts[0]


def main() -> int:
    """Run this container's job and return its exit code."""
    redact_logs()
    try:
        container = Container.here()
    except UserError as error:
        report_user_error(error)
        return EXIT_USER_ERROR
    try:
        set_secrets()
        if (container.channels / JOB_CHANNEL / TASK_FILE).exists():
            return _run_pickled(container)
        run_dir = _run_folder(container)
        spec = place(JobSpec.load(container.channels / JOB_CHANNEL / JOB_FILE), container, run_dir)
        os.environ.pop(SECRETS_VARIABLE, None)  # not for the processes that the job starts
        exit_code = _run(spec, container)
    except UserError as error:
        report_user_error(error)
        _write_failure(container, str(error))
        return EXIT_USER_ERROR
    if container.is_first:
        hand_over(run_dir, container)
        if exit_code:
            _write_failure(container, _reason(run_dir, exit_code))
    return exit_code


def place(spec: JobSpec, container: Container, run_dir: Path) -> JobSpec:
    """Return the job as it runs here: in this run folder, on what its channels hold, over all instances.

    It goes on with what an interrupted attempt left in the run folder.
    """
    config: dict[str, Any] = _on_channels(spec.config, container.channels)
    config["paths"] = {**config["paths"], **_local_paths()}
    if len(container.hosts) > 1:
        config["trainer"] = {**config["trainer"], "num_nodes": len(container.hosts)}
    if (run_dir / "checkpoints").exists():
        config["resume"] = str(run_dir)
    return replace(spec, config=config, run_dir=str(run_dir))


def hand_over(run_dir: Path, container: Container) -> None:
    """Copy the run folder to where the output is taken from, and the bundle to where the model is."""
    if run_dir.parent != container.output_dir:
        shutil.copytree(run_dir, container.output_dir / RUN, dirs_exist_ok=True)
    if (run_dir / "bundle").is_dir():
        shutil.copytree(run_dir / "bundle", container.model_dir, dirs_exist_ok=True)


def _run(spec: JobSpec, container: Container) -> int:
    state = RunFolder((container.checkpoint_dir or container.output_dir) / RUN).read_state()
    if state in FINAL_STATES:  # interrupted while its output was uploaded; every instance has what came back
        return 0
    trainer = spec.config.get("trainer", {})
    devices, num_nodes = trainer.get("devices", 1), len(container.hosts)
    if num_nodes == 1:
        return run_spec(spec)[0]
    node = Node(container.hosts.index(container.host), num_nodes, container.hosts[0], MASTER_PORT)
    return run_ranks(spec, devices, node)


def _run_pickled(container: Container) -> int:
    """Run another application's task. Raises InputError where the request does not allow it."""
    if os.environ.get(PICKLE_VARIABLE) != "1":
        raise InputError(f"{TASK_FILE}: a pickled task runs only with hydra.launcher.allow_pickled_task=true")
    from binventory.launch.job_process import run_packed

    if (working_dir := Path(os.environ.get(CWD_VARIABLE, "."))).is_dir():
        os.chdir(working_dir)
    exit_code, answer = run_packed((container.channels / JOB_CHANNEL / TASK_FILE).read_bytes())
    (container.output_dir / ANSWER_FILE).write_bytes(answer)
    return exit_code


def _run_folder(container: Container) -> Path:
    """Return where this instance's run folder lies.

    That of the first one lies in the checkpoint directory, where the job has one: nothing else comes back after an
    interruption. The others have one to read from, which goes to no bucket.
    """
    root = container.checkpoint_dir or container.output_dir
    if container.is_first:
        (root / RUN).mkdir(parents=True, exist_ok=True)
        return root / RUN
    own = Path(tempfile.mkdtemp(prefix="binventory-")) / RUN
    own.mkdir()
    if (saved := root / RUN / "checkpoints").is_dir():
        shutil.copytree(saved, own / "checkpoints")
    return own


def _on_channels(value: Any, channels: Path) -> Any:
    """Put the container's folders where a config says `channel://…`."""
    if isinstance(value, dict):
        return {name: _on_channels(child, channels) for name, child in value.items()}
    if isinstance(value, list):
        return [_on_channels(child, channels) for child in value]
    if isinstance(value, str) and value.startswith(CHANNEL_SCHEME):
        return str(channels / value.removeprefix(CHANNEL_SCHEME))
    return value


def _local_paths() -> dict[str, str]:
    folder = Path(tempfile.gettempdir()) / "binventory"
    return {"data_dir": str(folder / "data"), "cache_dir": str(folder / "cache")}


def _reason(run_dir: Path, exit_code: int) -> str:
    """Return why the job ended, as its status says."""
    error = RunFolder(run_dir).read_status().get("error")
    if not isinstance(error, dict):
        return f"exit code {exit_code}"
    return f"{error.get('type')}: {error.get('message')}"


def _write_failure(container: Container, reason: str) -> None:
    container.failure_file.parent.mkdir(parents=True, exist_ok=True)
    container.failure_file.write_text(one_line(reason)[:MAX_FAILURE_CHARACTERS])
