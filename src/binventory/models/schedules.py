"""Learning-rate schedules, stepped after every optimizer step: each a function of the step alone."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def constant(optimizer: Optimizer, *, steps_per_epoch: int, max_epochs: int) -> LambdaLR:  # noqa: ARG001
    """Keep the learning rate as it is."""
    return LambdaLR(optimizer, lambda _step: 1.0)


def step(
    optimizer: Optimizer,
    *,
    steps_per_epoch: int,
    max_epochs: int,  # noqa: ARG001
    step_size_epochs: int,
    gamma: float,
) -> LambdaLR:
    """Multiply the learning rate by `gamma` every `step_size_epochs` epochs."""
    return LambdaLR(optimizer, lambda step: gamma ** (step // (step_size_epochs * steps_per_epoch)))


def cosine(
    optimizer: Optimizer, *, steps_per_epoch: int, max_epochs: int, warmup_epochs: float, min_lr_ratio: float
) -> LambdaLR:
    """Rise linearly for `warmup_epochs`, then fall along half a cosine to `min_lr_ratio` of the learning rate."""
    total = steps_per_epoch * max_epochs
    # A run of one epoch still gets to its full learning rate.
    warmup = min(round(warmup_epochs * steps_per_epoch), total // 2)

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        progress = min(1.0, (step - warmup) / max(1, total - warmup))
        return min_lr_ratio + (1 - min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)
