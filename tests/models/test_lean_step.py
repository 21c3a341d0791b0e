"""A step never makes the host wait for the device."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from binventory.callbacks.progress import ProgressReport
from binventory.models.module import BinCounter
from tests.running import TINY, Run

# What has to know a value, or a size that hangs on values.
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique")


class Waits(TorchDispatchMode):
    """Counts operations for which the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.partition(".")[0]
        # A mask as an index: how many places it takes has to be known.
        by_mask = name == "index" and any(at is not None and at.dtype == torch.bool for at in args[1])
        if name in WAITING or by_mask:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_no_step_waits_for_the_device(optimizer: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
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
    run("train", *TINY, f"optimizer={optimizer}", "trainer.max_epochs=1")
    assert len(waits) > 5
    assert sum(waits, Counter()) == Counter()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory, "no pass over new memory"
