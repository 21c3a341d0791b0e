"""The LightningDataModule: prepared bins as batches."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pytorch_lightning as pl
import torch

from binventory.config.schema import DataConfig
from binventory.data.augment import random_flip
from binventory.data.cache.batches import PackedBatches
from binventory.data.cache.photos import PackedPhotos
from binventory.data.cache.residence import place_photos
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
        overfit_batches: train and validate on the first so many batches only.
        photos: the decoded photos; None: they are decoded when they are asked for.
    """

    def __init__(
        self,
        data: DataConfig,
        prepared: PreparedBins,
        preprocessing: Preprocessing,
        *,
        seed: int,
        overfit_batches: int | None = None,
        photos: PackedPhotos | None = None,
    ) -> None:
        super().__init__()
        self.data = data
        self.prepared = prepared
        self.preprocessing = preprocessing
        self.seed = seed
        self.overfit_batches = overfit_batches
        self.photos = photos

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

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Augment training batches where they are used."""
        if self.trainer is None or not self.trainer.training:
            return batch
        epoch = self.trainer.current_epoch
        flipped = random_flip(batch.pixels, batch.position, probability=self.data.hflip, seed=self.seed, epoch=epoch)
        return batch._replace(pixels=flipped)

    def _overfit(self, bins: Bins) -> Bins:
        if self.overfit_batches is None:
            return bins
        keep = slice(0, self.overfit_batches * self.data.batch_size)
        return Bins(bins.ids[keep], bins.paths[keep], bins.targets[keep], bins.sizes[keep], bins.mtimes_ns[keep])

    def _loader(self, split: str, bins: Bins, *, shuffle: bool) -> BatchLoader:
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        sampler = BatchSampler(
            len(bins.ids), self.data.batch_size, seed=self.seed, shuffle=shuffle, rank=rank, world_size=world_size
        )
        return BatchLoader(self._fetched(split, bins, sampler), sampler, on_bad=self.data.on_bad)

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
    def _placed(self) -> npt.NDArray[np.uint8] | torch.Tensor:
        """The decoded photos where `data.residence` wants them, once for all splits."""
        assert self.photos is not None
        return place_photos(self.photos.pixels, self.data.residence, self._device)


def labelled_bins(prepared: PreparedBins, split: str, counts: list[int]) -> Bins:
    """Return the bins of a split with their quantities as positions in `counts`."""
    of_split = prepared.index.filter(pc.equal(prepared.index["split"], split))
    position = {count: place for place, count in enumerate(counts)}
    targets = np.array([position[count] for count in Column[int](of_split["quantity"])], dtype=np.int64)
    return Bins(
        Column(of_split["id"]),
        Column(of_split["path"]),
        targets,
        Column(of_split["bytes"]),
        Column(of_split["mtime_ns"]),
    )
