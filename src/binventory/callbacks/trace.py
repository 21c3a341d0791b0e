"""A trace of a few training steps: what ran when, on the host and on the device."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch.profiler import ProfilerActivity, profile, schedule

from binventory.files import atomic_path

log = logging.getLogger(__name__)

TRACE = "trace.json"
NUM_WAIT, NUM_WARMUP = 1, 1  # the first step is slow for other reasons; the profiler's own start costs one


class Trace(pl.Callback):
    """Writes `trace.json`, in Chrome's trace format, of the steps after the first two of this attempt; on rank 0.

    A step goes from the end of the one before to its own end, with the wait for its batch. Recording makes these steps
    slower and changes no result.

    Args:
        run_dir: the run folder.
        num_steps: how many steps to record.
    """

    def __init__(self, run_dir: Path, num_steps: int) -> None:
        self.path = run_dir / TRACE
        self.num_steps = num_steps
        self._profile: Any = None  # only while it may record
        self._num_done = 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Get ready."""
        if not trainer.is_global_zero:
            return
        activities = [ProfilerActivity.CPU]
        if trainer.strategy.root_device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        when = schedule(wait=NUM_WAIT, warmup=NUM_WARMUP, active=self.num_steps, repeat=1)
        self._profile = profile(activities=activities, schedule=when, on_trace_ready=self._write, acc_events=True)
        self._profile.start()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Go on to the next step; when enough are recorded, the trace is written."""
        if self._profile is not None:
            self._profile.step()
            self._num_done += 1

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what there is of a run that was shorter."""
        if self._profile is None:
            return
        if self._num_done <= NUM_WAIT + NUM_WARMUP:
            log.warning("no %s: training ended after %d steps, before any was recorded", TRACE, self._num_done)
            self._drop()
        else:
            self._stop()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Stop recording; nothing is written."""
        if self._profile is not None:
            self._drop()

    def _drop(self) -> None:
        self._profile.on_trace_ready = None
        self._stop()

    def _stop(self) -> None:
        stopping, self._profile = self._profile, None
        stopping.stop()

    def _write(self, recorded: Any) -> None:
        with atomic_path(self.path) as temporary:
            recorded.export_chrome_trace(str(temporary))
