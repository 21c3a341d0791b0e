"""W&B runs of real trainings: what their files hold when they are read back, and what a server gets of them."""

from __future__ import annotations

import csv
import json
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from binventory.config.capture import load_config, redact, to_plain
from binventory.errors import ConfigError
from binventory.tracking.wandb_logger import make_wandb_logger
from tests.running import TINY, run_here
from tests.wandb.read_back import Attempt, attempts_of

SMALL = [*TINY, "logger=[csv,wandb]", "trainer.log_every_n_steps=100"]  # an epoch a row, no single steps
STOPPING = ["objective._target_=tests.wandb.stopping.Stopping", "+objective.at=9"]  # of 6 steps an epoch: in epoch 2
PHOTOS = 3


@pytest.fixture(autouse=True)
def _own_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINVENTORY_ALLOW_TARGETS", "tests.wandb.stopping.")


def is_resume(overrides: tuple[str, ...]) -> bool:
    return overrides[0].startswith("resume=")


def train(folder: Path, *overrides: str, exit_code: int = 0) -> Path:
    """Train in this process, also under resume=DIR, which makes no new folder; return the run folder."""
    known = set(folder.glob("outputs/train/*"))
    with pytest.raises((SystemExit, AssertionError)) if exit_code or is_resume(overrides) else nullcontext() as ending:
        run_here(folder, "train", *overrides)
    assert exit_code == (int(str(ending.value)) if ending and ending.type is SystemExit else 0)
    made = set(folder.glob("outputs/train/*")) - known
    return made.pop() if made else Path(overrides[0].removeprefix("resume="))


def rows_of(run: Path) -> list[dict[str, float]]:
    """metrics.csv."""
    with (run / "metrics.csv").open() as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def check_attempt(run: Path, attempt: Attempt, rows: list[dict[str, float]], exit_code: int, state: str) -> None:
    """What every attempt's file says: whose it is, under which config, its epochs, its best one, its end."""
    assert attempt.run.run_id == read(run / "wandb.json")["id"]
    assert (attempt.run.project, attempt.run.job_type, attempt.run.display_name) == ("binventory", "train", run.name)
    config = {key: value for key, value in attempt.config.items() if key not in ("_wandb", "provenance")}
    assert config == redact(to_plain(load_config(run / "config.yaml")))
    said, facts = attempt.config["provenance"], read(run / "provenance.json")
    assert {name: said[name] for name in ("choices", "git", "data")} == {
        name: facts[name] for name in ("choices", "git", "data")
    }
    assert said["overrides"] == facts["overrides"]
    assert said["choices"]["model"] == "tiny"
    assert len(said["data"]["fingerprint"]) == 64
    assert attempt.step_metrics["*"] == "epoch"
    logged = [row for row in attempt.history if "train/loss" in row]
    assert [{name: row[name] for name in rows[0]} for row in logged] == [pytest.approx(row) for row in rows]
    assert attempt.summary["state"] == state
    assert attempt.exit_code == exit_code
    assert attempt.is_preempting == (exit_code == 143)


def check_best(run: Path, attempt: Attempt) -> None:
    best = max(rows_of(run), key=lambda row: row["val/accuracy"])
    assert attempt.summary["best_epoch"] == best["epoch"]
    assert {name: attempt.summary[name] for name in best if "val/" in name} == {
        name: pytest.approx(value) for name, value in best.items() if "val/" in name
    }


def check_results(run: Path, attempt: Attempt) -> None:
    """The figures of metrics.json, and media that predictions.csv gives, too."""
    figures, predictions = read(run / "metrics.json"), list(csv.DictReader((run / "predictions.csv").open()))
    for split in ("val", "test"):
        for name, value in figures[split].items():
            if name != "per_count":
                assert attempt.summary[f"{split}/{name}"] == pytest.approx(value)
    for name in ("best_epoch", "epochs", "train_seconds", "images_per_second"):
        assert attempt.summary[name] == figures[name]
    columns, cells = attempt.table("test/confusion_matrix_table")
    assert columns == ["Actual", "Predicted", "nPredictions"]
    pairs = [(row["quantity"], row["predicted"]) for row in predictions]
    assert {(actual, predicted): number for actual, predicted, number in cells} == {
        (str(actual), str(predicted)): pairs.count((str(actual), str(predicted)))
        for actual in range(1, 6)
        for predicted in range(1, 6)
    }
    _, bars = attempt.table("test/per_count_table")
    assert dict(bars) == {count: entry["accuracy"] for count, entry in figures["test"]["per_count"].items()}
    check_photos(attempt, predictions)


def check_photos(attempt: Attempt, predictions: list[dict[str, str]]) -> None:
    (artifact,) = [each for each in attempt.artifacts if "testphotos" in each.name]
    files = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    shown = read(files["test/photos.table.json"])
    table = [dict(zip(shown["columns"], row, strict=True)) for row in shown["data"]]
    wrong = [row for row in predictions if row["quantity"] != row["predicted"]]
    by_given = sorted(wrong, key=lambda row: float(row[f"p_{row['quantity']}"]))[:PHOTOS]
    by_certainty = sorted(predictions, key=lambda row: max(float(row[f"p_{count}"]) for count in range(1, 6)))[:PHOTOS]
    wanted = [("most wrong", row) for row in by_given] + [("least certain", row) for row in by_certainty]
    assert [(row["why"], row["id"]) for row in table] == [(why, row["id"]) for why, row in wanted]
    for shown, (_, row) in zip(table, wanted, strict=True):
        assert (str(shown["quantity"]), str(shown["predicted"])) == (row["quantity"], row["predicted"])
        assert shown["certainty"] == pytest.approx(max(float(row[f"p_{count}"]) for count in range(1, 6)))
        assert shown["p_quantity"] == pytest.approx(float(row[f"p_{row['quantity']}"]))
    pictures = {name: path for name, path in files.items() if name.endswith(".jpg")}
    assert {row["photo"]["path"] for row in table} == set(pictures)
    for path in pictures.values():
        assert path.read_bytes()[:3] == b"\xff\xd8\xff"
        assert attempt.folder.parent in path.parents, "pictures wait in the run folder"


def test_a_success(workplace: Path) -> None:
    run = train(workplace, *SMALL, f"logger.wandb.num_photos={PHOTOS}", "logger.wandb.tags=[first,bins]")
    (attempt,) = attempts_of(run)
    check_attempt(run, attempt, rows_of(run), 0, "done")
    check_best(run, attempt)
    check_results(run, attempt)
    assert list(attempt.run.tags) == ["first", "bins"]
    assert attempt.run.run_group == ""
    assert not [each for each in attempt.artifacts if each.type == "model"], "only if asked"
    assert len(attempt.history) == len(rows_of(run)) + 1
    assert {"output.log", "requirements.txt"} <= attempt.files
    assert "WANDB_DATA_DIR" not in os.environ


def test_a_failure(workplace: Path) -> None:
    run = train(workplace, *SMALL, *STOPPING, "+objective.does=raise", exit_code=1)
    (attempt,) = attempts_of(run)
    check_attempt(run, attempt, rows_of(run), 1, "failed")
    check_best(run, attempt)
    assert len(attempt.history) == len(rows_of(run)) == 1
    assert "test/accuracy" not in attempt.summary
    assert attempt.summary["error"] == "RuntimeError: something broke"


@pytest.mark.parametrize(("name", "exit_code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_preempted_and_resumed(workplace: Path, name: str, exit_code: int) -> None:
    """Attempts have one id. The second starts in the middle of epoch 2, its summary still knows the first."""
    run = train(workplace, *SMALL, *STOPPING, f"+objective.does={name}", exit_code=exit_code)
    before = rows_of(run)
    train(workplace, f"resume={run}", f"logger.wandb.num_photos={PHOTOS}")
    first, second = attempts_of(run)
    rows = rows_of(run)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert first.run.run_id == second.run.run_id
    check_attempt(run, second, rows[1:], 0, "done")
    check_best(run, second)
    check_results(run, second)
    assert first.exit_code == exit_code
    assert first.summary["state"] == "preempted"
    assert first.is_preempting == (name == "SIGTERM")
    assert [row["epoch"] for row in first.history] == [1]
    assert first.history[0]["val/accuracy"] == pytest.approx(before[0]["val/accuracy"])


def test_the_summary_is_that_of_the_best_epoch_whichever_attempt_had_it(workplace: Path) -> None:
    """The first attempt ends in epoch 3, the second before it has done an epoch."""
    run = train(
        workplace, *TINY, STOPPING[0], "+objective.at=15", "+objective.does=SIGINT", "logger=wandb",
        "trainer.max_epochs=3", "objective_metric=val/loss", exit_code=130,
    )  # fmt: skip
    train(workplace, f"resume={run}", "+objective.at=2", "resume_changed=true", exit_code=130)
    first, second = attempts_of(run)
    rows = rows_of(run)
    assert rows[0]["val/loss"] < rows[1]["val/loss"], "else the best epoch were also the last"
    assert second.history == []
    for attempt in (first, second):
        assert attempt.summary["best_epoch"] == 1
        assert attempt.summary["val/accuracy"] == pytest.approx(rows[0]["val/accuracy"])


def test_a_run_that_comes_to_wandb_late_brings_its_epochs_along(workplace: Path) -> None:
    run = train(workplace, *TINY, *STOPPING, "+objective.does=SIGINT", exit_code=130)
    assert not attempts_of(run)
    train(workplace, f"resume={run}", "logger=wandb")
    (attempt,) = attempts_of(run)
    check_attempt(run, attempt, rows_of(run), 0, "done")
    assert len(rows_of(run)) == 2


def test_a_pruned_run(workplace: Path) -> None:
    run = train(workplace, *SMALL, *STOPPING, "+objective.does=prune")
    (attempt,) = attempts_of(run)
    check_attempt(run, attempt, rows_of(run), 0, "pruned")
    check_best(run, attempt)
    assert len(attempt.history) == 1


def test_a_training_outlives_the_client(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = train(workplace, *SMALL, *STOPPING, "+objective.does=kill_client")
    assert read(run / "status.json")["state"] == "done"
    assert len(rows_of(run)) == 2
    assert capsys.readouterr().err.count("warning: the W&B client has broken down") == 1
    (attempt,) = attempts_of(run)
    assert attempt.exit_code is None


def test_a_run_without_a_best_epoch_and_with_pictures_that_fail_is_done(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As every preset of the report is: without validation photos there is no best.ckpt."""
    run = train(
        workplace, *SMALL, STOPPING[0], "+objective.at=3", "+objective.does=block_media", "trainer.max_epochs=1",
        "logger.wandb.log_model=true", "data.val_fraction=0", "objective_metric=null",
    )  # fmt: skip
    assert read(run / "status.json")["state"] == "done"
    assert capsys.readouterr().err.count("warning: logger=wandb: the pictures of the test could not be logged: ") == 1
    (attempt,) = attempts_of(run)
    assert (attempt.exit_code, attempt.summary["state"]) == (0, "done")
    assert attempt.summary["test/accuracy"] == pytest.approx(read(run / "metrics.json")["test"]["accuracy"])
    (model,) = [each for each in attempt.artifacts if each.type == "model"]
    assert {entry.path for entry in model.manifest.contents} == {
        "last.ckpt", "bundle/bundle.json", "bundle/weights.safetensors"
    }  # fmt: skip


def test_a_loggers_trouble_is_a_warning(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever a logger fails: when it is made, with each thing that it is told, when it is closed."""
    monkeypatch.setenv("BINVENTORY_ALLOW_TARGETS", "tests.wandb.troubled.")
    methods = ["init", "experiment", "log_hyperparams", "log_metrics", "save", "finalize"]
    loggers = [f"+logger.{at}={{_target_:tests.wandb.troubled.Troubled,at:{at}}}" for at in methods]
    run = train(workplace, *TINY, "trainer.max_epochs=1", *loggers, "logger=tensorboard")
    assert read(run / "status.json")["state"] == "done"
    error = capsys.readouterr().err
    for at in methods:
        assert error.count(f"warning: logger={at} has failed, ") == 1
        assert error.count(f"no space left for {at};") == 1
    assert list(run.glob("events.out.tfevents.*")), "other loggers are as they were"


def test_offline_nobody_is_advised_to_go_offline(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^logger=wandb: Invalid project name 'a/b'.*; mend that$"):
        make_wandb_logger(str(tmp_path), "a/b")


def test_from_an_earlier_step_nothing_is_lost_and_tensorboard_shows_nothing_twice(workplace: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = train(
        workplace, *TINY, STOPPING[0], "+objective.at=15", "+objective.does=raise", "logger=[tensorboard,wandb]",
        "trainer.max_epochs=3", "trainer.log_every_n_steps=4", exit_code=1,
    )  # fmt: skip
    (run / "checkpoints" / "last.ckpt").unlink()  # that of epoch 2: the one before it is taken
    train(workplace, f"resume={run}")
    rows = rows_of(run)
    assert [[row.get("epoch") for row in attempt.history if "lr" in row] for attempt in attempts_of(run)] == [
        [1, 2],
        [2, 3],
    ]
    check_attempt(run, attempts_of(run)[1], rows[1:], 0, "done")
    check_best(run, attempts_of(run)[1])
    events = EventAccumulator(str(run))
    events.Reload()
    for name in ("train/loss", "val/accuracy", "lr"):
        shown = [(scalar.step + 1, scalar.value) for scalar in events.Scalars(name)]
        assert shown == [(row["step"], pytest.approx(row[name])) for row in rows]
    every_fourth = list(range(4, int(rows[-1]["step"]) + 1, 4))
    for name in ("train/loss_step", "lr_step"):
        assert [scalar.step + 1 for scalar in events.Scalars(name)] == every_fourth
    logged = [[row["step"] for row in attempt.history if "lr_step" in row] for attempt in attempts_of(run)]
    assert logged == [every_fourth[:3], every_fourth[1:]]  # of steps 1 to 14, and from 7 on
    (tested,) = events.Scalars("test/accuracy")
    assert tested.value == pytest.approx(read(run / "metrics.json")["test"]["accuracy"])
