"""When checkpoints are written: by steps, by minutes, by epochs, and never between two optimizer steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from binventory.callbacks import checkpoints as module
from binventory.callbacks.checkpoint_file import write_checkpoint
from tests.running import TINY, Run

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


def test_best_is_kept_whatever_the_period(run: Run) -> None:
    folder = run("train", *TINY, "trainer.max_epochs=3", "seed=9", "callbacks.checkpoint.every_n_epochs=100")
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["binventory"]["best"]["epoch"] == best["binventory"]["position"]["epoch"]
