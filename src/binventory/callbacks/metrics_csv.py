"""One row per epoch: into metrics.csv, which a reader never sees half written, and to the loggers."""

from __future__ import annotations

import csv
import io
import time
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from binventory.files import write_text
from binventory.metrics.direction import direction


class MetricsCsv(pl.Callback):
    """Writes every metric of each epoch to `metrics.csv` and hands the row to the loggers.

    The rows travel in checkpoints: a resumed run writes those up to its checkpoint and drops what came after.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self._epoch_started = 0.0
        self._seconds_before = 0.0  # of this epoch, in the attempts before this one
        self._lr = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far, and what the row of the epoch under way needs."""
        return {"rows": list(self.rows), "lr": self._lr, "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self.rows = list(state_dict["rows"])
        self._lr, self._seconds_before = state_dict["lr"], state_dict["seconds"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop the rows of epochs that are about to be done again."""
        self._epoch_started = time.perf_counter()
        if trainer.is_global_zero and self.path.exists():
            self._write()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the epoch's clock. Not called for an epoch that was begun before."""
        self._epoch_started, self._seconds_before = time.perf_counter(), 0.0

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note the learning rate of this step: after the last one the schedule has moved on."""
        self._lr = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Add the epoch's row. Validation has run by then."""
        metrics = {name: float(value) for name, value in sorted(trainer.callback_metrics.items())}
        metrics = {name: value for name, value in metrics.items() if not name.startswith("test/")}
        self.rows.append(
            {
                "epoch": trainer.current_epoch + 1,  # as best_epoch and the progress lines count
                "step": trainer.global_step,
                "lr": self._lr,
                "seconds": self._seconds(),
                **metrics,
            }
        )
        self._epoch_started, self._seconds_before = time.perf_counter(), 0.0
        if trainer.is_global_zero:
            self._write()
            by_lightning = trainer.logged_metrics
            row = {name: value for name, value in self.rows[-1].items() if name not in by_lightning}
            for logger in trainer.loggers:
                logger.log_metrics({**row, "epoch": trainer.current_epoch + 1}, step=trainer.global_step - 1)

    def best(self, metric: str | None) -> dict[str, Any] | None:
        """Return the row of the best epoch so far, the first of equals; the last one where no metric chooses."""
        if metric is None or not self.rows:
            return self.rows[-1] if self.rows else None
        sign = 1 if direction(metric) == "max" else -1
        return max(self.rows, key=lambda row: sign * row[metric])

    def _seconds(self) -> float:
        return round(self._seconds_before + time.perf_counter() - self._epoch_started, 3)

    def _write(self) -> None:
        if not self.rows:
            self.path.unlink(missing_ok=True)
            return
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())
