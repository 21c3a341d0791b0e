"""The figures of training: of an epoch, before any other callback reads them, and of a step, for the loggers."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from torch import Tensor


class TrainFigures(pl.Callback):
    """Calls the module's `log_train_figures` at the end of an epoch.

    Lightning calls the module's own `on_train_epoch_end` after those of the callbacks, which would be too late for
    metrics.csv; the first callback of the list comes first.
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log them, and let a schedule that goes by them take its step: a checkpoint of this epoch holds it."""
        pl_module.log_train_figures()  # type: ignore[operator]
        pl_module.step_plateau()  # type: ignore[operator]


class StepFigures(pl.Callback):
    """Hands loss and learning rate of every n-th optimizer step to the loggers: `train/loss_step` and `lr_step`.

    The loss is that of rank 0's photos of the step. Reading it waits for the device: only in these steps, and only
    where there is a logger.

    Args:
        every_n_steps: n.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self._due: int | None = None  # the step under way, counted from 1, if it is logged
        self._lrs: list[float] = []
        self._losses: list[Tensor] = []  # of the batches of this step, each divided by their number

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the learning rates that the step is taken with."""
        step = trainer.global_step + 1
        if not trainer.loggers or step % self.every_n_steps:
            self._due = None
        elif self._due != step:
            self._due, self._losses = step, []
            self._lrs = [group["lr"] for group in trainer.optimizers[0].param_groups]

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the step when its last batch is done."""
        if self._due is None:
            return
        self._losses.append(outputs["loss"])
        if trainer.global_step != self._due or not trainer.is_global_zero:
            return
        figures = {"train/loss_step": float(sum(self._losses))}
        figures |= {f"lr_step/{number}" if number else "lr_step": float(lr) for number, lr in enumerate(self._lrs)}
        for logger in trainer.loggers:
            logger.log_metrics(figures, step=self._due - 1)  # Lightning's loggers count from 0

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let loggers write what they hold: a resumed run logs nothing again of what came before its checkpoint."""
        for logger in trainer.loggers:
            logger.save()
