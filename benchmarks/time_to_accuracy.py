"""How long it takes to reach a validation accuracy on the drawn bins: the default experiment against a plain loop.

`python benchmarks/time_to_accuracy.py` trains with three seeds in both ways, in turn, and appends mean and standard
deviation to results/time_to_accuracy.csv. Each training ends with the first epoch whose validation accuracy is 0.7 at
least. Network, photos, optimizer, schedule and batch are the same; so are flips, but not their draws.

- a_plain: the source report's recipe: ImageFolder, PIL, float32 in NCHW, a worker for each core, a plain PyTorch loop
- c_train: train.py as it is; neither index nor photo cache is there, both are made within

Seconds are those of everything but imports and drawing the photos.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch
from hydra.utils import instantiate

from binventory.callbacks.metrics_csv import MetricsCsv
from binventory.config.compose import compose_checked
from binventory.data.datamodule import labelled_bins
from binventory.data.prepare import prepare_bins
from binventory.launch.entry import main as launch
from binventory.models.backbones import make_backbone
from recording import record
from rounds import alternate, quietly
from usual import accuracy, make_loader, make_tree, train

TARGET = 0.7


class Clock:
    """When a training got where.

    Args:
        target: the accuracy at which it may stop.
    """

    def __init__(self, target: float) -> None:
        self.target = target
        self.started = time.perf_counter()
        self.epochs = 0
        self.reached_s: float | None = None

    def epoch_ended(self, accuracy: float) -> bool:
        """Note an epoch's validation accuracy; return whether training may stop."""
        self.epochs += 1
        if accuracy >= self.target and self.reached_s is None:
            self.reached_s = time.perf_counter() - self.started
        return self.reached_s is not None


class Race:
    """The two ways.

    Args:
        target: the accuracy that ends a training.
        scratch: an empty folder; the current one.
    """

    def __init__(self, target: float, scratch: Path) -> None:
        self.target = target
        self.config: Any = compose_checked("train", [])[0]
        prepared = prepare_bins(self.config.data, self.config.s3, self.config.paths)
        counts = list(self.config.data.counts)
        self.trees = {
            split: make_tree(labelled_bins(prepared, split, counts), scratch / split) for split in ("train", "val")
        }

    def a_plain(self, seed: int) -> Clock:
        """Train in a plain loop."""
        clock, config = Clock(self.target), self.config
        torch.manual_seed(seed)
        network = make_backbone(config.model.name, "none", len(config.data.counts))
        size, batch_size = config.data.image_size, config.data.batch_size
        photos = make_loader(self.trees["train"], size, batch_size, is_training=True)
        val_photos = make_loader(self.trees["val"], size, batch_size, is_training=False)
        optimizer = instantiate(config.optimizer, _partial_=True, _convert_="all")(network.parameters())
        make_scheduler = instantiate(config.scheduler, _partial_=True, _convert_="all")
        epochs, device = config.trainer.max_epochs, torch.device("cpu")
        scheduler = make_scheduler(optimizer, steps_per_epoch=len(photos), max_epochs=epochs)

        def epoch_ended() -> bool:
            return clock.epoch_ended(accuracy(network, val_photos, device))

        train(network, photos, optimizer, device, epochs=epochs, scheduler=scheduler, epoch_ended=epoch_ended)
        return clock

    def c_train(self, seed: int) -> Clock:
        """Run train.py's own function."""
        shutil.rmtree("cold", ignore_errors=True)
        clock = Clock(self.target)

        class TimedEpochs(MetricsCsv):
            def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
                super().on_train_epoch_end(trainer, pl_module)
                trainer.should_stop = clock.epoch_ended(self.rows[-1]["val/accuracy"])

        with patch("binventory.tasks.training.MetricsCsv", TimedEpochs):
            quietly(lambda: launch("train", [f"seed={seed}", "paths.cache_dir=cold"]))
        return clock


def said(clock: Clock) -> str:
    """Say how a training went."""
    return "never reached" if clock.reached_s is None else f"{clock.reached_s:.1f} s, {clock.epochs} epochs"


def main() -> None:
    """Measure and append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--target", type=float, default=TARGET, help="validation accuracy")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        race = Race(asked.target, Path(scratch))
        seeds = {name: iter(range(asked.seeds)) for name in ("a_plain", "c_train")}
        ways = {name: lambda name=name: getattr(race, name)(next(seeds[name])) for name in seeds}  # type: ignore[misc]
        found: dict[str, list[Clock]] = alternate(ways, asked.seeds, said)
        os.chdir(Path(__file__).parent)
    rows = []
    for name, clocks in found.items():
        reached = [clock.reached_s for clock in clocks if clock.reached_s is not None]
        row = {"way": name, "target": asked.target, "seeds": asked.seeds, "reached": len(reached)}
        if reached:
            row["mean_s"] = round(statistics.fmean(reached), 1)
            row["std_s"] = round(statistics.stdev(reached), 1) if len(reached) > 1 else ""
        rows.append({**row, "mean_epochs": round(statistics.fmean(clock.epochs for clock in clocks), 1)})
    record("time_to_accuracy", rows)


if __name__ == "__main__":
    main()
