"""The network as it is saved and served: uint8 pixels in, outputs of the objective out."""

from __future__ import annotations

from typing import Any

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
        outputs: Tensor = self.backbone(self._normalized(pixels))
        return outputs

    def features(self, pixels: Tensor) -> Tensor:
        """Compute what a timm backbone gives its classifier, (B, num_features), from pixels (B, 3, H, W) uint8."""
        backbone: Any = self.backbone
        features: Tensor = backbone.forward_head(backbone.forward_features(self._normalized(pixels)), pre_logits=True)
        return features

    def outputs(self, inputs: Tensor) -> Tensor:
        """Compute outputs (B, num_outputs) from what a `Batch` holds: pixels, or features (B, num_features) float32."""
        if inputs.ndim == 4:
            from_pixels: Tensor = self(inputs)
            return from_pixels
        backbone: Any = self.backbone
        from_features: Tensor = backbone.get_classifier()(inputs)
        return from_features

    def _normalized(self, pixels: Tensor) -> Tensor:
        # The copy to float is made in the wanted memory format, so channels_last costs no pass of its own.
        normalized: Tensor = self.normalize(pixels)
        return normalized.contiguous(memory_format=self.memory_format)
