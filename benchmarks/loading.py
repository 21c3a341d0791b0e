"""How fast photos become batches: the usual loader against the photo cache, and how long the cache takes to build.

`python benchmarks/loading.py` makes five rounds of everything in one process, every other round in reverse order, and
appends the medians to results/loading.csv. Photos: those in ../shared/abid (native and 224 pixels), else drawn ones.

What is compared, each in photos per second of CPU time, worker processes included, which is photos per second and core
on a machine that does nothing else. (What other programs do meanwhile moves such figures less than those by the clock.)

- a_loader: as the source report loads: ImageFolder, PIL, resize, flip, float32, normalise, DataLoader, a worker a core
- c_loader: this project's training loader from the photo cache on disk: uint8 batches, on one core
- c_float: the same with flip and normalisation to float32 NCHW, as a_loader's batches are
- e_gather: nothing but copying the photos of a batch out of an array in memory
- pil_loop: open, decode, resize with PIL in a plain loop
- index_and_cache: from photo files to the index and the cache, nothing known before
- cache_alone: the same where the index is there
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image, features

from binventory.config.compose import compose_checked
from binventory.data.augment import random_flip
from binventory.data.cache.photos import open_photos
from binventory.data.cache.staging import StagedPhotos
from binventory.data.datamodule import BinDataModule, make_preprocessing
from binventory.data.prepare import PreparedBins, prepare_bins
from binventory.data.preprocess import Normalize
from photos import ABID, counted
from recording import record
from rounds import alternate, cpu_seconds
from usual import make_loader, make_tree

ROUNDS, IMAGE_SIZE, BATCH_SIZE, MIN_SECONDS = 5, 224, 64, 2.0


class Subject:
    """One set of photos and the ways to load it.

    Args:
        name: what the results call it.
        overrides: where the photos are.
        scratch: an empty folder.
    """

    def __init__(self, name: str, overrides: list[str], scratch: Path) -> None:
        self.name = name
        self.scratch = scratch
        places = [f"paths.cache_dir={scratch}/cache", f"paths.data_dir={scratch}/data"]
        common = [f"data.image_size={IMAGE_SIZE}", f"data.batch_size={BATCH_SIZE}"]
        self.config: Any = compose_checked("train", [*overrides, *places, *common])[0]
        self.prepared = self.prepare()
        self.preprocessing = make_preprocessing(self.config.data, self.prepared)
        photos = open_photos(self.config.data, self.config.paths, self.prepared, self.preprocessing)
        self.module = BinDataModule(self.config.data, self.prepared, self.preprocessing, seed=0, photos=photos)
        self.bins = self.module.bins("train")
        self.array = np.array(photos.pixels)
        self.tree = make_tree(self.bins, scratch / "tree")

    def prepare(self, staged: StagedPhotos | None = None) -> PreparedBins:
        """Read and split the bins, with what is known of them under `paths.cache_dir`."""
        return prepare_bins(self.config.data, self.config.s3, self.config.paths, staged)

    def ways(self) -> dict[str, Callable[[], float]]:
        """Return each way's name and a function that gives its photos per CPU second."""
        return {
            "a_loader": self.a_loader,
            "c_loader": lambda: repeated(self.module.train_dataloader),
            "c_float": lambda: repeated(self.float_batches),
            "e_gather": lambda: repeated(self.gathered),
            "pil_loop": self.pil_loop,
            "index_and_cache": lambda: self.build(with_index=True),
            "cache_alone": lambda: self.build(with_index=False),
        }

    def a_loader(self) -> float:
        """An epoch of the source report's loader, workers started beforehand."""
        loader = make_loader(self.tree, IMAGE_SIZE, BATCH_SIZE, is_training=True)
        for _ in loader:  # the first epoch starts the workers
            pass
        started = cpu_seconds()
        num_photos = sum(len(targets) for _, targets in loader)
        return num_photos / (cpu_seconds() - started)

    def float_batches(self) -> Iterable[tuple[torch.Tensor, ...]]:
        """Batches as a_loader gives them, from the cache."""
        normalize = Normalize(self.preprocessing)
        for batch in self.module.train_dataloader():
            flipped = random_flip(batch.inputs, batch.position, probability=0.5, seed=0, epoch=0)
            yield (normalize(flipped).contiguous(), batch.target)

    def gathered(self) -> Iterable[tuple[np.ndarray, ...]]:
        """Batches in random order and nothing else."""
        order = np.random.default_rng(0).permutation(len(self.bins.ids))
        batch = np.empty((BATCH_SIZE, *self.array.shape[1:]), dtype=np.uint8)
        for first in range(0, len(order), BATCH_SIZE):
            places = order[first : first + BATCH_SIZE]
            yield (np.take(self.array, places, axis=0, out=batch[: len(places)], mode="clip"),)

    def pil_loop(self) -> float:
        """Decode and resize in this thread."""
        started = cpu_seconds()
        for path in self.bins.paths:
            with Image.open(path) as image:
                np.asarray(image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR))
        return len(self.bins.paths) / (cpu_seconds() - started)

    def build(self, *, with_index: bool) -> float:
        """Decode everything, in a new folder, on all cores."""
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            self.config.paths.cache_dir = folder
            staged = StagedPhotos.of(self.config.data, self.config.paths) if with_index else None
            prepared = self.prepared if with_index else self.prepare()
            started = cpu_seconds()
            if with_index:
                prepared = self.prepare(staged)
            photos = open_photos(self.config.data, self.config.paths, prepared, self.preprocessing, staged)
            seconds = cpu_seconds() - started
        return len(photos.pixels) / seconds


def repeated(batches: Callable[[], Iterable[Any]]) -> float:
    """Return photos per CPU second over whole epochs of at least `MIN_SECONDS`, on one thread."""
    num_photos, started = 0, cpu_seconds()
    end = time.monotonic() + MIN_SECONDS
    while time.monotonic() < end:
        num_photos += sum(len(batch[0]) for batch in batches())
    return num_photos / (cpu_seconds() - started)


def subjects(scratch: Path) -> Iterable[Subject]:
    """Give the photos that there are."""
    if ABID.is_dir():
        for name in ("native", "udacity224"):
            source = counted(ABID / name, scratch / name / "source")
            yield Subject(name, ["data=abid", f"data.source={source}"], scratch / name)
    else:
        drawn = ["data=synthetic", "data.reader.photo_size=512", "data.reader.num_bins=1000"]
        yield Subject("drawn", drawn, scratch)


def measure(subject: Subject) -> list[dict[str, Any]]:
    """Return a row for each way: medians over the rounds, and its ratio to the usual one of the same round."""
    print(f"{subject.name}:")
    found = alternate(subject.ways(), ROUNDS, "{:,.0f} photos per CPU second".format)
    rows = []
    for name, rates in found.items():
        usual = found["pil_loop" if "cache" in name or name == "pil_loop" else "a_loader"]
        rows.append(
            {
                "photos": subject.name,
                "num_photos": len(subject.bins.ids),
                "way": name,
                "per_cpu_s": round(statistics.median(rates)),
                "min": round(min(rates)),
                "max": round(max(rates)),
                "ratio": round(statistics.median(rate / base for rate, base in zip(rates, usual, strict=True)), 2),
            }
        )
    return rows


def main() -> None:
    """Measure and append."""
    torch.set_num_threads(1)
    decoder = {"pillow": f"{PIL.__version__} (libjpeg-turbo {features.version('libjpeg_turbo')})"}
    with tempfile.TemporaryDirectory() as scratch:
        rows = [decoder | row for subject in subjects(Path(scratch)) for row in measure(subject)]
    record("loading", rows)


if __name__ == "__main__":
    main()
