"""The summary of a W&B run: what its best epoch so far came to."""

from __future__ import annotations

import pytorch_lightning as pl

from binventory.callbacks.metrics_csv import MetricsCsv
from binventory.tracking.wandb_logger import BinWandbLogger


class WandbSummary(pl.Callback):
    """Keeps the summary at the best epoch, also where an earlier attempt had it. Comes after `MetricsCsv`.

    Args:
        epochs: what holds the rows.
        metric: what the best epoch goes by; None: the last one counts.
    """

    def __init__(self, epochs: MetricsCsv, metric: str | None) -> None:
        self.epochs = epochs
        self.metric = metric

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take up what the attempts before this one reached, and log it where they had no W&B run."""
        for logger in trainer.loggers:
            if isinstance(logger, BinWandbLogger) and logger.is_new:
                for row in self.epochs.rows:
                    logger.log_metrics(row)
        self._show(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the best so far."""
        self._show(trainer)

    def _show(self, trainer: pl.Trainer) -> None:
        row = self.epochs.best(self.metric)
        for logger in trainer.loggers:
            if row is not None and isinstance(logger, BinWandbLogger):
                logger.log_best(row)
