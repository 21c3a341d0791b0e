"""Exponential moving average of the weights: what is validated, tested and put into the bundle."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema(WeightAveraging):
    """Lightning's weight averaging, updated after every optimizer step, on the device of the weights.

    Checkpoints hold the averaged weights as `state_dict` and the raw ones as `current_model_state`.

    Args:
        decay: share of the average that is kept at each step.
    """

    def __init__(self, decay: float) -> None:
        # Interpolates, so that what does not change stays what it is to the last bit. The product form, Lightning's own
        # choice, lets constant buffers such as the normalisation drift.
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Make the average on the device that the weights are about to be moved to."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)
