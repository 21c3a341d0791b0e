"""How long a training of the head alone takes, everything included: the source report's recipe against train.py.

`python benchmarks/frozen.py` does the report's first experiment, a frozen ResNet-18 under a new head at 224 pixels, ten
epochs and one test, on 500 photos once a round in each way, every other round in reverse order, and appends the medians
to results/frozen.csv. Photos and ImageNet weights: those beside the checkout, else drawn photos and random weights.

- a_plain: ImageFolder, PIL, float32 in NCHW, a worker for each core, a plain PyTorch loop; nothing but the head has
  gradients, and BatchNorm is in training mode, as that loop leaves it
- c_train: `train.py experiment=exp1` as it is; index and photo cache are there, features are computed in the run
- c_cold: the same where neither index nor any cache is there
- c_again: the same where features are there too, as in every run of a sweep but the first
- c_uncached: c_train with model.cache_features=false

A way's seconds are those of everything but imports. `a_takes` is how many times as long a_plain takes in that round:
the median, and a 95 % interval.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from binventory.config.compose import compose_checked
from binventory.data.datamodule import labelled_bins
from binventory.data.prepare import prepare_bins
from binventory.launch.entry import main as launch
from binventory.models.backbones import freeze, make_backbone
from photos import ABID, COUNTS, counted, draw_photos
from recording import record
from rounds import Spent, alternate, quietly, ratio, spent_by, summary
from usual import accuracy, make_loader, make_tree, train

WEIGHTS = ABID.parent / "weights" / "resnet18_imagenet_fp16.safetensors"
EXPERIMENT = "exp1"


class Training:
    """The ways to train the head.

    Args:
        asked: the command line's options.
        scratch: an empty folder; the current one.
    """

    def __init__(self, asked: argparse.Namespace, scratch: Path) -> None:
        self.photos = "udacity224" if ABID.is_dir() else "drawn"
        if ABID.is_dir():
            source = [f"data.source={counted(ABID / 'udacity224', scratch / 'source')}"]
        else:
            source = ["data=imagefolder", "data.file_list=null"]
            source += [f"data.source={draw_photos(scratch / 'drawn', asked.photos, 224)}"]
        self.overrides = [
            f"experiment={EXPERIMENT}", *source, f"data.limit={asked.photos}", f"trainer.max_epochs={asked.epochs}",
            f"model.weights={WEIGHTS if WEIGHTS.exists() else 'none'}",
        ]  # fmt: skip
        self.config: Any = compose_checked("train", self.overrides)[0]
        prepared = prepare_bins(self.config.data, self.config.s3, self.config.paths)
        trees = {}
        for split in ("train", "test"):
            bins = labelled_bins(prepared, split, COUNTS)
            trees[split] = make_tree(bins, scratch / split), len(bins.ids)
        (self.train_tree, self.num_train), (self.test_tree, self.num_test) = trees["train"], trees["test"]

    def ways(self, chosen: list[str]) -> dict[str, Callable[[], Spent]]:
        """Return each way's name and a function that trains once."""
        return {name: partial(spent_by, partial(quietly, getattr(self, name))) for name in chosen}

    def a_plain(self) -> None:
        """Train and test in plain loops."""
        config = self.config
        torch.manual_seed(0)
        network = make_backbone(config.model.name, config.model.weights, len(COUNTS))
        freeze(network, "head")
        size, batch_size = config.data.image_size, config.data.batch_size
        loaders = [
            make_loader(tree, size, batch_size, is_training=is_training)
            for tree, is_training in ((self.train_tree, True), (self.test_tree, False))
        ]
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trained, config.optimizer.lr, config.optimizer.momentum)
        cpu = torch.device("cpu")
        train(network, loaders[0], optimizer, cpu, epochs=config.trainer.max_epochs)
        accuracy(network, loaders[1], cpu)

    def c_train(self) -> None:
        """Compute features, then train on them."""
        shutil.rmtree(Path(self.config.paths.cache_dir) / "features", ignore_errors=True)
        self.c_again()

    def c_cold(self) -> None:
        """Index and decode the photos too."""
        shutil.rmtree("cold", ignore_errors=True)
        launch("train", [*self.overrides, "paths.cache_dir=cold"])

    def c_again(self) -> None:
        """Train on the features that are there."""
        launch("train", self.overrides)

    def c_uncached(self) -> None:
        """Compute the backbone in every epoch."""
        launch("train", [*self.overrides, "model.cache_features=false"])


def rows_of(training: Training, found: dict[str, list[Spent]]) -> list[dict[str, Any]]:
    """Return a row for each way."""
    rows = []
    for name, spent in found.items():
        wall_s = [one.wall_s for one in spent]
        row = {
            **{"photos": training.photos, "num_train": training.num_train, "num_test": training.num_test},
            **{"epochs": training.config.trainer.max_epochs, "model": training.config.model.name, "way": name},
            **summary(spent),
        }
        if base := found.get("a_plain"):
            takes = ratio([one.wall_s for one in base], wall_s)
            row |= {"a_takes": round(takes.median, 2), "low": round(takes.low, 2), "high": round(takes.high, 2)}
        rows.append(row)
    return rows


def main() -> None:
    """Measure and append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ["a_plain", "c_train", "c_cold", "c_again", "c_uncached"]
    parser.add_argument("--photos", type=int, default=500, help="photos, a fifth of them for the test")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", choices=names, default=names[:4])
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        training = Training(asked, Path(scratch))
        quietly(training.c_again)  # makes the caches, and imports what is imported late
        found = alternate(training.ways(asked.ways), asked.rounds, lambda spent: f"{spent.wall_s:.1f} s")
        os.chdir(Path(__file__).parent)
    record("frozen", rows_of(training, found))


if __name__ == "__main__":
    main()
