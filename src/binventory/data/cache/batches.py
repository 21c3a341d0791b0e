"""Batches out of a pack: one gather for a whole batch, no work per photo."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from binventory.data.loader import PADDING, BatchSampler, Fetched

Places = npt.NDArray[np.int64]


class PackedBatches:
    """The batches of a split, as `binventory.data.loader.decoded_batches` gives them, but for their memory layout.

    Pixels are (B, 3, H, W) uint8 as there; their strides are those of channels_last, in which photos are decoded.
    Frozen features come in their place as (B, num_views, num_features) float32.

    Args:
        source: (N, H, W, 3) uint8 pixels or (N, num_views, num_features) float32 features: an array in memory or mapped
            from a file, or a tensor on the device.
        rows: (num_bins,) the row of each bin of the split.
        targets: (num_bins,) positions in `data.counts`.
        bad: row -> why it holds no photo.
        sampler: which bins make up each batch.
        device: where batches go. On a GPU the next one is gathered and copied while the one before is used.
    """

    def __init__(
        self,
        source: npt.NDArray[Any] | Tensor,
        rows: Places,
        targets: Places,
        bad: Mapping[int, str],
        sampler: BatchSampler,
        device: torch.device,
    ) -> None:
        self.source = source
        self.rows = rows
        self.targets = targets
        self.bad = bad
        self.sampler = sampler
        self.device = device
        self._bad_rows = np.array(sorted(bad), dtype=np.int64)

    def __iter__(self) -> Iterator[Fetched]:
        if self.device.type == "cuda" and not isinstance(self.source, Tensor):
            return self._copied_ahead()
        return map(self._fetch, self.sampler.batches())

    def _fetch(self, places: Places) -> Fetched:
        rows = self.rows[places]  # of padding: any; it becomes zeros below
        position, target, errors = places, self.targets[places], []
        is_bad = np.isin(rows, self._bad_rows) & (places != PADDING)
        is_empty = is_bad | (places == PADDING)
        inputs = self._gather(rows)
        if is_empty.any():
            errors = [self.bad[row] for row in rows[is_bad].tolist()]
            position, target = np.where(is_empty, PADDING, places), np.where(is_empty, 0, target)
            inputs[torch.from_numpy(is_empty).to(inputs.device)] = 0
        if inputs.ndim == 4:  # photos
            inputs = inputs.permute(0, 3, 1, 2)
        return (inputs, torch.from_numpy(target), torch.from_numpy(position)), errors

    def _gather(self, rows: Places) -> Tensor:
        """Return the rows in memory of their own."""
        if isinstance(self.source, Tensor):
            return self.source.index_select(0, torch.from_numpy(rows).to(self.source.device, non_blocking=True))
        if self.device.type != "cuda":
            return torch.from_numpy(np.take(self.source, rows, axis=0))
        dtype = torch.uint8 if self.source.dtype == np.uint8 else torch.float32
        pinned = torch.empty((len(rows), *self.source.shape[1:]), dtype=dtype, pin_memory=True)
        np.take(self.source, rows, axis=0, out=pinned.numpy(), mode="clip")  # any other mode writes to a buffer first
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
        tensors, self.errors = fetched
        with torch.cuda.stream(stream):
            self.tensors = [tensor.to(stream.device, non_blocking=True) for tensor in tensors]
        self.done = stream.record_event()

    def received(self) -> Fetched:
        """Return the batch for use in the current stream, which waits for the copy; the host does not."""
        current = torch.cuda.current_stream(self.tensors[0].device)
        current.wait_event(self.done)
        for tensor in self.tensors:
            tensor.record_stream(current)  # else its memory could be given away while it is read
        inputs, target, position = self.tensors
        return (inputs, target, position), self.errors
