"""A step never makes the host wait for the device."""

from __future__ import annotations

import csv
import sys
from collections import Counter
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from binventory.callbacks.progress import ProgressReport
from binventory.models.module import BinCounter
from binventory.objectives.classification import Classification
from tests.running import TINY, Run

# What has to know a value, or a size that hangs on values.
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")
# What Python's numbers become before they are copied to a device. The loader's stay with the host.
COPIED = ("lift_fresh", "lift_fresh_copy")
LOADER = "binventory.data.cache.batches"


def calling_modules() -> set[str]:
    """Return the modules of all functions that are under way in this thread."""
    frame, found = sys._getframe(), set()
    while frame is not None:
        found.add(frame.f_globals["__name__"])
        frame = frame.f_back  # type: ignore[assignment]
    return found


class Waits(TorchDispatchMode):
    """Counts operations for which the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        # A mask as an index: how many places it takes has to be known.
        by_mask = name == "index" and any(at is not None and at.dtype == torch.bool for at in args[1])
        is_copied = name in COPIED and LOADER not in calling_modules()
        if name in WAITING or is_copied or by_mask:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("words", [["optimizer=sgd"], ["optimizer=adamw", "augment=light"]], ids=["sgd", "augmented"])
def test_no_step_waits_for_the_device(words: list[str], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between a step that says where the run is and the next, and in every step of validation."""
    waits: list[Counter[str]] = []
    train, evaluate = pl.loops._TrainingEpochLoop.advance, BinCounter.validation_step

    def watched(step: Any) -> Any:
        def stepping(*args: Any) -> Any:
            with Waits() as mode:
                result = step(*args)
            waits.append(mode.seen)
            return result

        return stepping

    monkeypatch.setattr(pl.loops._TrainingEpochLoop, "advance", watched(train))
    monkeypatch.setattr(BinCounter, "validation_step", watched(evaluate))
    monkeypatch.setattr(ProgressReport, "_said", lambda *_: "nothing")
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    run("train", *TINY, *words, "trainer.max_epochs=1")
    assert len(waits) > 5
    assert sum(waits, Counter()) == Counter()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory, "no pass over new memory"


def test_the_training_loss_is_a_mean_over_photos(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last batch of an epoch is smaller, and each loss is made its batch's size."""
    sizes: list[int] = []

    def loss(_self: Any, outputs: Tensor, target: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            sizes.append(len(target))
        return 0 * outputs.sum() + len(target)

    monkeypatch.setattr(Classification, "loss", loss)
    done = run("train", *TINY, "trainer.max_epochs=1")
    (row,) = csv.DictReader((done / "metrics.csv").open())
    assert len(set(sizes)) == 2
    assert float(row["train/loss"]) == pytest.approx(sum(size**2 for size in sizes) / sum(sizes))
