"""SIGINT and SIGTERM during training: finish the step, then leave."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import pytorch_lightning as pl
import torch

from binventory.launch.runner import Interrupted


class StopBetweenSteps(pl.Callback):
    """Our handlers only set a flag; at the end of a step all ranks take the largest of their flags and leave together.

    Lightning registers handlers of its own later than `on_fit_start`, and they hang under DDP; so ours come in
    `on_train_start`, which is after them.
    """

    def __init__(self) -> None:
        self._signum = 0
        self._before: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the signals."""

        def handle(signum: int, _frame: FrameType | None) -> None:
            self._signum = signum

        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, handle)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Leave if any rank was asked to."""
        if signum := self._agreed(trainer, pl_module):
            raise Interrupted(signum)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave after a validation too, rather than a step later."""
        if not trainer.sanity_checking and (signum := self._agreed(trainer, pl_module)):
            raise Interrupted(signum)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore()

    def _agreed(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> int:
        if trainer.world_size == 1:
            return self._signum
        flag = torch.tensor(self._signum, device=pl_module.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return int(flag)

    def _restore(self) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)
        self._before.clear()
