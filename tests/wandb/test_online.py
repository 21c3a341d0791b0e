"""What a server gets: runs that were online, and those that `binventory wandb sync` sends afterwards."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from binventory.cli import app
from binventory.tracking.run_folder import RunFolder
from tests.wandb.server import WandbServer
from tests.wandb.test_runs import SMALL, STOPPING, _own_objective, read, rows_of, train  # noqa: F401  the fixture


def check_whole(server: WandbServer, run: Path) -> None:
    """The server has one run: every row of metrics.csv, its end, the figures of the test."""
    (seen,) = server.runs.values()
    assert seen.id == read(run / "wandb.json")["id"]
    assert (seen.project, seen.job_type, seen.display_name) == ("binventory", "train", run.name)
    rows = [row for row in seen.history if "train/loss" in row]
    wanted = rows_of(run)
    assert [{name: row[name] for name in wanted[0]} for row in rows] == [pytest.approx(row) for row in wanted]
    assert [row["_step"] for row in seen.history] == sorted({row["_step"] for row in seen.history})
    assert (seen.exit_code, seen.state, seen.summary["state"]) == (0, "finished", "done")
    assert seen.summary["test/accuracy"] == pytest.approx(read(run / "metrics.json")["test"]["accuracy"])
    assert seen.config["optimizer"]["lr"] == 0.2
    assert server.unknown == []


def test_online_it_goes_on_under_its_id_in_a_sagemaker_container_too(
    workplace: Path, wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There the client takes the training job's name and a random part for the id, unless it is told not to."""
    monkeypatch.setenv("TRAINING_JOB_NAME", "bins-2026-11-22")
    monkeypatch.setenv("SM_TRAINING_ENV", json.dumps({"job_name": "bins-2026-11-22"}))
    run = train(workplace, *SMALL, *STOPPING, "+objective.does=SIGTERM", exit_code=143)
    (seen,) = wandb_server.runs.values()
    assert (seen.exit_code, seen.state) == (143, "preempted")
    train(workplace, f"resume={run}")
    check_whole(wandb_server, run)
    assert wandb_server.runs[seen.id].num_starts == 2
    assert wandb_server.runs[seen.id].group == ""


def test_the_model_is_an_artifact_if_asked(workplace: Path, wandb_server: WandbServer) -> None:
    run = train(workplace, *SMALL, "logger.wandb.log_model=true", "logger.wandb.num_photos=0", "trainer.max_epochs=1")
    (artifact,) = [each for each in wandb_server.artifacts.values() if each.type == "model"]
    assert artifact.files.keys() == {"best.ckpt", "bundle/weights.safetensors", "bundle/bundle.json"}
    assert artifact.files["best.ckpt"] == (run / "checkpoints" / "best.ckpt").read_bytes()
    assert artifact.is_committed
    assert not any("photos" in each.name for each in wandb_server.artifacts.values())


def test_offline_attempts_are_sent_in_order(
    workplace: Path, wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = train(workplace, *SMALL, *STOPPING, "+objective.does=SIGINT", exit_code=130)
    train(workplace, f"resume={run}")
    assert not wandb_server.runs
    monkeypatch.delenv("WANDB_MODE")
    done = CliRunner().invoke(app, ["wandb", "sync", str(run)])
    assert done.exit_code == 0, done.output
    check_whole(wandb_server, run)


def test_a_run_that_is_being_written_is_not_sent(workplace: Path, wandb_server: WandbServer, tmp_path: Path) -> None:
    (tmp_path / "wandb" / "offline-run-20261122_120000-abc").mkdir(parents=True)
    folder = RunFolder(tmp_path, "binventory.tasks.train:run").open()
    folder.write_status("running")
    done = CliRunner().invoke(app, ["wandb", "sync", str(tmp_path)])
    folder.close()
    assert (done.exit_code, wandb_server.requests) == (2, [])
    assert f"process {os.getpid()} still writes this run" in done.stderr


def test_nothing_to_send_is_said(workplace: Path, trained: Path) -> None:
    done = CliRunner().invoke(app, ["wandb", "sync", str(trained)])
    assert done.exit_code == 2
    assert "holds no offline W&B run" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_refused_key_is_an_error_in_one_line(
    workplace: Path, wandb_server: WandbServer, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb_server.refuse_with = 401
    train(workplace, *SMALL, exit_code=2)
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert "returned error 401" in said[0]
    assert "WANDB_MODE=offline" in said[0]


def test_a_server_that_does_not_answer_costs_no_training(
    workplace: Path, wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is logged offline under the id that it would have had."""
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    wandb_server.refuse_with = 503
    run = train(workplace, *SMALL, "trainer.max_epochs=1")
    assert "warning: W&B does not answer" in capsys.readouterr().err
    wandb_server.refuse_with = None
    assert CliRunner().invoke(app, ["wandb", "sync", str(run)]).exit_code == 0
    check_whole(wandb_server, run)
