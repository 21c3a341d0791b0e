"""When checkpoints are written: by steps, by minutes, by epochs, and never between two optimizer steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from binventory.callbacks import checkpoints as module
from binventory.callbacks.checkpoint_file import find_checkpoint, write_checkpoint
from binventory.errors import InputError
from tests.running import TINY, Run, latest

EPOCHS = ("trainer.max_epochs=4", "seed=9", "objective_metric=null")


def saved(run: Run, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> list[tuple[int, int, int]]:
    """Train and return (epochs done, batches done, optimizer steps) of every last.ckpt, as it was written."""
    places = []

    def note(checkpoint: dict[str, Any], path: Path) -> None:
        write_checkpoint(checkpoint, path)
        position = torch.load(path, weights_only=True)["binventory"]["position"]
        places.append((position["epoch"], position["batches"], position["step"]))

    with monkeypatch.context() as patch:
        patch.setattr("binventory.callbacks.checkpoint_file.write_checkpoint", note)
        run("train", *TINY, *EPOCHS, *overrides)
    return places


def test_by_epochs(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    assert saved(run, monkeypatch) == [(1, 0, 6), (2, 0, 12), (3, 0, 18), (4, 0, 24)]
    assert saved(run, monkeypatch, "callbacks.checkpoint.every_n_epochs=3") == [(3, 0, 18), (4, 0, 24)]
    assert saved(run, monkeypatch, "callbacks.checkpoint.every_n_epochs=null") == [(4, 0, 24)], "the end is always kept"


def test_by_steps(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    places = saved(run, monkeypatch, "callbacks.checkpoint.every_n_epochs=null", "callbacks.checkpoint.every_n_steps=9")
    assert places == [(1, 3, 9), (3, 0, 18), (4, 0, 24)], "what falls on a last batch is written at the epoch's end"


def test_never_inside_an_accumulation_window(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    places = saved(
        run,
        monkeypatch,
        "trainer.accumulate_grad_batches=4",
        "callbacks.checkpoint.every_n_steps=1",
        "trainer.max_epochs=2",
    )
    assert places == [(0, 4, 1), (1, 0, 2), (1, 4, 3), (2, 0, 4)]


def test_by_minutes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on 20 seconds at each look."""
    seconds = iter(range(0, 100_000, 20))

    class Clock:
        monotonic = staticmethod(lambda: next(seconds))

    with monkeypatch.context() as patch:
        patch.setattr(module, "time", Clock)
        places = saved(
            run, monkeypatch, "callbacks.checkpoint.every_n_minutes=1", "callbacks.checkpoint.every_n_epochs=null"
        )
    assert places[0] == (0, 3, 3), "a minute is three looks"
    assert len(places) > 5


def test_what_is_not_finite_is_never_saved(run: Run, workplace: Path) -> None:
    """After the first step the weights are huge, after the second they are NaN."""
    words = ["callbacks.checkpoint.every_n_steps=1", "scheduler=constant", "optimizer.lr=1e30"]
    with pytest.raises(SystemExit, match="1"):
        run("train", *TINY, *words)
    folder = latest(workplace, "train")
    error = json.loads((folder / "status.json").read_text())["error"]
    assert error["type"] == "DivergedError"
    assert "holds NaN or infinity after step 2, in epoch 1" in error["message"]
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 1
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    assert not (folder / "checkpoints" / "best.ckpt").exists()


@pytest.mark.parametrize("part", ["state_dict", "current_model_state"])
def test_nothing_goes_on_from_weights_that_are_not_finite(part: str, trained: Path, tmp_path: Path) -> None:
    """With an average of the weights there are two sets: raw ones that are NaN make the average NaN one step later."""
    checkpoint = torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)
    write_checkpoint(checkpoint, tmp_path / "last.ckpt")
    weights = dict(checkpoint["state_dict"])
    weights["network.backbone.layer4.0.bn1.running_var"] = (
        weights["network.backbone.layer4.0.bn1.running_var"] + torch.inf
    )
    write_checkpoint({**checkpoint, part: weights}, tmp_path / "last.ckpt")
    assert find_checkpoint(tmp_path) == tmp_path / "previous.ckpt"
    write_checkpoint({**checkpoint, part: weights}, tmp_path / "last.ckpt")
    with pytest.raises(InputError, match=r"layer4.0.bn1.running_var.* holds NaN or infinity"):
        find_checkpoint(tmp_path)


def test_best_is_kept_whatever_the_period(run: Run) -> None:
    folder = run("train", *TINY, "trainer.max_epochs=3", "seed=9", "callbacks.checkpoint.every_n_epochs=100")
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["binventory"]["best"]["epoch"] == best["binventory"]["position"]["epoch"]
