"""The loopback server takes in what the real client sends, whole and in order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import wandb

from tests.wandb.server import ENTITY, WandbServer


def log_epochs(first: int, *, exit_code: int = 0, **options: object) -> None:
    """Log two epochs as a run of the client in this process, and finish it."""
    run = wandb.init(project="bins", id="abc", settings=wandb.Settings(silent=True, console="off"), **options)
    for epoch in (first, first + 1):
        run.log({"epoch": epoch, "val/accuracy": epoch / 10})
    run.finish(exit_code=exit_code)


def test_a_run_arrives_whole(wandb_server: WandbServer) -> None:
    config = {"optimizer": {"lr": 0.1}, "counts": [1, 2], "none": None}
    log_epochs(0, config=config, group="g", job_type="train", tags=["x"], name="first", notes="said")
    run = wandb_server.runs["abc"]
    assert (run.entity, run.project, run.display_name) == (ENTITY, "bins", "first")
    assert (run.group, run.job_type, run.tags, run.notes, run.sweep) == ("g", "train", ["x"], "said", "")
    assert run.config == config
    assert [(row["_step"], row["epoch"], row["val/accuracy"]) for row in run.history] == [(0, 0, 0), (1, 1, 0.1)]
    assert run.summary["val/accuracy"] == 0.1
    assert (run.state, run.exit_code, run.num_starts) == ("finished", 0, 1)
    assert {"config.yaml", "wandb-summary.json", "requirements.txt"} <= run.files.keys()
    assert wandb_server.unknown == []
    assert "UpsertBucket" in wandb_server.requests


def test_a_second_start_goes_on_behind_the_first(wandb_server: WandbServer) -> None:
    log_epochs(0, resume="allow", config={"a": 1}, exit_code=1)
    assert (wandb_server.runs["abc"].state, wandb_server.runs["abc"].exit_code) == ("failed", 1)
    log_epochs(2, resume="allow", config={"b": 2})
    run = wandb_server.runs["abc"]
    assert [(row["_step"], row["epoch"]) for row in run.history] == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert run.config == {"a": 1, "b": 2}
    assert run.summary["epoch"] == 3
    assert (run.state, run.exit_code, run.num_starts) == ("finished", 0, 2)
    assert wandb_server.unknown == []


def test_a_start_without_resume_overwrites(wandb_server: WandbServer) -> None:
    log_epochs(0)
    log_epochs(5)
    run = wandb_server.runs["abc"]
    assert [row["epoch"] for row in run.history] == [5, 6]
    assert run.num_starts == 2


def test_pictures_and_tables_arrive_as_files(wandb_server: WandbServer, tmp_path: Path) -> None:
    kept = tmp_path / "model.bin"
    kept.write_bytes(b"weights")
    with wandb.init(project="bins", settings=wandb.Settings(silent=True, console="off")) as run:
        run.mark_preempting()
        picture = wandb.Image(np.zeros((8, 8, 3), np.uint8))
        run.log({"picture": picture, "table": wandb.Table(columns=["id", "photo"], data=[["01000", picture]])})
        artifact = wandb.Artifact("model", "model", metadata={"accuracy": 0.5})
        artifact.add_file(str(kept))
        run.log_artifact(artifact)
    seen = wandb_server.runs[run.id]
    assert seen.files[seen.history[0]["picture"]["path"]].startswith(b"\x89PNG")
    assert b'"01000"' in seen.files[seen.history[0]["table"]["path"]]
    assert seen.is_preempting
    model = next(artifact for artifact in wandb_server.artifacts.values() if artifact.type == "model")
    assert (model.name, model.run, model.metadata, model.is_committed) == ("model", run.id, {"accuracy": 0.5}, True)
    assert model.files == {"model.bin": b"weights"}
    assert b"model.bin" in model.manifest
    assert wandb_server.unknown == []


def test_what_it_does_not_know_is_named(wandb_server: WandbServer) -> None:
    status, _ = wandb_server.answer("GET", "/elsewhere", b"")
    wandb_server.answer("POST", "/graphql", b'{"query": "query Odd { viewer { entity shoeSize } weather }"}')
    assert status == 404
    assert wandb_server.unknown == ["GET /elsewhere", "Odd.viewer.shoeSize", "Odd.weather"]


def test_a_refusal_reaches_the_client(wandb_server: WandbServer) -> None:
    wandb_server.refuse_with = 401
    with pytest.raises(wandb.errors.CommError, match="refused by the test"):
        log_epochs(0)
    assert wandb_server.runs == {}
