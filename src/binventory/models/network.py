"""The network as it is saved and served: uint8 pixels in, outputs of the objective out."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from binventory.data.preprocess import Normalize, Preprocessing


class BinNetwork(nn.Module):
    """Normalisation and backbone in one module.

    Args:
        backbone: (B, 3, H, W) float32 to (B, num_outputs).
        preprocessing: its mean and deviation are applied here, on the device.
        channels_last: NHWC memory format.
    """

    def __init__(self, backbone: nn.Module, preprocessing: Preprocessing, *, channels_last: bool) -> None:
        super().__init__()
        self.normalize = Normalize(preprocessing)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone = backbone.to(memory_format=self.memory_format)

    def forward(self, pixels: Tensor) -> Tensor:
        """Compute outputs (B, num_outputs) from pixels (B, 3, H, W), uint8 or floating point in 0..255."""
        # The copy to float is made in the wanted memory format, so channels_last costs no pass of its own.
        outputs: Tensor = self.backbone(self.normalize(pixels).contiguous(memory_format=self.memory_format))
        return outputs
