"""`binventory sagemaker local`, and what becomes of its jobs when it is stopped or killed."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from binventory.cli import app
from tests.sagemaker.local.conftest import CACHE
from tests.sagemaker.local.lab import MARK, marked_processes, wait_until

COMMAND = [sys.executable, "-c", "from binventory.cli import main; main()", "sagemaker", "local"]

# A client in a process of its own, led by nothing but the environment
CLIENT = """
import io, sys, tarfile, time
import boto3
content = io.BytesIO()
with tarfile.open(fileobj=content, mode="w:gz") as archive:
    text = b"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('running', flush=True); signal.pause()"
    entry = tarfile.TarInfo("train.py")
    entry.size = len(text)
    archive.addfile(entry, io.BytesIO(text))
s3 = boto3.client("s3")
s3.create_bucket(Bucket="bucket")
s3.put_object(Bucket="bucket", Key="code.tar.gz", Body=content.getvalue())
boto3.client("sagemaker").create_training_job(
    TrainingJobName="job", RoleArn="arn:aws:iam::123456789012:role/binventory-local",
    AlgorithmSpecification={"TrainingImage": "image", "TrainingInputMode": "File"},
    HyperParameters={"sagemaker_program": "train.py", "sagemaker_submit_directory": "s3://bucket/code.tar.gz"},
    OutputDataConfig={"S3OutputPath": "s3://bucket/out"}, StoppingCondition={"MaxRuntimeInSeconds": 600},
    ResourceConfig={"InstanceType": "ml.m5.large", "InstanceCount": 1, "VolumeSizeInGB": 10},
    Environment={"LAB_MARK": sys.argv[1]})
logs = boto3.client("logs")
while not logs.filter_log_events(logGroupName="/aws/sagemaker/TrainingJobs", filterPattern="running")["events"]:
    time.sleep(0.1)
"""


@contextmanager
def command(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """The running command and the variables that it exports."""
    temporary = folder / "temporary"
    temporary.mkdir()
    # the mark is also in the command's own processes; the jobs' come with the request
    environment = {**os.environ, "BINVENTORY_CACHE_DIR": str(CACHE), "TMPDIR": str(temporary), MARK: f"{folder}-own"}
    arguments = (*COMMAND, *arguments)
    with subprocess.Popen(arguments, env=environment, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        exported = {}
        try:
            for line in process.stdout:
                if line.startswith("#"):
                    break
                if line.startswith("export "):
                    name, _, value = line.removeprefix("export ").strip().partition("=")
                    exported[name] = shlex.split(value)[0]
            yield process, exported
        finally:
            process.kill()


def run_client(exported: dict[str, str], mark: str) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    subprocess.run([sys.executable, "-c", CLIENT, mark], env=environment | exported, check=True, timeout=60)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_command(toolkit: Path, tmp_path: Path, namespaces: None, signum: int) -> None:
    mark = str(tmp_path)
    with command(tmp_path) as (process, exported):
        assert set(exported) >= {"AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_SAGEMAKER", "AWS_ENDPOINT_URL_S3"}
        run_client(exported, mark)
        assert len(marked_processes(mark)) >= 2
        process.send_signal(signum)
        status = process.wait(timeout=20)
    if signum == signal.SIGINT:
        assert status == 0
        assert list((tmp_path / "temporary").iterdir()) == []
    wait_until(lambda: not marked_processes(mark) and not marked_processes(f"{mark}-own"), timeout_s=10)
    assert "/opt/ml" not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--fault", "soon"], "--fault 'soon' cannot be read"),
        (["--upload-order", "random"], "upload order 'random' is not known"),
        (["--time-scale", "0"], "time scale 0.0 must be above 0"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: list[str], said: str) -> None:
    from typer.testing import CliRunner

    result = CliRunner().invoke(app, ["sagemaker", "local", *arguments])
    assert result.exit_code == 2
    assert said in result.output
    assert result.output.count("\n") == 1
