"""What SageMaker refuses, delays or loses, without a job's container: none of these starts one."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from binventory.cli import app
from binventory.sagemaker.aws import Aws, CallError
from binventory.sagemaker.jobs import TrainingJobs
from binventory.sagemaker.local.server import LocalSageMaker
from binventory.sagemaker.names import name_prefix
from tests.running import TINY
from tests.sweeps.running import Outcome, meanwhile, signal_self, sweep_here

pytestmark = pytest.mark.long

BUCKET = "launches"
SAGEMAKER = ["-m", "hydra/launcher=sagemaker", "hydra.launcher.poll_s=0.1", *TINY]


@pytest.fixture
def plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalSageMaker]:
    """A control plane that has no capacity for any job: it fails before there is a container."""
    with LocalSageMaker(tmp_path / "plane", namespaces=False) as running:
        running.client("s3").create_bucket(Bucket=BUCKET)
        running.faults.no_capacity("*")
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("AWS_PROFILE", raising=False)
        monkeypatch.setenv("BINVENTORY_SAGEMAKER_ROLE", running.role_arn)
        monkeypatch.setenv("BINVENTORY_SAGEMAKER_S3_URI", f"s3://{BUCKET}/bins")
        yield running


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def refusals(plane: LocalSageMaker) -> list[str]:
    return [seen.error for seen in plane.requests if seen.operation == "CreateTrainingJob"]


def test_no_capacity_is_a_failed_run_folder_with_the_reason(plane: LocalSageMaker, tmp_path: Path) -> None:
    outcome = sweep_here(tmp_path, *SAGEMAKER)
    assert (outcome.exit_code, outcome.states) == (1, ["failed"])
    error = outcome.status(0)["error"]
    assert error["type"] == "TrainingJobError"
    assert "CapacityError: Unable to provision requested ML compute capacity" in error["message"]
    assert "CapacityError" in outcome.jobs[0]["error"]
    assert read(outcome.folder / "0/sagemaker.json")["ended"]["status"] == "Failed"


def test_throttled_calls_are_sent_again(plane: LocalSageMaker, tmp_path: Path) -> None:
    plane.faults.throttle(2, "CreateTrainingJob")
    assert sweep_here(tmp_path, *SAGEMAKER).states == ["failed"]
    assert refusals(plane) == ["ThrottlingException", "ThrottlingException", ""]


def test_a_job_that_the_quota_has_no_room_for_waits_for_its_turn(plane: LocalSageMaker, tmp_path: Path) -> None:
    """Spot jobs wait for capacity here, until they are over: long enough for the second to find no room."""
    plane.faults.max_jobs = 1
    spot = ["-m", "hydra/launcher=sagemaker_spot", *SAGEMAKER[2:]]
    spot += ["hydra.launcher.max_runtime_s=5", "hydra.launcher.max_wait_s=5", "optimizer.lr=0.1,0.01"]
    outcome = sweep_here(tmp_path, *spot)
    assert outcome.states == ["preempted", "preempted"]
    assert len(plane.jobs) == 2
    assert "ResourceLimitExceeded" in refusals(plane)
    ended = [read(outcome.folder / str(number) / "sagemaker.json")["ended"] for number in (0, 1)]
    assert [its["secondary_status"] for its in ended] == ["MaxWaitTimeExceeded"] * 2


def test_without_a_job_of_its_own_the_quota_is_a_failure(plane: LocalSageMaker, tmp_path: Path) -> None:
    plane.faults.max_jobs = 0
    outcome = sweep_here(tmp_path, *SAGEMAKER)
    assert outcome.states == ["failed"]
    assert "Service Quotas" in outcome.jobs[0]["error"]


def test_a_stop_that_is_refused_is_asked_for_again(
    plane: LocalSageMaker, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More often than the client itself tries it: the job must not run on unseen."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    plane.faults.throttle(5, "StopTrainingJob")
    watch = meanwhile(lambda: bool(plane.jobs), signal_self(signal.SIGINT))
    spot = ["-m", "hydra/launcher=sagemaker_spot", *SAGEMAKER[2:], "hydra.launcher.max_runtime_s=600"]
    outcome = sweep_here(tmp_path, *spot)
    watch.join()
    assert outcome.exit_code == 130
    assert outcome.states == ["preempted"]
    assert [seen.error for seen in plane.requests if seen.operation == "StopTrainingJob"][-2:] != ["", ""]
    assert "StopTrainingJob: Rate exceeded (ThrottlingException); asking again" in capsys.readouterr().err


def test_a_job_whose_answer_was_lost_is_created_once(plane: LocalSageMaker, tmp_path: Path) -> None:
    outcome = sweep_here(tmp_path, *SAGEMAKER)
    (job,) = plane.jobs.values()
    jobs = TrainingJobs(Aws(None), name_prefix(outcome.folder.name))
    jobs.create(job.request)
    another = job.request | {"OutputDataConfig": {"S3OutputPath": f"s3://{BUCKET}/elsewhere"}}
    with pytest.raises(CallError, match="must be unique"):
        jobs.create(another)
    assert len(plane.jobs) == 1


def test_resume_sweep_sends_a_failed_job_again_under_another_name(plane: LocalSageMaker, tmp_path: Path) -> None:
    first = sweep_here(tmp_path, *SAGEMAKER)
    again = sweep_here(tmp_path, f"resume_sweep={first.folder}")
    assert again.states == ["failed"]
    names = read(first.folder / "0/sagemaker.json")["names"]
    assert names == list(plane.jobs)
    assert names[1] == f"{names[0]}r1"
    checkpoints = {job.request["CheckpointConfig"]["S3Uri"] for job in plane.jobs.values()}
    assert len(checkpoints) == 1


def test_a_run_of_this_machine_is_not_gone_on_with_there(plane: LocalSageMaker, tmp_path: Path) -> None:
    """Its checkpoints are not on S3: it would begin anew in the same folder."""
    first = sweep_here(tmp_path, *SAGEMAKER)
    (first.folder / "0/sagemaker.json").unlink()
    (first.folder / "0/checkpoints").mkdir()
    again = sweep_here(tmp_path, f"resume_sweep={first.folder}")
    assert "was begun on this machine; go on with it by hydra/launcher=local" in again.jobs[0]["error"]
    assert len(plane.jobs) == 1


def test_a_sweep_of_another_region(plane: LocalSageMaker, tmp_path: Path) -> None:
    first = sweep_here(tmp_path, *SAGEMAKER)
    path = first.folder / "0/sagemaker.json"
    path.write_text(json.dumps(read(path) | {"region": "eu-west-1"}))
    again = sweep_here(tmp_path, f"resume_sweep={first.folder}")
    assert "set hydra.launcher.region=eu-west-1" in again.jobs[0]["error"]


def test_a_sweep_of_another_account(plane: LocalSageMaker, tmp_path: Path) -> None:
    """There its training job is unknown, and would be sent a second time."""
    first = sweep_here(tmp_path, *SAGEMAKER)
    path = first.folder / "0/sagemaker.json"
    path.write_text(json.dumps(read(path) | {"account": "210987654321"}))
    again = sweep_here(tmp_path, f"resume_sweep={first.folder}")
    assert "is of account 210987654321, not 123456789012; log in there" in again.jobs[0]["error"]
    assert len(plane.jobs) == 1


def test_two_sweeps_whose_folders_have_one_name(plane: LocalSageMaker, tmp_path: Path) -> None:
    """And a sweep whose folder is moved stays itself."""
    first = sweep_here(tmp_path, *SAGEMAKER, "hydra.sweep.dir=outputs/sweeps/mine")
    moved = first.folder.rename(tmp_path / "outputs/sweeps/moved")
    sweep_here(tmp_path, *SAGEMAKER, "hydra.sweep.dir=outputs/sweeps/mine")
    sweep_here(tmp_path, f"resume_sweep={moved}")
    names = list(plane.jobs)
    assert len(set(names)) == 3
    assert names[2] == f"{names[0]}r1"
    checkpoints = [job.request["CheckpointConfig"]["S3Uri"] for job in plane.jobs.values()]
    assert checkpoints[0] == checkpoints[2] != checkpoints[1]


def attach(folder: Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["sagemaker", "attach", str(folder), "--poll", "0.1"])
    return done.exit_code, done.output


def test_attach_to_what_is_no_sweep_of_sagemaker(plane: LocalSageMaker, tmp_path: Path) -> None:
    assert attach(tmp_path / "nowhere")[0] == 2
    outcome: Outcome = sweep_here(tmp_path, *SAGEMAKER)
    code, said = attach(outcome.folder)
    assert (code, "resume_sweep=" in said) == (1, True)
    record = outcome.folder / "0/sagemaker.json"
    record.write_text(json.dumps(read(record) | {"names": ["../x"]}))
    code, said = attach(outcome.folder)
    assert (code, len(said.strip().splitlines())) == (2, 1)
    assert "not a record of training jobs (see 'names')" in said
    record.unlink()
    code, said = attach(outcome.folder)
    assert (code, "no job of this sweep was on SageMaker" in said) == (2, True)
