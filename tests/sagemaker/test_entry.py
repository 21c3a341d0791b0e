"""The container's side, under the variables that AWS's training toolkit sets."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import boto3
import pytest

from binventory.config.capture import to_plain
from binventory.config.compose import compose_checked
from binventory.launch.spec import JobSpec
from binventory.sagemaker.entry import main
from tests.launch import jobs
from tests.running import TINY

STOPPING = ["objective._target_=tests.wandb.stopping.Stopping", "+objective.at=9", "+objective.does=SIGTERM"]


@pytest.fixture
def opt_ml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """/opt/ml of the only instance, as the toolkit describes it."""
    for folder in ("input/data/job", "model", "output/data", "checkpoints"):
        (tmp_path / folder).mkdir(parents=True)
    for name, folder in (("INPUT", "input"), ("MODEL", "model"), ("OUTPUT", "output"), ("OUTPUT_DATA", "output/data")):
        monkeypatch.setenv(f"SM_{name}_DIR", str(tmp_path / folder))
    monkeypatch.setenv("SM_HOSTS", '["algo-1"]')
    monkeypatch.setenv("SM_CURRENT_HOST", "algo-1")
    monkeypatch.setenv("BINVENTORY_ALLOW_TARGETS", "jobs.,tests.wandb.stopping.")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.syspath_prepend(str(Path(jobs.__file__).parent))
    return tmp_path


def send(opt_ml: Path, task: str, config: dict[str, Any]) -> None:
    JobSpec(task, {"paths": {}, **config}, "outputs/sweeps/2026/0", []).save(opt_ml / "input/data/job/job.json")


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_run_folder_is_the_output(opt_ml: Path) -> None:
    send(opt_ml, "jobs:succeed", {"value": 3})
    assert main() == 0
    assert read(opt_ml / "output/data/run/status.json")["state"] == "done"
    assert (opt_ml / "output/data/run/rank0.txt").read_text() == "3"
    assert not (opt_ml / "output/failure").exists()


def test_a_failure_is_the_reason_without_its_secrets(opt_ml: Path) -> None:
    send(opt_ml, "jobs:fail", {})
    assert main() == 1
    reason = (opt_ml / "output/failure").read_text()
    assert reason.startswith("RuntimeError: something broke at https://")
    assert "hidden" not in reason
    assert "something broke" in read(opt_ml / "output/data/run/status.json")["error"]["traceback"]


def test_a_job_that_was_not_sent_is_one_line(opt_ml: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main() == 2
    assert "job.json: cannot read this job spec" in (opt_ml / "output/failure").read_text()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_outside_of_the_toolkit_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SM_OUTPUT_DIR", raising=False)
    assert main() == 2
    assert "SM_OUTPUT_DIR is not set: only SageMaker's training toolkit starts this" in capsys.readouterr().err


def test_what_was_done_before_a_restart_is_only_handed_over(opt_ml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job can be interrupted while its output is uploaded."""
    monkeypatch.setenv("BINVENTORY_CHECKPOINT_DIR", "checkpoints")
    send(opt_ml, "jobs:succeed", {"value": 3})
    assert main() == 0
    send(opt_ml, "jobs:fail", {})
    assert main() == 0
    assert (opt_ml / "output/data/run/rank0.txt").read_text() == "3"


@pytest.mark.long
def test_interrupted_and_restarted_it_goes_on_where_it_was(opt_ml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the checkpoint directory comes back."""
    monkeypatch.setenv("BINVENTORY_CHECKPOINT_DIR", "checkpoints")
    config = to_plain(compose_checked("train", [*TINY, *STOPPING])[0])
    send(opt_ml, "binventory.tasks.train:run", config)
    assert main() == 143
    position = read(opt_ml / "checkpoints/run/status.json")
    assert position["state"] == "preempted"
    for folder in ("model", "output/data"):
        assert not list((opt_ml / folder).glob("*.safetensors"))
    assert main() == 0
    run = opt_ml / "output/data/run"
    assert read(run / "status.json")["state"] == "done"
    assert [line.split(",")[0] for line in (run / "metrics.csv").read_text().splitlines()] == ["epoch", "1", "2"]
    assert len(read(run / "provenance.json")["earlier_attempts"]) == 1
    assert {path.name for path in (opt_ml / "model").iterdir()} == {"weights.safetensors", "bundle.json"}
    assert (run / "bundle/weights.safetensors").read_bytes() == (opt_ml / "model/weights.safetensors").read_bytes()


def test_bins_are_read_from_their_channel(opt_ml: Path) -> None:
    (opt_ml / "input/data/data").mkdir()
    send(opt_ml, "jobs:succeed", {"value": 3, "data": {"source": "channel://data"}})
    assert main() == 0
    assert f"source: {opt_ml}/input/data/data" in (opt_ml / "output/data/run/config.yaml").read_text()


def test_the_other_instances_leave_no_output(opt_ml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has one process here; the job's ranks are numbered over all of them."""
    monkeypatch.setenv("SM_HOSTS", '["127.0.0.1", "localhost"]')
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    send(opt_ml, "jobs:tell_place", {"trainer": {"devices": 1}})
    monkeypatch.setenv("SM_CURRENT_HOST", "localhost")
    assert main() == 0
    assert list((opt_ml / "output/data").iterdir()) == []
    monkeypatch.setenv("SM_CURRENT_HOST", "127.0.0.1")
    assert main() == 0
    told = read(opt_ml / "output/data/run/place0.json")
    assert (told["WORLD_SIZE"], told["MASTER_ADDR"], told["MASTER_PORT"]) == ("2", "127.0.0.1", "29500")
    assert "num_nodes: 2" in (opt_ml / "output/data/run/config.yaml").read_text()


@pytest.mark.parametrize("service", ["ssm", "secretsmanager"])
def test_secrets_are_read_where_the_request_says(
    opt_ml: Path, s3_server: str, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (
        ("ENDPOINT_URL", s3_server),
        ("DEFAULT_REGION", "us-east-1"),
        ("ACCESS_KEY_ID", "x"),
        ("SECRET_ACCESS_KEY", "y"),
    ):
        monkeypatch.setenv(f"AWS_{name}", value)
    if service == "ssm":
        boto3.client("ssm").put_parameter(Name="/bins/token", Value="hush", Type="SecureString", Overwrite=True)
    else:
        boto3.client("secretsmanager").create_secret(Name="/bins/token", SecretString="hush")
    for variable in ("BINVENTORY_JOB_SECRETS", "BINVENTORY_TEST_TOKEN"):
        monkeypatch.delenv(variable, raising=False)
    send(opt_ml, "jobs:succeed", {"value": 3})
    monkeypatch.setenv("BINVENTORY_SECRETS", json.dumps({"BINVENTORY_TEST_TOKEN": f"{service}:/bins/token"}))
    assert main() == 0
    assert os.environ["BINVENTORY_TEST_TOKEN"] == "hush"
    monkeypatch.setenv("BINVENTORY_SECRETS", json.dumps({"BINVENTORY_TEST_TOKEN": f"{service}:/bins/none"}))
    assert main() == 2
    assert (
        f"secrets.BINVENTORY_TEST_TOKEN cannot be read at {service}:/bins/none"
        in (opt_ml / "output/failure").read_text()
    )
    monkeypatch.setenv("BINVENTORY_SECRETS", json.dumps({"BINVENTORY_TEST_TOKEN": "hush"}))
    assert main() == 2
    assert "secrets.BINVENTORY_TEST_TOKEN holds no reference" in (opt_ml / "output/failure").read_text()
    assert "hush" not in (opt_ml / "output/failure").read_text()
