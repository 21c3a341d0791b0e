"""What counting means: each objective turns network outputs into a loss and into probabilities over the counts.

An objective is an `nn.Module` made from `counts` and the options of its config, with

- `num_outputs(counts) -> int`, static: outputs the network needs;
- `loss(outputs, target) -> ()`: target is (B,) int64 positions in `counts`, or (B, C) float;
- `probabilities(outputs) -> (B, C)` over `counts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

from torch import Tensor, nn

from binventory.config.targets import import_target


class Objective(Protocol):
    """What the rest of the code uses of an objective."""

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Return the mean loss, ()."""
        ...

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Return (B, C) float32 probabilities over the counts."""
        ...


def make_objective(node: Mapping[str, Any], counts: Sequence[int]) -> nn.Module:
    """Build the objective that a config node names.

    Raises:
        ConfigError: its `_target_` can't be imported.
    """
    options = {str(name): value for name, value in node.items() if name not in ("_target_", "_partial_")}
    return cast(nn.Module, import_target("objective", node["_target_"])(counts=list(counts), **options))


def num_outputs(node: Mapping[str, Any], counts: Sequence[int]) -> int:
    """Return how many outputs a network needs for the objective that a config node names."""
    return int(import_target("objective", node["_target_"]).num_outputs(counts))
