"""How long a command takes before it does its work, and how fast photos are predicted.

`python benchmarks/starting.py` appends medians to results/starting.csv. Files that a command reads were read before.

- help: `python train.py --help`
- cfg: `python train.py --cfg job`
- first_step: from the start of `python train.py` to the end of its first step; bins, index and photo cache are there
- predict: `predict.py` without its imports on native photos (../shared/abid, else drawn ones), to predictions.csv

Seconds by the clock, and CPU seconds; of predict also photos per second, by the clock and per CPU second, which is per
core on a machine that does nothing else. Its networks are ResNet-18 and, to tell the network's share from the photos',
timm's test ResNet, both at 224 pixels.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from binventory.launch.entry import main as launch
from photos import ABID, draw_photos
from recording import record
from rounds import Spent, alternate, cpu_seconds, quietly, spent_by, summary

ROOT = Path(__file__).resolve().parents[1]
NETWORKS = ("resnet18", "tiny")


def started(*words: str) -> Spent:
    """Run train.py to its end."""
    command = [sys.executable, str(ROOT / "train.py"), *words]
    return spent_by(partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL))


def first_step() -> Spent:
    """Run train.py until it says that a step is done."""
    words = ["callbacks.progress.every_n_steps=1", "trainer.limit_train_batches=2", "trainer.max_epochs=1"]
    cpu_s, began = cpu_seconds(), time.perf_counter()
    command = [sys.executable, str(ROOT / "train.py"), *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:  # noqa: S603  our own
        assert process.stdout is not None
        wall_s = next(time.perf_counter() - began for line in process.stdout if " step 1/" in line)
        cpu_s = cpu_seconds() - cpu_s
        process.stdout.read()
    return Spent(wall_s, cpu_s)


def predict(run: Path, photos: Path) -> Spent:
    """Predict all photos of a folder."""
    words = [f"run={run}", f"input={photos}", "contact_sheet=0"]
    return spent_by(partial(quietly, partial(launch, "predict", words)))


def trained(network: str) -> Path:
    """Train one step; return the run folder."""
    small = ["data.reader.num_bins=100", "data.batch_size=16", "data.image_size=224", "trainer.max_epochs=1"]
    limits = [f"trainer.limit_{split}_batches=1" for split in ("train", "val", "test")]
    before = set(Path("outputs/train").glob("*"))
    quietly(partial(launch, "train", [*small, *limits, f"model={network}", "model.weights=none"]))
    (run,) = set(Path("outputs/train").glob("*")) - before
    return run


def main() -> None:
    """Measure and append."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        photos = ABID / "native" / "bin-images"
        if not photos.is_dir():
            photos = draw_photos(Path(scratch) / "drawn", 250, 512)
        num_photos = sum(path.suffix == ".jpg" for path in photos.rglob("*"))
        ways: dict[str, Callable[[], Spent]] = {
            "help": partial(started, "--help"),
            "cfg": partial(started, "--cfg", "job"),
            "first_step": first_step,
        }
        for network in NETWORKS:
            ways[f"predict_{network}"] = partial(predict, trained(network).absolute(), photos)
        first_step()  # draws, indexes and decodes the bins
        found = alternate(ways, asked.rounds, lambda spent: f"{spent.wall_s:.2f} s, {spent.cpu_s:.2f} CPU seconds")
        os.chdir(ROOT)
    rows = []
    for name, spent in found.items():
        wall_s, cpu_s = ([one[place] for one in spent] for place in range(2))
        row: dict[str, Any] = {"way": name, **summary(spent)}
        if name.startswith("predict_"):
            row |= {"num_photos": num_photos, "photos_per_s": round(num_photos / statistics.median(wall_s), 1)}
            row["photos_per_cpu_s"] = round(num_photos / statistics.median(cpu_s), 1)
        rows.append(row)
    record("starting", rows)


if __name__ == "__main__":
    main()
