"""Batches out of decoded photos: one gather for a whole batch, no work per photo."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from binventory.data.loader import PADDING, BatchSampler, Fetched

Places = npt.NDArray[np.int64]


class PackedBatches:
    """The batches of a split, as `binventory.data.loader.decoded_batches` gives them, but for their memory layout.

    Pixels are (B, 3, H, W) uint8 as there; their strides are those of channels_last, in which photos are decoded.

    Args:
        pixels: (N, H, W, 3) uint8: an array in memory or mapped from a file, or a tensor on the device.
        rows: (num_bins,) the row of each bin of the split.
        targets: (num_bins,) positions in `data.counts`.
        bad: row -> why it holds no photo.
        sampler: which bins make up each batch.
        device: where batches go. On a GPU the next one is gathered and copied while the one before is used.
    """

    def __init__(
        self,
        pixels: npt.NDArray[np.uint8] | Tensor,
        rows: Places,
        targets: Places,
        bad: Mapping[int, str],
        sampler: BatchSampler,
        device: torch.device,
    ) -> None:
        self.pixels = pixels
        self.rows = rows
        self.targets = targets
        self.bad = bad
        self.sampler = sampler
        self.device = device
        self._bad_rows = np.array(sorted(bad), dtype=np.int64)

    def __iter__(self) -> Iterator[Fetched]:
        if self.device.type == "cuda" and not isinstance(self.pixels, Tensor):
            return self._copied_ahead()
        return map(self._fetch, self.sampler.batches())

    def _fetch(self, places: Places) -> Fetched:
        rows = self.rows[places]  # of padding: any; it becomes black below
        position, target, errors = places, self.targets[places], []
        is_bad = np.isin(rows, self._bad_rows) & (places != PADDING)
        is_empty = is_bad | (places == PADDING)
        pixels = self._gather(rows)
        if is_empty.any():
            errors = [self.bad[row] for row in rows[is_bad].tolist()]
            position, target = np.where(is_empty, PADDING, places), np.where(is_empty, 0, target)
            pixels[torch.from_numpy(is_empty).to(pixels.device)] = 0
        return (pixels.permute(0, 3, 1, 2), torch.from_numpy(target), torch.from_numpy(position)), errors

    def _gather(self, rows: Places) -> Tensor:
        """Return (B, H, W, 3) uint8 in memory of its own."""
        if isinstance(self.pixels, Tensor):
            return self.pixels.index_select(0, torch.from_numpy(rows).to(self.pixels.device, non_blocking=True))
        if self.device.type != "cuda":
            return torch.from_numpy(np.take(self.pixels, rows, axis=0))
        pinned = torch.empty((len(rows), *self.pixels.shape[1:]), dtype=torch.uint8, pin_memory=True)
        np.take(self.pixels, rows, axis=0, out=pinned.numpy(), mode="clip")  # any other mode writes to a buffer first
        return pinned

    def _copied_ahead(self) -> Iterator[Fetched]:
        """Gather on a thread and copy in a stream of its own, one batch ahead of the one in use."""
        stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        batches = self.sampler.batches()
        with ThreadPoolExecutor(1, thread_name_prefix="gather") as thread:
            gathered = deque(thread.submit(self._fetch, places) for places in islice(batches, 2))
            before: _Copy | None = None
            while gathered:
                copy = _Copy(gathered.popleft().result(), stream)
                gathered.extend(thread.submit(self._fetch, places) for places in islice(batches, 1))
                if before is not None:
                    yield before.received()
                before = copy
            if before is not None:
                yield before.received()


class _Copy:
    """A batch on its way to a GPU."""

    def __init__(self, fetched: Fetched, stream: torch.cuda.Stream) -> None:
        (pixels, *small), self.errors = fetched
        with torch.cuda.stream(stream):
            self.tensors = [part.to(stream.device, non_blocking=True) for part in (pixels, *small)]
        self.done = stream.record_event()

    def received(self) -> Fetched:
        """Return the batch for use in the current stream, which waits for the copy; the host does not."""
        current = torch.cuda.current_stream(self.tensors[0].device)
        current.wait_event(self.done)
        for tensor in self.tensors:
            tensor.record_stream(current)  # else its memory could be given away while it is read
        pixels, target, position = self.tensors
        return (pixels, target, position), self.errors
