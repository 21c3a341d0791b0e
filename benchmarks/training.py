"""How fast a network is trained, everything included: the usual ways against train.py, on the same photos.

`python benchmarks/training.py` trains a ResNet-18 from random weights at 224 pixels in each way once a round, every
other round in reverse order, and appends the medians to results/training.csv. Photos: those in ../shared/abid, else
(and with --random) drawn ones, at the network's size. Nothing is validated.

- a_plain: the source report's recipe: ImageFolder, PIL, float32 in NCHW, a worker for each core, a plain PyTorch loop
- b_lightning: the same loader with a plain LightningModule, a default Trainer, CSVLogger and bar
- c_train: train.py as it is, its run folder, callbacks, checkpoints and bundle included; the photo cache is there
- c_float32: the same with trainer.precision=32-true, where c_train may compute in bfloat16
- c_cold: the same where neither index nor cache is there
- d_free: train.py with a loader that costs nothing: the same batches each epoch, made beforehand on the device

A way's seconds are those of everything but imports. `c_is_faster` is how many times as long the way takes as c_train in
the same round: the median, and a 95 % interval; `by_cpu_s` is the same of CPU time, which other programs move less.
For d_free it is the share of the limit that c_train reaches.

On a GPU: `python benchmarks/training.py --device gpu --random --model resnet50 --size 256 --photos 8352 --epochs 40
--rounds 1 --ways c_train d_free`.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import timm
import torch
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.nn import functional as F

from binventory.config.compose import compose_checked
from binventory.data.datamodule import BinDataModule, labelled_bins
from binventory.data.loader import Batch
from binventory.data.prepare import prepare_bins
from binventory.launch.entry import main as launch
from photos import ABID, COUNTS, counted, draw_photos
from recording import record
from rounds import Spent, alternate, quietly, ratio, spent_by, summary
from usual import make_loader, make_tree, train

LR, MOMENTUM = 0.01, 0.9
TEST_FRACTION = 0.1  # train.py tests one batch of them at its end


class UsualModule(pl.LightningModule):
    """A LightningModule as tutorials have it."""

    def __init__(self, model: str) -> None:
        super().__init__()
        self.network: nn.Module = timm.create_model(model, num_classes=len(COUNTS))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Return the loss, and log it."""
        photos, targets = batch
        loss = F.cross_entropy(self.network(photos), targets)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(self.parameters(), LR, MOMENTUM)


class FreeLoader:
    """Batches that are there. (Of a list Lightning thinks that it holds loaders.)"""

    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)


class FreeData(BinDataModule):
    """Training batches that were made before, on the device."""

    loader: FreeLoader | None = None  # outlives the run that made it

    def train_dataloader(self) -> Any:
        """Return them; the first time they are made."""
        if FreeData.loader is None:
            batches = super().train_dataloader()
            FreeData.loader = FreeLoader([Batch(*(part.to(self._device) for part in batch)) for batch in batches])
        return FreeData.loader


class Training:
    """The ways to train.

    Args:
        asked: the command line's options.
        scratch: an empty folder; the current one.
    """

    def __init__(self, asked: argparse.Namespace, scratch: Path) -> None:
        self.asked = asked
        self.scratch = scratch
        self.device = torch.device("cuda" if asked.device == "gpu" else "cpu")
        self.photos = "random" if asked.random or not ABID.is_dir() else f"udacity{asked.size}"
        wanted = round(asked.photos / (1 - TEST_FRACTION))
        if self.photos == "random":
            source = [f"data.source={draw_photos(scratch / 'drawn', wanted, asked.size)}", "data=imagefolder"]
        else:
            source = [f"data.source={counted(ABID / 'udacity224', scratch / 'source')}", "data=abid"]
        self.overrides = [
            *source, f"model={asked.model}", "model.weights=none", "scheduler=constant", f"optimizer.lr={LR}",
            f"optimizer.momentum={MOMENTUM}", f"data.image_size={asked.size}", f"data.batch_size={asked.batch}",
            f"data.limit={wanted}", f"data.test_fraction={TEST_FRACTION}", "data.val_fraction=0",
            "objective_metric=null", "trainer.limit_test_batches=1", f"trainer.max_epochs={asked.epochs}",
            f"trainer={asked.device}",
        ]  # fmt: skip
        config: Any = compose_checked("train", self.overrides)[0]
        self.model = config.model.name
        bins = labelled_bins(prepare_bins(config.data, config.s3, config.paths), "train", COUNTS)
        self.num_photos = len(bins.ids)
        self.tree = make_tree(bins, scratch / "tree")

    def ways(self) -> dict[str, Callable[[], Spent]]:
        """Return each way's name and a function that trains once."""
        ways = {
            "a_plain": self.a_plain,
            "b_lightning": self.b_lightning,
            "c_train": self.c_train,
            "c_float32": self.c_float32,
            "c_cold": self.c_cold,
            "d_free": self.d_free,
        }
        chosen = {name: way for name, way in ways.items() if name in self.asked.ways}
        return {name: partial(spent_by, partial(quietly, way)) for name, way in chosen.items()}

    def a_plain(self) -> None:
        """Train in a plain loop."""
        torch.manual_seed(0)
        network = timm.create_model(self.model, num_classes=len(COUNTS)).to(self.device)
        loader = make_loader(self.tree, self.asked.size, self.asked.batch, is_training=True)
        optimizer = torch.optim.SGD(network.parameters(), LR, MOMENTUM)
        train(network, loader, optimizer, self.device, epochs=self.asked.epochs)

    def b_lightning(self) -> None:
        """Train as Lightning's users do."""
        pl.seed_everything(0, verbose=False)
        loader = make_loader(self.tree, self.asked.size, self.asked.batch, is_training=True)
        trainer = pl.Trainer(
            max_epochs=self.asked.epochs, accelerator=self.asked.device, devices=1, logger=CSVLogger("lightning")
        )
        trainer.fit(UsualModule(self.model), loader)

    def c_train(self) -> None:
        """Run train.py's own function with its command line."""
        launch("train", self.overrides)

    def c_float32(self) -> None:
        """Leave out what bfloat16 gains."""
        launch("train", [*self.overrides, "trainer.precision=32-true"])

    def c_cold(self) -> None:
        """Index and decode the photos too."""
        shutil.rmtree("cold", ignore_errors=True)
        launch("train", [*self.overrides, "paths.cache_dir=cold"])

    def d_free(self) -> None:
        """Leave the loader out."""
        with patch("binventory.tasks.train.BinDataModule", FreeData):
            launch("train", self.overrides)

    def warm_up(self) -> None:
        """Make the cache, and the batches of d_free; what is imported or tuned late is there too."""
        epochs, self.overrides = self.overrides, [*self.overrides, "trainer.max_epochs=1"]
        quietly(self.d_free if "d_free" in self.asked.ways else self.c_train)
        self.overrides = epochs


def rows_of(training: Training, found: dict[str, list[Spent]]) -> list[dict[str, Any]]:
    """Return a row for each way."""
    asked, rows = training.asked, []
    for name, spent in found.items():
        wall_s = [one.wall_s for one in spent]
        row = {
            **{"photos": training.photos, "num_photos": training.num_photos, "epochs": asked.epochs},
            **{"model": training.model, "image_size": asked.size, "batch_size": asked.batch, "device": asked.device},
            **{"way": name, **summary(spent)},
            "images_per_s": round(training.num_photos * asked.epochs / statistics.median(wall_s), 1),
        }
        if base := found.get("c_train"):
            faster = ratio(wall_s, [one.wall_s for one in base])
            row |= {"c_is_faster": round(faster.median, 3), "low": round(faster.low, 3), "high": round(faster.high, 3)}
            row["by_cpu_s"] = round(ratio([one.cpu_s for one in spent], [one.cpu_s for one in base]).median, 3)
        rows.append(row)
    return rows


def options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=256, help="training photos")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--size", type=int, default=224, help="pixels a side")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    parser.add_argument("--random", action="store_true", help="drawn photos")
    names = ["a_plain", "b_lightning", "c_train", "c_float32", "c_cold", "d_free"]
    parser.add_argument("--ways", nargs="+", choices=names, default=names)
    return parser.parse_args()


def main() -> None:
    """Measure and append."""
    asked = options()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        training = Training(asked, Path(scratch))
        ways = training.ways()
        if {"c_train", "d_free"} & set(ways):
            training.warm_up()
        found = alternate(ways, asked.rounds, lambda spent: f"{spent.wall_s:.1f} s")
        os.chdir(Path(__file__).parent)
    record("training", rows_of(training, found))


if __name__ == "__main__":
    main()
