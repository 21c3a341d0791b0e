"""Probabilities for photos, in batches: what predict and evaluate share."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import torch
from torch import Tensor

from binventory.cores import num_threads
from binventory.data.decode import PhotoError, read_photo
from binventory.data.inputs import InputPhoto
from binventory.data.preprocess import Preprocessing
from binventory.data.progress import track
from binventory.serving.bundle import Bundle
from binventory.tasks.predictions import answer

# Photos decoded ahead of the network, in batches.
AHEAD_BATCHES = 2


def score_photos(
    bundle: Bundle, photos: Sequence[InputPhoto], *, batch_size: int, num_workers: int | None, label: str
) -> list[tuple[Sequence[float] | None, str | None]]:
    """Compute the probabilities of every photo that can be read and for which they are finite.

    Args:
        bundle: the model.
        photos: what to read.
        batch_size: photos per batch.
        num_workers: decoding threads; None: one per core.
        label: what the progress line calls this.

    Returns:
        One (probabilities over `bundle.counts` or None, error or None) per photo, in order.
    """
    results: list[tuple[Sequence[float] | None, str | None]] = []
    pixels: list[Tensor] = []
    places: list[int] = []

    def flush() -> None:
        if pixels:
            for place, row in zip(places, bundle.probabilities(torch.stack(pixels)).tolist(), strict=True):
                results[place] = answer(row)
            pixels.clear()
            places.clear()

    decoded = _decoded(bundle.preprocessing, photos, batch_size * AHEAD_BATCHES, num_workers)
    for place, found in enumerate(track(decoded, len(photos), label)):
        results.append((None, found if isinstance(found, str) else None))
        if isinstance(found, Tensor):
            pixels.append(found)
            places.append(place)
        if len(pixels) == batch_size:
            flush()
    flush()
    return results


def _decoded(
    preprocessing: Preprocessing, photos: Sequence[InputPhoto], ahead: int, num_workers: int | None
) -> Iterator[Tensor | str]:
    """Decode on threads, at most `ahead` photos before they are asked for, in order."""
    with ThreadPoolExecutor(num_threads(num_workers)) as pool:
        waiting = iter(photos)
        running = deque(pool.submit(_decode, preprocessing, photo) for photo in islice(waiting, ahead))
        while running:
            yield running.popleft().result()
            running.extend(pool.submit(_decode, preprocessing, photo) for photo in islice(waiting, 1))


def _decode(preprocessing: Preprocessing, photo: InputPhoto) -> Tensor | str:
    if photo.path is None:
        return photo.error or "no file"
    try:
        return preprocessing.pixels(read_photo(photo.path), str(photo.path))
    except PhotoError as error:
        return str(error)
