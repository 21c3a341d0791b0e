"""What a run says while it goes on: a live bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

import pytorch_lightning as pl
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from binventory.data.loader import Batch

REFRESH_S = 0.5


class ProgressReport(pl.Callback):
    """Epoch, step, mean loss and accuracy of the epoch so far, images per second and the time left.

    Args:
        every_n_steps: optimizer steps between two plain lines where stdout is no terminal.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self.train_seconds = 0.0
        self.num_images = 0
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._fit_started = self._epoch_started = self._shown = 0.0
        self._epoch_images = 0
        self._batches_before = 0  # done by the attempts before this one

    @property
    def images_per_second(self) -> float:
        """Training throughput so far, over all devices, validation left out."""
        return self.num_images / self.train_seconds if self.train_seconds else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return what was trained so far and how long it took."""
        running = time.perf_counter() - self._epoch_started if self._epoch_images else 0.0
        return {"train_seconds": self.train_seconds + running, "num_images": self.num_images + self._epoch_images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` returned."""
        self.train_seconds, self.num_images = state_dict["train_seconds"], state_dict["num_images"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar."""
        self._fit_started = self._epoch_started = time.perf_counter()
        self._batches_before = _batches_done(trainer, trainer.fit_loop.epoch_loop.batch_progress.current.completed)
        if trainer.is_global_zero and sys.stdout.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[said]}"),
            )
            self._bar = Progress(*columns, refresh_per_second=4)
            self._bar.start()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start counting the epoch."""
        self._epoch_started = time.perf_counter()
        self._epoch_images = 0
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            total = int(trainer.num_training_batches)
            self._task = self._bar.add_task(self._epoch_name(trainer), total=total, said="")

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Say where the run is, now and then: reading the figures waits for the device."""
        self._epoch_images += len(batch.position) * trainer.world_size
        if not trainer.is_global_zero:
            return
        now, done = time.perf_counter(), batch_idx + 1
        last = done == trainer.num_training_batches
        if self._bar is not None and self._task is not None:
            if now - self._shown >= REFRESH_S or last:
                self._shown = now
                self._bar.update(self._task, completed=done, said=self._said(trainer, pl_module, batch_idx))
        elif last or done % (self.every_n_steps * trainer.accumulate_grad_batches) == 0:
            place = f"{self._epoch_name(trainer)} step {done}/{trainer.num_training_batches}"
            print(f"{place}  {self._said(trainer, pl_module, batch_idx)}", flush=True)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the training clock, if no validation did, and say what the epoch came to."""
        self._pause_clock(trainer)
        metrics = trainer.callback_metrics
        if not trainer.is_global_zero:
            return
        names = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/rmse")
        said = "  ".join(f"{name} {float(metrics[name]):.4f}" for name in names if name in metrics)
        line = f"{self._epoch_name(trainer)} done  {said}"
        if self._bar is not None:
            self._bar.console.print(line, highlight=False)
        else:
            print(line, flush=True)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stop the training clock."""
        self._pause_clock(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        self._pause_clock(trainer)
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Leave the terminal as it was."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _pause_clock(self, trainer: pl.Trainer) -> None:
        if trainer.sanity_checking or not self._epoch_images:
            return
        self.train_seconds += time.perf_counter() - self._epoch_started
        self.num_images += self._epoch_images
        self._epoch_images = 0

    def _epoch_name(self, trainer: pl.Trainer) -> str:
        return f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}"

    def _said(self, trainer: pl.Trainer, module: Any, batch_idx: int) -> str:
        # Both of the same photos: those of the epoch so far, of this rank.
        loss, seen = (float(mean.mean_value / mean.weight) for mean in (module.train_loss, module.train_accuracy))
        speed = self._epoch_images / max(1e-9, time.perf_counter() - self._epoch_started)
        return f"loss {loss:.4f}  accuracy {seen:.3f}  {speed:.0f} img/s  ETA {self._time_left(trainer, batch_idx + 1)}"

    def _time_left(self, trainer: pl.Trainer, done: int) -> str:
        finished = _batches_done(trainer, done)
        left = (trainer.max_epochs or 1) * int(trainer.num_training_batches) - finished
        elapsed = time.perf_counter() - self._fit_started
        return str(timedelta(seconds=round(elapsed / (finished - self._batches_before) * left)))


def _batches_done(trainer: pl.Trainer, of_this_epoch: int) -> int:
    return trainer.current_epoch * int(trainer.num_training_batches) + of_this_epoch
