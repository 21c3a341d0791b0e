"""What held the training back: measured while it runs, judged when it ends."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from binventory.bottlenecks.judging import load_of
from binventory.bottlenecks.machine import Sampler, open_gpu
from binventory.bottlenecks.report import REPORT, judge, make_report, print_findings
from binventory.bottlenecks.samples import Observations, RankLoad, Sample, Setup
from binventory.bottlenecks.steps import StepTimer
from binventory.config.schema import DataConfig
from binventory.cores import usable_cores
from binventory.distributed import all_gather_objects
from binventory.files import read_limited, write_json
from binventory.launch.runner import ending_of
from binventory.tracking.run_folder import State

log = logging.getLogger(__name__)


class BottleneckReport(pl.Callback):
    """Samples the machine in a thread, times the steps, and writes `bottlenecks.json` when training ends.

    The report is of this attempt alone. It is written too where training is stopped or fails, of rank 0 then. A run
    never fails for want of it. Nothing here is kept in checkpoints or changes a result.

    Args:
        run_dir: the run folder; rank 0 writes there.
        sample_every_s: seconds between two samples.
        data: where its batches come from.
        is_compiled: `trainer.compile`.
    """

    def __init__(self, run_dir: Path, sample_every_s: float, data: DataConfig, *, is_compiled: bool) -> None:
        self.path = run_dir / REPORT
        self.sample_every_s = sample_every_s
        self.data = data
        self.is_compiled = is_compiled
        self._provenance = run_dir / "provenance.json"
        self._timer: StepTimer | None = None  # only while training runs
        self._sampler: Sampler | None = None
        self._gpu_problem = "no step was done"
        self._num_workers: int | None = None
        self._first_step_ended: datetime | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the thread."""
        device = trainer.strategy.root_device
        on_gpu = device.type == "cuda"
        self._timer = StepTimer(partial(torch.cuda.Event, enable_timing=True) if on_gpu else None)
        with _only_warned():
            gpu, self._gpu_problem = None, "the run is on the CPU"
            if on_gpu:
                gpu, self._gpu_problem = open_gpu(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
            self._sampler = Sampler(self.sample_every_s, gpu)
        self._timer.epoch_began()

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for the first batch of the epoch."""
        if self._timer is not None:
            self._timer.epoch_began()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note that the batch is there."""
        if self._timer is not None:
            self._timer.step_began()
            if self._num_workers is None:
                # All that this process started by now are the loader's.
                self._num_workers = len(multiprocessing.active_children())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note that the step is done."""
        if self._timer is not None:
            self._timer.step_ended()
            if self._first_step_ended is None:
                self._first_step_ended = datetime.now(UTC)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave validation out of the step that comes next."""
        if self._timer is not None:
            self._timer.something_else()

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Leave the saving out of the step that comes next."""
        if self._timer is not None:
            self._timer.something_else()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the figures of all ranks together, judge, write, and say what triggered."""
        seen, setup = self._finish(trainer)
        loads = all_gather_objects(seen.loads[0])
        if trainer.is_global_zero:
            self._write(seen, loads, setup, "done", is_said=True)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Write what rank 0 has: the others may be anywhere."""
        if self._timer is not None:
            seen, setup = self._finish(trainer)
            if trainer.is_global_zero:
                self._write(seen, list(seen.loads), setup, ending_of(exception)[0], is_said=False)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write a report that claims nothing where an attempt before this one did every step and wrote none."""
        if trainer.is_global_zero and not self.path.exists():
            seen, setup = self._finish(trainer)
            self._write(seen, [], setup, "done", is_said=False)

    def _finish(self, trainer: pl.Trainer) -> tuple[Observations, Setup]:
        """Stop measuring and return what was measured, and the setup it was measured in."""
        timer = StepTimer(None) if self._timer is None else self._timer
        samples: tuple[Sample, ...] = ()
        with _only_warned():
            samples = () if self._sampler is None else self._sampler.stop()
        self._timer = self._sampler = None
        setup = Setup(
            cpu_cores=usable_cores(),
            num_ranks=trainer.world_size,
            local_ranks=trainer.num_devices,
            num_workers=(self._num_workers or 0) * trainer.num_devices,
            batch_size=self.data.batch_size,
            accumulate_grad_batches=trainer.accumulate_grad_batches,
            is_compiled=self.is_compiled,
            is_cached=self.data.cache,
            residence=self.data.residence,
            gpu_problem=self._gpu_problem,
            machine_cores=os.cpu_count(),
        )
        load = load_of(samples, setup.cpu_cores / setup.local_ranks)
        return Observations(samples, tuple(timer.steps), tuple(timer.durations_s), None, (load,)), setup

    def _write(
        self, seen: Observations, loads: list[RankLoad], setup: Setup, training: State, *, is_said: bool
    ) -> None:
        with _only_warned():
            attempt, initialization_s = self._of_this_attempt()
            seen = Observations(seen.samples, seen.steps, seen.durations_s, initialization_s, loads)
            findings = judge(seen, setup)
            report = make_report(
                seen, setup, findings, attempt=attempt, training=training, sample_every_s=self.sample_every_s
            )
            write_json(self.path, report)
            if is_said:
                print_findings(findings)

    def _of_this_attempt(self) -> tuple[int | None, float | None]:
        """Return which attempt at the run this is, and the seconds from its start to the end of its first step."""
        if not self._provenance.exists():
            return None, None
        facts = json.loads(read_limited(self._provenance))
        attempt = 1 + len(facts.get("earlier_attempts", []))
        if self._first_step_ended is None:
            return attempt, None
        return attempt, (self._first_step_ended - datetime.fromisoformat(facts["started"])).total_seconds()


@contextmanager
def _only_warned() -> Iterator[None]:
    """Turn whatever goes wrong in measuring into a warning."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  a run is worth more than a report about it
        log.warning("no bottleneck report (%s: %s)", type(error).__name__, error)
