"""How well bins are counted, from probabilities over the counts alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanMetric, MeanSquaredError
from torchmetrics.classification import MulticlassAccuracy, MulticlassCalibrationError, MulticlassConfusionMatrix

ECE_BINS = 15


class CountingMetrics(nn.Module):
    """All figures of `metrics.json` for one split; summed over ranks when computed.

    The argmax decode gives accuracy, rmse (as the public benchmark defines it: of the integer), mae and within_one;
    the expected decode (mean of the distribution) gives expected_rmse. `ece` is the expected calibration error over 15
    equal bins.

    Args:
        counts: the quantities that are classes, ascending.
    """

    counts: Tensor

    def __init__(self, counts: Sequence[int]) -> None:
        super().__init__()
        num_classes = len(counts)
        self.register_buffer("counts", torch.tensor(list(counts), dtype=torch.float32), persistent=False)
        self.confusion = MulticlassConfusionMatrix(num_classes)
        self.accuracy = MulticlassAccuracy(num_classes, average="micro")
        self.rmse = MeanSquaredError(squared=False)
        self.mae = MeanAbsoluteError()
        self.expected_rmse = MeanSquaredError(squared=False)
        self.calibration = MulticlassCalibrationError(num_classes, n_bins=ECE_BINS, norm="l1")
        self.within_one = MeanMetric()
        self.cross_entropy = MeanMetric(nan_strategy="disable")  # a NaN must not be left out of the mean
        self.loss = MeanMetric(nan_strategy="disable")

    def update(self, probabilities: Tensor, target: Tensor, loss: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            probabilities: (B, C) float32 over `counts`.
            target: (B,) int64 positions in `counts`.
            loss: () the objective's mean loss over the batch; None where there is no objective.
        """
        if len(target) == 0:
            return
        quantity = self.counts[target]
        predicted = self.counts[probabilities.argmax(dim=1)]
        self.confusion.update(probabilities, target)
        self.accuracy.update(probabilities, target)
        self.rmse.update(predicted, quantity)
        self.mae.update(predicted, quantity)
        # No matrix product: under autocast it would be one of bfloat16.
        self.expected_rmse.update((probabilities * self.counts).sum(dim=1), quantity)
        self.calibration.update(probabilities, target)
        self.within_one.update(((predicted - quantity).abs() <= 1).float())
        picked = probabilities.gather(1, target.unsqueeze(1)).squeeze(1)
        self.cross_entropy.update(-picked.clamp_min(torch.finfo(torch.float32).tiny).log())
        if loss is not None:
            self.loss.update(loss.expand(len(target)))  # a weight is not looked at when NaNs count

    def compute(self) -> dict[str, Any]:
        """Return the design's `M` as plain numbers: accuracies are fractions, `per_count` has one entry per count.

        A figure that is no finite number, and those of a count without a photo, are None. `loss` is there when losses
        were given.
        """
        confusion = self.confusion.compute().cpu().double()
        figures: dict[str, Any] = {
            name: float(cast(nn.Module, getattr(self, name)).compute())  # type: ignore[operator]
            for name in ("accuracy", "cross_entropy", "rmse", "mae", "within_one", "expected_rmse")
        }
        figures["ece"] = float(self.calibration.compute())
        if self.loss.update_called:
            figures["loss"] = float(self.loss.compute())
        figures = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        figures["num_images"] = int(confusion.sum())
        figures["per_count"] = self._per_count(confusion)
        return figures

    def _per_count(self, confusion: Tensor) -> dict[str, dict[str, Any]]:
        counts = self.counts.cpu().double()
        squared_error = (counts.unsqueeze(1) - counts.unsqueeze(0)) ** 2
        result = {}
        for position, row in enumerate(confusion):
            num_images = int(row.sum())
            result[str(int(counts[position]))] = {
                "accuracy": float(row[position] / row.sum()) if num_images else None,
                "rmse": float((row * squared_error[position]).sum().div(row.sum()).sqrt()) if num_images else None,
                "num_images": num_images,
            }
        return result

    def reset(self) -> None:
        """Forget everything."""
        for metric in self.children():
            metric.reset()  # type: ignore[operator]
