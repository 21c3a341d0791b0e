"""Optimizers and schedules of any class: they work, or are refused before anything starts."""

from __future__ import annotations

import csv
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from binventory.launch.entry import main
from tests.running import TINY, Run, run_here
from tests.wandb.read_back import attempts_of

TORCHS = "scheduler=constant scheduler._target_=torch.optim.lr_scheduler."
# An optimizer's own file: on the command line the keys of a shipped one could not be left out.
OWN = "--config-dir=own optimizer=own optimizer._target_=torch.optim."


def rows_of(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"{TORCHS}ReduceLROnPlateau +scheduler.mode=min", "scheduler.mode=min: val/accuracy"),
        (f"{TORCHS}ReduceLROnPlateau data.val_fraction=0 objective_metric=null", "objective_metric, which is null"),
        (f"{TORCHS}OneCycleLR", "scheduler.max_lr"),
        (
            f"{TORCHS}OneCycleLR +scheduler.max_lr=0.1 +scheduler.epochs=5",
            "its 500 steps are fewer than the 2000 of the run",
        ),
        (
            f"{TORCHS}OneCycleLR +scheduler.max_lr=0.1 +scheduler.total_steps=5",
            "its 5 steps are fewer than the 20 of the run",
        ),
        (f"{TORCHS}OneCycleLR +scheduler.max_lr=0.1 {OWN}Rprop", "OneCycleLR cannot start (ValueError: optimizer must"),
        (f"{TORCHS}CosineAnnealingLR +scheduler.T_max=0", "CosineAnnealingLR cannot start (ZeroDivisionError"),
        (f"{TORCHS}LinearLR +scheduler.start_factor=0", "LinearLR cannot start (ValueError"),
        (f"{TORCHS}LambdaLR +scheduler.lr_lambda=3", "LambdaLR cannot start (TypeError"),
        (f"{OWN}LBFGS", "LBFGS computes the loss several times a step"),
        (f"{OWN}SparseAdam", "SparseAdam does not support dense gradients"),
        (f"{OWN}RAdam optimizer.lr=fast", "RAdam cannot start (TypeError"),
    ],
)
def test_what_cannot_start_is_refused_in_one_line(
    line: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = tmp_path / "own" / "optimizer" / "own.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("_target_: torch.optim.SGD\n_partial_: true\nlr: 0.01\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main("train", [*line.split(), "check=true"])
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert error.count("\n") == 1, error
    assert said in error
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_a_plateau_is_one_of_the_metric_of_the_run_also_when_it_is_resumed(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learning rate of each epoch is that of torch's own schedule over the epochs before it."""
    monkeypatch.setenv("BINVENTORY_ALLOW_TARGETS", "tests.wandb.stopping.")
    options = ["+scheduler.patience=0", "+scheduler.factor=0.5", "+scheduler.threshold=0.2", "trainer.max_epochs=4"]
    stopped = "objective._target_=tests.wandb.stopping.Stopping +objective.at=15 +objective.does=raise"  # in epoch 3
    known = set(workplace.glob("outputs/train/*"))
    with pytest.raises(SystemExit):
        run_here(workplace, "train", *TINY, *f"{TORCHS}ReduceLROnPlateau {stopped}".split(), *options)
    (run,) = set(workplace.glob("outputs/train/*")) - known
    with pytest.raises(AssertionError):  # no new folder
        run_here(workplace, "train", f"resume={run}")  # with fewer steps to go than it is stopped at
    rows = rows_of(run)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=rows[0]["lr"])
    schedule = ReduceLROnPlateau(optimizer, mode="max", patience=0, factor=0.5, threshold=0.2)
    lrs = []
    for row in rows:
        lrs.append(optimizer.param_groups[0]["lr"])
        schedule.step(row["val/accuracy"])
    assert len(set(lrs)) > 1, "it never fell: the test shows nothing"
    assert [row["lr"] for row in rows] == lrs


def test_each_step_is_logged_with_its_loss_and_the_rate_of_one_cycle(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    done = run(
        "train", *TINY, *f"{TORCHS}OneCycleLR +scheduler.max_lr=0.1".split(), "logger=[tensorboard,wandb]",
        "trainer.log_every_n_steps=1",
    )  # fmt: skip
    rows = rows_of(done)
    said = re.findall(r"step 6/6  loss (\S+)  accuracy (\S+)", capsys.readouterr().out)
    assert said == [(f"{row['train/loss']:.4f}", f"{row['train/accuracy']:.3f}") for row in rows], "both of the epoch"
    num_steps, an_epoch = int(rows[-1]["step"]), int(rows[0]["step"])
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1, momentum=0.9)
    schedule, lrs = OneCycleLR(optimizer, max_lr=0.1, total_steps=num_steps), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a schedule without steps of the optimizer
        for _ in range(num_steps):
            lrs.append(optimizer.param_groups[0]["lr"])
            schedule.step()
    events = EventAccumulator(str(done))
    events.Reload()
    shown = {
        name: [(each.step, each.value) for each in events.Scalars(name)] for name in ("train/loss_step", "lr_step")
    }
    assert shown["lr_step"] == [(step, pytest.approx(lr)) for step, lr in enumerate(lrs)]
    losses = [loss for _, loss in shown["train/loss_step"]]
    assert [step for step, _ in shown["train/loss_step"]] == list(range(num_steps))
    # Of 32 photos each but the last.
    assert sum(losses[:an_epoch]) / an_epoch == pytest.approx(rows[0]["train/loss"], rel=0.05)
    (attempt,) = attempts_of(done)
    logged: list[dict[str, Any]] = [row for row in attempt.history if "train/loss_step" in row]
    assert [row["step"] for row in logged] == list(range(1, num_steps + 1))
    assert [row["lr_step"] for row in logged] == pytest.approx(lrs)
    assert [row["train/loss_step"] for row in logged] == pytest.approx(losses)
    assert attempt.step_metrics["train/loss_step"] == attempt.step_metrics["lr_step"] == "step"
    assert all("epoch" not in row for row in logged), "the epoch axis has a point an epoch"
    assert "train/loss_step" not in rows[0], "metrics.csv has a row an epoch"
