"""Counting as classification: one output per count, trained by cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Classification(nn.Module):
    """Softmax over the counts.

    Args:
        counts: the quantities that are classes, ascending.
        label_smoothing: share of the target that is spread over all counts.
    """

    def __init__(self, counts: Sequence[int], label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.num_counts = len(counts)
        self.label_smoothing = label_smoothing

    @staticmethod
    def num_outputs(counts: Sequence[int]) -> int:
        """Return how many outputs the network needs for these counts."""
        return len(counts)

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Mean loss over the batch.

        Args:
            outputs: (B, C) float, the network's outputs.
            target: (B,) int64 positions in `counts`, or (B, C) float shares that sum to one.

        Returns:
            () float32.
        """
        return F.cross_entropy(outputs.float(), target, label_smoothing=self.label_smoothing)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Turn outputs (B, C) into (B, C) float32 probabilities over `counts`; rows sum to one."""
        return torch.softmax(outputs.float(), dim=1)
