"""What a training step costs the host beyond its own maths: ours, plain Lightning's and a bare loop's.

The network is a linear layer of 16 by 16, so that a step's time is the host's alone. `python benchmarks/steps.py` makes
five rounds of all in one process, every other one in reverse order, and appends the medians to results/steps.csv. Time
is that of the thread that trains: other programs move it less than the clock's.

- bare: forward, loss, backward, optimizer step, in a loop
- lightning: the same in a LightningModule that logs its loss, with CSVLogger and Lightning's own bar
- ours: what `train.py` puts together: module, Trainer, default callbacks, logger, bar, loader, flip, normalisation
- validation: the same Trainer's steps of validation
"""

from __future__ import annotations

import io
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from binventory.callbacks.progress import ProgressReport
from binventory.config.compose import compose_checked
from binventory.data.cache.photos import open_photos
from binventory.data.datamodule import BinDataModule, make_preprocessing
from binventory.data.prepare import prepare_bins
from binventory.tasks.train import make_module, quiet_lightning
from binventory.tasks.training import make_callbacks, make_checkpoints, make_trainer
from recording import record
from rounds import alternate

ROUNDS, NUM_STEPS, BATCH_SIZE, WIDTH, NUM_COUNTS = 5, 1500, 8, 16, 5


class Layer(nn.Module):
    """16 pixels to 16 outputs, of which the counts take the first."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute outputs (B, 5) from pixels (B, 3, H, W)."""
        return self.linear(pixels[:, 0, 0, :WIDTH])[:, :NUM_COUNTS]


class Plain(pl.LightningModule):
    """What a bare loop does, in a LightningModule."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Layer()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return a loss, and log it as is usual."""
        loss = nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer of `ours`."""
        return torch.optim.AdamW(self.parameters(), 1e-3)


class Terminal(io.StringIO):
    """A terminal that shows nothing."""

    def isatty(self) -> bool:
        """Say so."""
        return True

    def write(self, text: str) -> int:
        """Drop it."""
        return len(text)


class Clock(pl.Callback):
    """Seconds from the end of the first tenth of the steps to the end of the last step."""

    seconds = 0.0

    def on_train_batch_end(self, *args: Any) -> None:
        """Start, or note."""
        self.note(done=args[4] + 1)

    def on_validation_batch_end(self, *args: Any) -> None:
        """Start, or note."""
        self.note(done=args[4] + 1)

    def note(self, done: int) -> None:
        """Look at the clock when it is time to."""
        if done == NUM_STEPS // 10:
            self.started = time.thread_time()
        elif done == NUM_STEPS:
            self.seconds = time.thread_time() - self.started


def batches() -> list[tuple[Tensor, Tensor]]:
    """Return as many batches as an epoch has steps, all of them one."""
    return [(torch.rand(BATCH_SIZE, 3, 32, 32), torch.randint(NUM_COUNTS, (BATCH_SIZE,)))] * NUM_STEPS


def bare(_folder: Path) -> float:
    """Train in a loop."""
    layer = Layer()
    optimizer = torch.optim.AdamW(layer.parameters(), 1e-3)
    started = 0.0
    for step, (pixels, target) in enumerate(batches()):
        if step == NUM_STEPS // 10:
            started = time.thread_time()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(layer(pixels), target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return time.thread_time() - started


def lightning(folder: Path) -> float:
    """Train by Lightning as it comes."""
    clock = Clock()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        default_root_dir=folder,
        callbacks=[clock],
        logger=pl.loggers.CSVLogger(folder),
        enable_model_summary=False,
    )
    trainer.fit(Plain(), torch.utils.data.DataLoader(batches(), batch_size=None))
    return clock.seconds


class Repeated:
    """One epoch of as many steps out of few photos: our loader again and again."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self.sampler = loader.sampler
        self.batch_sampler = None
        self.load_state_dict = loader.load_state_dict

    def __len__(self) -> int:
        return NUM_STEPS

    def __iter__(self) -> Iterator[Any]:
        left = NUM_STEPS
        while left:
            for batch in self.loader:
                if not left or len(batch.target) < BATCH_SIZE:
                    break
                left -= 1
                yield batch

    def state_dict(self) -> dict[str, int]:
        """Return a position."""
        return {"batches": 0}


class Data(BinDataModule):
    """Our data module with as many steps an epoch."""

    def train_dataloader(self) -> Any:
        """Return the training batches."""
        return Repeated(super().train_dataloader())

    def val_dataloader(self) -> Any:
        """Return the same photos in listing order."""
        return Repeated(self._loader("train", self.bins("train"), shuffle=False))


def ours(folder: Path) -> float:
    """Train by everything that `train.py` puts together."""
    return trained_or_validated(folder, is_training=True)


def validation(folder: Path) -> float:
    """Validate by it."""
    return trained_or_validated(folder, is_training=False)


def trained_or_validated(folder: Path, *, is_training: bool) -> float:
    """Put all of `train.py` together, and use it."""
    overrides = [f"data.batch_size={BATCH_SIZE}", "data.image_size=32", "data.val_fraction=0", "trainer.max_epochs=1"]
    overrides += ["objective_metric=null", "data.reader.num_bins=400", "data.reader.photo_size=48"]
    overrides += [f"paths.{name}_dir={folder.parent}/{name}" for name in ("cache", "data", "output")]
    config: Any = compose_checked("train", overrides)[0]
    prepared = prepare_bins(config.data, config.s3, config.paths)
    preprocessing = make_preprocessing(config.data, prepared)
    photos = open_photos(config.data, config.paths, prepared, preprocessing)
    data = Data(config.data, prepared, preprocessing, seed=0, photos=photos)
    module = make_module(config, Layer(), preprocessing, is_resumed=False)
    clock = Clock()
    checkpoints = make_checkpoints(config, folder, prepared.fingerprint, None)
    callbacks = make_callbacks(config, ProgressReport(50), folder, checkpoints)
    trainer = make_trainer(config, module.network, folder, [*callbacks, clock], checkpoints, data, None)
    if is_training:
        trainer.fit(module, datamodule=data)
    else:
        trainer.limit_val_batches = 1.0  # off where nothing is cut off for validation
        trainer.validate(module, datamodule=data, verbose=False)
    return clock.seconds


def quietly(way: Callable[[Path], float], scratch: Path) -> float:
    """Train once, with bars that run as on a terminal, and return milliseconds a step."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder, redirect_stdout(Terminal()), redirect_stderr(Terminal()):
        return 1000 * way(Path(folder)) / (0.9 * NUM_STEPS)


def main() -> None:
    """Measure, and write down the medians."""
    quiet_lightning()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        ways = {way.__name__: partial(quietly, way, Path(scratch)) for way in (bare, lightning, ours, validation)}
        found = alternate(ways, ROUNDS, lambda ms: f"{ms:.3f} ms of a step")
    step_ms = {name: statistics.median(values) for name, values in found.items()}
    rows = [
        {"way": name, "step_ms": round(ms, 3), "above_bare_ms": round(ms - step_ms["bare"], 3)}
        for name, ms in step_ms.items()
    ]
    record("steps", rows)


if __name__ == "__main__":
    main()
