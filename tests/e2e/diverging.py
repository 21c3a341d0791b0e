"""An objective of which one validation is no number."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from binventory.objectives.classification import Classification


class Late(Classification):
    """Its second validation loss is infinite, on the last rank alone."""

    num_validations = 0

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        found = super().loss(outputs, target)
        if torch.is_grad_enabled():
            return found
        self.num_validations += 1
        is_last = int(os.environ.get("RANK", "0")) == int(os.environ.get("WORLD_SIZE", "1")) - 1
        return found + torch.inf if self.num_validations == 2 and is_last else found
