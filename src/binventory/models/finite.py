"""Nothing non-finite is an answer: NaN and infinity are found in weights, and in what a network makes of a photo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

ADVICE = "training diverged; lower optimizer.lr or set trainer.gradient_clip_val"


class DivergedError(RuntimeError):
    """Weights, outputs, a loss or a figure are not finite numbers."""


def find_not_finite(tensors: Mapping[str, Any]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity; None: all are finite.

    Waits for each device once. What is no tensor of floats is left out.
    """
    flags: dict[torch.device, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            flags.setdefault(value.device, {})[name] = value.isfinite().all()
    found = {
        name
        for by_name in flags.values()
        for name, is_finite in zip(by_name, torch.stack(list(by_name.values())).tolist(), strict=True)
        if not is_finite
    }
    return next((name for name in tensors if name in found), None)


def finite_probabilities(objective: Any, outputs: Tensor) -> Tensor:
    """Compute probabilities (B, C) from outputs (B, num_outputs); rows whose outputs are not all finite are NaN.

    Softmax alone would make an answer of an output of minus infinity.
    """
    probabilities: Tensor = objective.probabilities(outputs)
    return probabilities.where(outputs.isfinite().all(dim=1, keepdim=True), torch.nan)
