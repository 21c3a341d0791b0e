"""Batches of bins in an order that is a function of (seed, epoch), shared out over ranks."""

from __future__ import annotations

import logging
import math
import os
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from binventory.cores import usable_cores
from binventory.data.decode import PhotoError, read_photo
from binventory.data.preprocess import Preprocessing
from binventory.errors import InputError
from binventory.signals import STOP_SIGNALS

log = logging.getLogger(__name__)

PADDING = -1  # index of a place in a batch that holds no bin


class Bins(NamedTuple):
    """Bins in the index's order: what a dataset reads."""

    ids: Sequence[str]
    paths: Sequence[str]
    targets: npt.NDArray[np.int64]  # positions in `counts`
    sizes: Sequence[int]  # `stamp_of` each photo when it was indexed: bytes
    mtimes_ns: Sequence[int]  # and the time of its last change


# Inputs, target and position of a batch, and why places of it hold no bin.
Fetched = tuple[tuple[Tensor, Tensor, Tensor], list[str]]


class Batch(NamedTuple):
    """One batch.

    Attributes:
        inputs: (B, 3, H, W) pixels, uint8 or, where augmentation made values in between, float32 in 0..255. Where the
            frozen backbone's features are cached: (B, num_views, num_features) float32 of each photo and its flip as
            loaded, (B, num_features) as the network sees them.
        target: (B,) int64, positions in `data.counts`.
        position: (B,) int64, places in the split's bins; -1 where the batch holds no bin.
    """

    inputs: Tensor
    target: Tensor
    position: Tensor


@dataclass(frozen=True)
class Sample:
    """One bin as a worker gives it; `error` says why there are no pixels."""

    pixels: Tensor
    target: int
    index: int
    error: str | None


class BinDataset(Dataset[Sample]):
    """Photos of one split, decoded when asked for."""

    def __init__(self, bins: Bins, preprocessing: Preprocessing) -> None:
        self.bins = bins
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.bins.ids)

    def __getitem__(self, index: int) -> Sample:
        side = self.preprocessing.image_size
        nothing = torch.zeros((3, side, side), dtype=torch.uint8)
        if index == PADDING:
            return Sample(nothing, 0, PADDING, None)
        path = self.bins.paths[index]
        try:
            stamp = self.bins.sizes[index], self.bins.mtimes_ns[index]
            pixels = self.preprocessing.pixels(read_photo(Path(path), stamp), path)
        except PhotoError as error:
            return Sample(nothing, 0, PADDING, str(error))
        return Sample(pixels, int(self.bins.targets[index]), index, None)


class BatchSampler(Sampler[list[int]]):
    """Batches of positions for one rank.

    Training: the epoch's order is a permutation drawn from (seed, epoch); global batch k is the same whatever the
    number of ranks, and each rank takes every n-th place of it. An epoch leaves out at most `world_size - 1` bins, or a
    last batch that would give each rank a single one.
    Evaluation: listing order; every bin once; short ranks are filled up with padding so that all take the same steps.
    """

    def __init__(self, num_bins: int, batch_size: int, *, seed: int, shuffle: bool, rank: int, world_size: int) -> None:
        self.num_bins = num_bins
        self.batch_size = batch_size  # global
        self.seed = seed
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0
        self.first_batch = 0  # of the next iteration alone

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self._num_places() / self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for places in self.batches():
            yield places.tolist()

    def batches(self) -> Iterator[npt.NDArray[np.int64]]:
        """Return what iterating gives, as arrays."""
        order = self._order()
        first, self.first_batch = self.first_batch, 0
        for start in range(first * self.batch_size, len(order), self.batch_size):
            yield order[start : start + self.batch_size][self.rank :: self.world_size]

    def _num_places(self) -> int:
        """Return the bins of an epoch, over all ranks and with padding."""
        if not self.shuffle:
            return self.num_bins + -self.num_bins % self.world_size
        usable = self.num_bins - self.num_bins % self.world_size
        # BatchNorm cannot learn from one bin.
        is_single = usable > self.batch_size and usable % self.batch_size == self.world_size
        return usable - self.world_size if is_single else usable

    def _order(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        if self.shuffle:
            generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([self.seed, self.epoch])))
            return generator.permutation(self.num_bins)[: self._num_places()]
        order = np.full(self._num_places(), PADDING, dtype=np.int64)
        order[: self.num_bins] = np.arange(self.num_bins)
        return order


class BatchLoader:
    """A sized loader of `Batch`; Lightning calls `sampler.set_epoch` before each epoch.

    Its state is the number of batches that were handed out; what was fetched ahead does not count.

    Args:
        fetched: gives the epoch's batches in the sampler's order each time it is iterated: `decoded_batches` or
            `binventory.data.cache.batches.PackedBatches`.
        sampler: the order; the one that `fetched` goes by.
        on_bad: see `data.on_bad`.
    """

    def __init__(self, fetched: Iterable[Fetched], sampler: BatchSampler, *, on_bad: str) -> None:
        self.sampler = sampler
        self.batch_sampler = None  # Lightning asks for one when it looks whether evaluation shuffles
        self.on_bad = on_bad
        self.num_bad = 0
        self._first_batch = 0
        self._num_batches = 0
        self._fetched = fetched

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        # All of this happens when the first batch is asked for: Lightning makes iterators that it never uses, and tells
        # the sampler its epoch later.
        self.sampler.first_batch = self._num_batches = self._first_batch
        self._first_batch = 0
        for tensors, errors in self._fetched:
            batch = Batch(*tensors)
            self._num_batches += 1
            yield self._without_bad(batch, errors) if errors else batch
        self._num_batches = 0

    def state_dict(self) -> dict[str, int]:
        """Return how many batches of the epoch under way were handed out."""
        return {"batches": self._num_batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration, and no later one, begin after so many batches."""
        self._first_batch = state["batches"]

    def close(self) -> None:
        """End the worker processes, where there are any; iterating again starts new ones.

        Left to the garbage collector, torch waits 5 s for each worker: when it wants to tell them to end, the collector
        has closed the queue to them.
        """
        if isinstance(self._fetched, DataLoader):
            if isinstance(self._fetched._iterator, _MultiProcessingDataLoaderIter):
                self._fetched._iterator._shutdown_workers()
            self._fetched._iterator = None

    def _without_bad(self, batch: Batch, errors: list[str]) -> Batch:
        """Obey `data.on_bad` for photos that were whole when they were indexed and no longer are."""
        self.num_bad += len(errors)
        if self.on_bad == "fail":
            raise InputError(f"{errors[0]}; the photo changed after it was indexed; mend it or set data.on_bad=skip")
        for error in errors:
            log.warning("left out of the batch, changed since it was indexed: %s", error)
        if not self.sampler.shuffle:
            return batch  # evaluation passes over places without a bin, and all ranks must take the same steps
        there = batch.position != PADDING
        if not there.any():
            raise InputError(
                f"{errors[0]}; every photo of this batch changed after it was indexed; prepare the data again"
            )
        return Batch(batch.inputs[there], batch.target[there], batch.position[there])


def decoded_batches(dataset: BinDataset, sampler: BatchSampler, num_workers: int) -> Iterable[Fetched]:
    """Return batches whose photos are read and decoded each time, by worker processes where there are any."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=torch.cuda.is_available(),
        persistent_workers=num_workers > 0,
        worker_init_fn=_begin_worker,
    )


def _collate(samples: list[Sample]) -> Fetched:
    pixels = torch.stack([sample.pixels for sample in samples])
    target = torch.tensor([sample.target for sample in samples], dtype=torch.int64)
    index = torch.tensor([sample.index for sample in samples], dtype=torch.int64)
    return (pixels, target, index), [sample.error for sample in samples if sample.error is not None]


def _begin_worker(_worker: int) -> None:
    torch.set_num_threads(1)
    # A signal to all processes of a job is for the one that trains: it needs photos until it has saved.
    for signum in STOP_SIGNALS:
        if signum != signal.SIGTERM:
            signal.signal(signum, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        threading.Thread(target=_end_at_word_of, args=(os.getppid(),), daemon=True).start()


def _end_at_word_of(parent: int) -> None:
    """End this worker when its loader sends SIGTERM, and at nobody else's."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


def default_num_workers(device_type: str, num_processes: int) -> int:
    """Return how many workers a loader gets when nobody says.

    On a GPU: a share of the cores this process may use, at most 8. On the CPU none: training takes all cores, and on
    two of them workers beside it made an epoch three times slower.
    """
    return 0 if device_type == "cpu" else min(8, max(1, usable_cores() // num_processes))
