"""How long a training step takes with some settings, and how much memory: measured on random pixels."""

from __future__ import annotations

import copy
import gc
import resource
import statistics
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from pytorch_lightning.utilities.exceptions import SIGTERMException

from binventory.bottlenecks.steps import StepTimer
from binventory.config.schema import TrainConfig
from binventory.data.cache.photos import PackedPhotos
from binventory.data.datamodule import BinDataModule
from binventory.data.loader import Bins
from binventory.data.preprocess import Preprocessing
from binventory.launch.runner import EXIT_INTERRUPTED, EXIT_PREEMPTED
from binventory.models.backbones import make_backbone
from binventory.objectives import num_outputs
from binventory.tasks.precision import runs_on_gpu
from binventory.tasks.train import make_module
from binventory.tasks.training import step_options

WARM_UP_STEPS = 3
BATCHES_PER_EPOCH = 50
MAX_DIFFERENT_PHOTOS = 256  # more photos would only take memory: a gather costs the same

# How there is no memory on the CPU: torch has no exception for it, and oneDNN says no more than the last two.
NO_MEMORY_SAYS = ("can't allocate memory", "bad_alloc", "could not create a", "could not execute a primitive")


@dataclass(frozen=True)
class Settings:
    """What decides how fast a step is and how much memory it takes."""

    batch_size: int
    precision: str
    channels_last: bool
    compile: bool

    def overrides(self) -> dict[str, Any]:
        """Return the config keys and their values."""
        return {
            "data.batch_size": self.batch_size,
            "trainer.precision": self.precision,
            "trainer.compile": self.compile,
            "model.channels_last": self.channels_last,
        }


@dataclass(frozen=True)
class StepSpeed:
    """What a step takes.

    Attributes:
        step_s: the median, from the end of a step to the end of the next: loading and the optimizer included.
        peak_bytes: the most memory in use at once: on a GPU by tensors, on the CPU the resident memory of this process.
    """

    step_s: float
    peak_bytes: int


class NoMemoryError(Exception):
    """A step does not fit into the memory that it may take."""


def measure(config: TrainConfig, settings: Settings, seconds: float) -> StepSpeed:
    """Train on random pixels as `train.py` would: its module, optimizer, loader, augmentation and Trainer.

    Args:
        config: a checked config; its data set is not read, its weights are not loaded.
        settings: what takes the place of its values.
        seconds: how long is measured, after three steps that are not; longer where one step takes longer.

    Raises:
        NoMemoryError: it does not fit. The memory that it took is free again.
    """
    config = _with_settings(config, settings)
    on_gpu = runs_on_gpu(config)
    try:
        with _PeakMemory(on_gpu) as peak:
            step_s = _train(config, seconds)
        return StepSpeed(step_s, peak.bytes)
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        problem = str(error) or "MemoryError"
        says_so = any(words in problem for words in NO_MEMORY_SAYS)
        if not (says_so or isinstance(error, torch.OutOfMemoryError | MemoryError)):
            raise
    finally:
        gc.collect()
        if settings.compile:
            torch.compiler.reset()
        if on_gpu:
            torch.cuda.empty_cache()
    # Raised here, where no traceback holds the step's tensors.
    raise NoMemoryError(problem.splitlines()[0])


def _with_settings(config: TrainConfig, settings: Settings) -> TrainConfig:
    changed: Any = copy.deepcopy(config)
    for key, value in settings.overrides().items():
        OmegaConf.update(changed, key, value)
    return cast(TrainConfig, changed)


def _train(config: TrainConfig, seconds: float) -> float:
    """Return the median seconds of a step."""
    pl.seed_everything(config.seed, workers=True, verbose=False)
    backbone = make_backbone(config.model.name, "none", num_outputs(config.objective, list(config.data.counts)))
    preprocessing = Preprocessing(config.data.image_size, config.data.resize, config.data.interpolation)
    module = make_module(config, backbone, preprocessing, is_resumed=True)
    stopwatch = _Stopwatch(seconds)
    trainer = pl.Trainer(
        **step_options(config, module.network),
        max_epochs=10**6,
        devices=1,
        callbacks=[stopwatch],
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    try:
        trainer.fit(module, datamodule=_RandomBins(config, preprocessing))
    except SystemExit as error:  # how Lightning hands on Ctrl-C and SIGTERM, with codes of its own
        code = EXIT_PREEMPTED if isinstance(error, SIGTERMException) else EXIT_INTERRUPTED
        raise SystemExit(code) from error
    return statistics.median(stopwatch.durations_s)


class _RandomBins(BinDataModule):
    """Bins whose photos are random pixels; all else is the real loader, which finds them decoded."""

    def __init__(self, config: TrainConfig, preprocessing: Preprocessing) -> None:
        side, batch_size = config.data.image_size, config.data.batch_size
        num_bins = BATCHES_PER_EPOCH * batch_size
        num_photos = min(batch_size, MAX_DIFFERENT_PHOTOS)
        generator = np.random.default_rng(config.seed)
        pixels = generator.integers(0, 256, (num_photos, side, side, 3), dtype=np.uint8)
        photos = PackedPhotos(Path(), pixels, {"train": np.arange(num_bins) % num_photos}, {})
        super().__init__(config.data, cast(Any, None), preprocessing, seed=config.seed, photos=photos)
        targets = generator.integers(0, len(config.data.counts), num_bins)
        self._bins = Bins([""] * num_bins, [""] * num_bins, targets, [0] * num_bins, [0] * num_bins)

    def bins(self, split: str) -> Bins:
        """Return the random ones; they are all for training."""
        return self._bins


class _Stopwatch(pl.Callback):
    """Times steps and ends training when it has enough of them."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.durations_s: list[float] = []
        self._num_steps = 0
        self._timer = StepTimer(None)
        self._started = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Wait for the first batch of the epoch."""
        self._timer.epoch_began()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note that the batch is there."""
        self._timer.step_began()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Start the clock after the warm-up; stop when the time is over and at least one step was timed."""
        self._timer.step_ended()
        self._num_steps += 1
        device = trainer.strategy.root_device
        if self._num_steps == WARM_UP_STEPS:
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # what was compiled or loaded shall not count
            self._timer = StepTimer(partial(torch.cuda.Event, enable_timing=True) if device.type == "cuda" else None)
            self._timer.epoch_began()
            self._started = time.perf_counter()
        elif self._num_steps > WARM_UP_STEPS:
            self.durations_s = list(self._timer.durations_s)
            is_over = time.perf_counter() - self._started >= self.seconds
            trainer.should_stop = is_over and len(self.durations_s) > 0


class _PeakMemory:
    """The most memory that was in use at once within the block."""

    def __init__(self, on_gpu: bool) -> None:
        self.bytes = 0
        self._on_gpu = on_gpu

    def __enter__(self) -> _PeakMemory:
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
        else:
            with suppress(OSError):  # Linux alone has it; without it the peak is that of the process's life
                Path("/proc/self/clear_refs").write_text("5")
        return self

    def __exit__(self, *_: object) -> None:
        self.bytes = torch.cuda.max_memory_allocated() if self._on_gpu else _peak_resident_bytes()


def _peak_resident_bytes() -> int:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024 * int(line.split()[1])
    unit_bytes = 1 if sys.platform == "darwin" else 1024
    return unit_bytes * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
