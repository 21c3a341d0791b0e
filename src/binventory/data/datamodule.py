"""The LightningDataModule: prepared bins as batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pytorch_lightning as pl
import torch

from binventory.config.schema import DataConfig
from binventory.data.augment import Augmentation, random_view
from binventory.data.cache.batches import PackedBatches
from binventory.data.cache.photos import PackedPhotos
from binventory.data.cache.residence import place_rows
from binventory.data.columns import Column
from binventory.data.loader import (
    Batch,
    BatchLoader,
    BatchSampler,
    BinDataset,
    Bins,
    Fetched,
    decoded_batches,
    default_num_workers,
)
from binventory.data.prepare import PreparedBins
from binventory.data.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocessing


def make_preprocessing(data: DataConfig, prepared: PreparedBins) -> Preprocessing:
    """Return the preprocessing that a data config asks for; `normalize=dataset` takes the train split's statistics."""
    mean, std = prepared.pixel_statistics() if data.normalize == "dataset" else (IMAGENET_MEAN, IMAGENET_STD)
    return Preprocessing(data.image_size, data.resize, data.interpolation, mean, std)


class BinDataModule(pl.LightningDataModule):
    """Bins of the train, val and test splits as `Batch`es, in an order that is a function of (seed, epoch).

    Args:
        data: the `data` config.
        prepared: the indexed and split bins.
        preprocessing: bytes to pixels.
        seed: of the order and the augmentation.
        overfit_batches: train and validate on the first so many batches only; a float: on that share of them.
        photos: the decoded photos; None: they are decoded when they are asked for.
        features: called when the network is on its device; gives the features of `photos`, (num_photos, num_views,
            num_features) float32, that take the place of pixels, or None where there can be none.
    """

    def __init__(
        self,
        data: DataConfig,
        prepared: PreparedBins,
        preprocessing: Preprocessing,
        *,
        seed: int,
        overfit_batches: float | None = None,
        photos: PackedPhotos | None = None,
        features: Callable[[pl.Trainer], npt.NDArray[np.float32] | None] | None = None,
    ) -> None:
        super().__init__()
        self.data = data
        self.prepared = prepared
        self.preprocessing = preprocessing
        self.seed = seed
        self.augmentation = Augmentation(data, preprocessing.mean, seed)
        self.overfit_batches = overfit_batches
        self.photos = photos
        self.features = features
        self._loaders: list[BatchLoader] = []

    def bins(self, split: str) -> Bins:
        """Return the bins of a split in the index's order."""
        return labelled_bins(self.prepared, split, list(self.data.counts))

    def train_dataloader(self) -> BatchLoader:
        """Return the training batches."""
        return self._loader("train", self._overfit(self.bins("train")), shuffle=True)

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        """Return the validation batches; none when `data.val_fraction` is 0."""
        if self.overfit_batches is not None:
            return self._loader("train", self._overfit(self.bins("train")), shuffle=False)
        bins = self.bins("val")
        return self._loader("val", bins, shuffle=False) if bins.ids else []

    def test_dataloader(self) -> BatchLoader:
        """Return the test batches."""
        return self._loader("test", self.bins("test"), shuffle=False)

    def teardown(self, stage: str) -> None:
        """End the worker processes of a stage that is over."""
        for loader in self._loaders:
            loader.close()
        self._loaders.clear()

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment training batches where they are used; of features, take those of the augmented photo."""
        training = self.trainer if self.trainer is not None and self.trainer.training else None
        if batch.inputs.ndim == 3:
            probability, epoch = (0.0, 0) if training is None else (self.data.hflip, training.current_epoch)
            features = random_view(batch.inputs, batch.position, probability=probability, seed=self.seed, epoch=epoch)
            return batch._replace(inputs=features)
        if training is None:
            return batch
        return batch._replace(inputs=self.augmentation(batch.inputs, batch.position, training.current_epoch))

    def _overfit(self, bins: Bins) -> Bins:
        if self.overfit_batches is None:
            return bins
        batch_size = self.data.batch_size
        num_batches = limit_batches(self.overfit_batches, math.ceil(len(bins.ids) / batch_size))
        keep = slice(0, None if num_batches is None else num_batches * batch_size)
        return Bins(bins.ids[keep], bins.paths[keep], bins.targets[keep], bins.sizes[keep], bins.mtimes_ns[keep])

    def _loader(self, split: str, bins: Bins, *, shuffle: bool) -> BatchLoader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = BatchSampler(
            len(bins.ids), self.data.batch_size, seed=self.seed, shuffle=shuffle, rank=rank, world_size=world_size
        )
        loader = BatchLoader(self._fetched(split, bins, sampler), sampler, on_bad=self.data.on_bad)
        self._loaders.append(loader)
        return loader

    def _fetched(self, split: str, bins: Bins, sampler: BatchSampler) -> Iterable[Fetched]:
        if self.photos is not None:
            rows = self.photos.rows[split][: len(bins.ids)]
            return PackedBatches(self._placed, rows, bins.targets, self.photos.bad, sampler, self._device)
        num_workers = self.data.num_workers
        if num_workers is None:
            num_workers = default_num_workers(self._device.type, sampler.world_size)
        return decoded_batches(BinDataset(bins, self.preprocessing), sampler, num_workers)

    @property
    def _device(self) -> torch.device:
        return self.trainer.strategy.root_device if self.trainer else torch.device("cpu")

    @cached_property
    def _placed(self) -> npt.NDArray[Any] | torch.Tensor:
        """Features, or the decoded photos, where `data.residence` wants them, once for all splits."""
        assert self.photos is not None
        features = self.features(self.trainer) if self.features is not None and self.trainer is not None else None
        return place_rows(self.photos.pixels if features is None else features, self.data.residence, self._device)


def labelled_bins(prepared: PreparedBins, split: str, counts: list[int]) -> Bins:
    """Return the bins of a split with their quantities as positions in `counts`."""
    columns = prepared.index.select(["id", "path", "quantity", "bytes", "mtime_ns"])  # first: what is left is copied
    of_split = columns.filter(pc.equal(prepared.index["split"], split))
    position = {count: place for place, count in enumerate(counts)}
    targets = np.array([position[count] for count in Column[int](of_split["quantity"])], dtype=np.int64)
    return Bins(
        Column(of_split["id"]),
        Column(of_split["path"]),
        targets,
        Column(of_split["bytes"]),
        Column(of_split["mtime_ns"]),
    )


def limit_batches(limit: float | None, num_batches: int) -> int | None:
    """Return how many batches a limit leaves: of an int so many, of a float that share of them, as in Lightning.

    A share is one batch at least: Lightning refuses one that comes to less.
    """
    if limit is None or num_batches == 0:
        return None if num_batches else 0  # without validation photos Lightning would warn of an empty loader
    return limit if isinstance(limit, int) else max(1, int(limit * num_batches))
