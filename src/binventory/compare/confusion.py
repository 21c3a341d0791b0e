"""Confusion matrices: how often each recorded quantity was counted as what."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from binventory.compare.tested import Predictions

MAX_COUNTS = 30  # a matrix of more cannot be read


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix of a run over its test set.

    Attributes:
        run: position in the list of runs.
        counts: C of them, ascending: every quantity that was recorded or predicted.
        matrix: C rows of C numbers of photos: by recorded quantity, then by predicted count. Empty where there are
            more than 30 counts.
    """

    run: int
    counts: tuple[int, ...]
    matrix: tuple[tuple[int, ...], ...]


def confusion_of(run: int, predictions: Predictions) -> Confusion:
    """Return the confusion matrix of a run's predictions; `run` is its position."""
    both = np.concatenate([predictions.quantities, predictions.predicted])
    counts, places = np.unique(both, return_inverse=True)
    size, num_images = len(counts), len(predictions.ids)
    named = tuple(counts.tolist())
    if size > MAX_COUNTS:
        return Confusion(run, named, ())
    cells = np.bincount(places[:num_images] * size + places[num_images:], minlength=size * size)
    return Confusion(run, named, tuple(map(tuple, cells.reshape(size, size).tolist())))
