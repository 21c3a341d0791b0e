"""Paired comparison of runs that were tested on the same photos: McNemar's test, and a bootstrap of the photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from binventory.compare.tested import Predictions, Tested

NUM_RESAMPLES = 2000
SEED = 0  # of the bootstrap: the same runs give the same intervals
CONFIDENCE = 0.95
MAX_BLOCK = 4_000_000  # weights of resamples held at a time: 32 MB

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """Two runs on one test set. Differences are those of the first less the second.

    Attributes:
        first, second: positions in the list of runs.
        only_first, only_second: photos that only this one of the two counted right.
        accuracy_difference: as a fraction.
        accuracy_interval: 95%, Wald's with Bonett and Price's adjustment for paired proportions.
        accuracy_p: McNemar's exact test, two-sided.
        accuracy_p_corrected: by Holm over all pairs of the comparison.
        rmse_difference: of the likeliest counts, in items.
        rmse_interval: 95%, percentiles over resamples of the photos.
        rmse_p: two-sided, from the difference over its bootstrap standard error.
        rmse_p_corrected: by Holm over all pairs of the comparison.
    """

    first: int
    second: int
    only_first: int
    only_second: int
    accuracy_difference: float
    accuracy_interval: tuple[float, float]
    accuracy_p: float
    accuracy_p_corrected: float
    rmse_difference: float
    rmse_interval: tuple[float, float]
    rmse_p: float
    rmse_p_corrected: float


def compare_pairs(tested: Tested) -> list[Pair]:
    """Compare every two runs of each test set, and no others."""
    figures = [_figures_of_pairs(same.runs, [tested.predictions[place] for place in same.runs]) for same in tested.sets]
    return _corrected([figure for of_set in figures for figure in of_set])


def mcnemar(only_first: NDArray[np.int64], only_second: NDArray[np.int64]) -> Floats:
    """Return the exact two-sided p of McNemar's test for numbers of photos that only one of two runs got right."""
    from scipy.special import bdtr  # type: ignore[import-untyped]  # scipy.stats would take a second to import

    fewer = np.minimum(only_first, only_second).astype(np.float64)
    p: Floats = np.minimum(1.0, 2 * bdtr(fewer, only_first + only_second, 0.5))
    return p


def holm(p: Floats) -> Floats:
    """Return p values (M,) corrected for M tests by Holm's step-down method."""
    order = np.argsort(p, kind="stable")
    factors = np.arange(len(p), 0, -1)
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * factors)) if len(p) else p
    return corrected


def bootstrap_rmse(squared_errors: Floats, num_resamples: int = NUM_RESAMPLES, seed: int = SEED) -> Floats:
    """Return the RMSE (R, B) of each of R runs on B resamples of the N photos, the same photos for all runs.

    Args:
        squared_errors: (R, N).
        num_resamples: B.
        seed: of the resamples.
    """
    num_runs, num_images = squared_errors.shape
    generator = np.random.default_rng(seed)
    means = np.empty((num_runs, num_resamples))
    block = max(1, MAX_BLOCK // num_images)
    for start in range(0, num_resamples, block):
        size = min(block, num_resamples - start)
        drawn = generator.integers(0, num_images, (size, num_images))
        drawn += np.arange(size)[:, None] * num_images
        times = np.bincount(drawn.ravel(), minlength=size * num_images).reshape(size, num_images)
        means[:, start : start + size] = squared_errors @ times.T.astype(np.float64) / num_images
    resampled: Floats = np.sqrt(means)
    return resampled


def _figures_of_pairs(places: Sequence[int], predictions: Sequence[Predictions]) -> list[dict[str, Any]]:
    """Return the figures of each pair of runs on one test set, not corrected yet."""
    if len(places) < 2:
        return []
    quantities = predictions[0].quantities
    errors = np.stack([read.predicted - quantities for read in predictions]).astype(np.float64)
    squared = errors**2
    rmse, resampled = np.sqrt(squared.mean(axis=1)), bootstrap_rmse(squared)
    right = (errors == 0).astype(np.float64)
    only = np.rint(right @ (1 - right).T).astype(np.int64)  # [i, j]: photos that i got right and j did not
    found = []
    for first in range(len(places) - 1):
        others = np.arange(first + 1, len(places))
        differences = resampled[first] - resampled[others]
        differences.sort(axis=1)  # vectorised in numpy, and several times as fast as a partition
        cut = round(differences.shape[1] * (1 - CONFIDENCE) / 2)  # resamples beyond each end of the interval
        columns = {
            "only_first": only[first, others],
            "only_second": only[others, first],
            **_accuracy_figures(only[first, others], only[others, first], len(quantities)),
            "rmse_difference": rmse[first] - rmse[others],
            "rmse_interval": differences[:, [cut, -1 - cut]],
            "rmse_p": _normal_p(rmse[first] - rmse[others], differences.std(axis=1)),
        }
        plain = {name: values.tolist() for name, values in columns.items()}
        for row, second in enumerate(places[first + 1 :]):
            figures = {name: values[row] for name, values in plain.items()}
            found.append({"first": places[first], "second": second, **figures})
    return found


def _accuracy_figures(
    only_first: NDArray[np.int64], only_second: NDArray[np.int64], num_images: int
) -> dict[str, Floats]:
    z = 1.959963984540054  # of CONFIDENCE
    first, second = (only_first + 1) / (num_images + 2), (only_second + 1) / (num_images + 2)
    centre, half = first - second, z * np.sqrt((first + second - (first - second) ** 2) / (num_images + 2))
    return {
        "accuracy_difference": (only_first - only_second) / num_images,
        "accuracy_interval": np.stack([np.maximum(-1, centre - half), np.minimum(1, centre + half)], axis=1),
        "accuracy_p": mcnemar(only_first, only_second),
    }


def _normal_p(differences: Floats, standard_errors: Floats) -> Floats:
    """Return two-sided p values. Counting resamples instead could give none small enough to survive many pairs."""
    from scipy.special import ndtr

    # Without any spread the two runs erred equally on every photo, or there is but one.
    z = np.divide(np.abs(differences), standard_errors, out=np.zeros_like(differences), where=standard_errors > 1e-12)
    p: Floats = 2 * ndtr(-z)
    return p


def _corrected(figures: Sequence[dict[str, Any]]) -> list[Pair]:
    of_accuracy = holm(np.array([figure["accuracy_p"] for figure in figures])).tolist()
    of_rmse = holm(np.array([figure["rmse_p"] for figure in figures])).tolist()
    pairs = []
    for figure, accuracy_p, rmse_p in zip(figures, of_accuracy, of_rmse, strict=True):
        plain: dict[str, Any] = {**figure, "accuracy_p_corrected": accuracy_p, "rmse_p_corrected": rmse_p}
        for name in ("accuracy_interval", "rmse_interval"):
            low, high = figure[name]
            plain[name] = (low, high)
        pairs.append(Pair(**plain))
    return pairs
