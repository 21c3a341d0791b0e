"""The training figures of an epoch, logged before any other callback reads them."""

from __future__ import annotations

import pytorch_lightning as pl


class TrainFigures(pl.Callback):
    """Calls the module's `log_train_figures` at the end of an epoch.

    Lightning calls the module's own `on_train_epoch_end` after those of the callbacks, which would be too late for
    metrics.csv; the first callback of the list comes first.
    """

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Log them."""
        pl_module.log_train_figures()  # type: ignore[operator]
