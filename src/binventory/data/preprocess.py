"""From a photo's bytes to what a network sees: the same function for training, predicting and serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image, features
from torch import Tensor, nn

from binventory.data.decode import decode_rgb

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PIXELS_VERSION = 1  # raise it when `Preprocessing.pixels` gives other values for some photo

MAX_CROP_RATIO = 4  # of a photo's sides where resize=crop

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@dataclass(frozen=True)
class Preprocessing:
    """How photos become network input. Part of the model: it travels in every checkpoint and bundle.

    Attributes:
        image_size: side of the square, in pixels.
        resize: squash (both sides to the square), letterbox (pad with the mean colour) or crop (centre of the photo).
        interpolation: bilinear or bicubic, antialiased.
        mean: per channel, of pixels in 0..1.
        std: per channel, of pixels in 0..1.
    """

    image_size: int
    resize: str = "squash"
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for checkpoints and JSON."""
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Read what `to_dict` gave."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def pixel_facts(self) -> dict[str, Any]:
        """Return plain values of all that `pixels` depends on besides the photo: where they are equal, its result is.

        Mean and deviation are applied later, on the device; of them only letterbox's padding is in the pixels.
        """
        return {
            **{"image_size": self.image_size, "resize": self.resize, "interpolation": self.interpolation},
            "padding": self._padding() if self.resize == "letterbox" else None,
            "decoder": [PIXELS_VERSION, PIL.__version__, features.version("libjpeg_turbo") or features.version("jpg")],
        }

    def pixels(self, photo: bytes, name: str) -> Tensor:
        """Decode and resize one photo.

        Args:
            photo: the file's content.
            name: what to call it in an error.

        Returns:
            (3, image_size, image_size) uint8, RGB.

        Raises:
            PhotoError: the bytes are no usable photo.
        """
        square = self._square(decode_rgb(photo, name))
        return torch.from_numpy(np.array(square, dtype=np.uint8)).permute(2, 0, 1)

    def _square(self, image: Image.Image) -> Image.Image:
        side, resample = self.image_size, _FILTERS[self.interpolation]
        if self.resize == "squash":
            return image if image.size == (side, side) else image.resize((side, side), resample)
        if self.resize == "crop":
            image = _without_far_ends(image)
        choose = max if self.resize == "letterbox" else min
        scale = side / choose(image.size)
        width, height = (max(1, round(length * scale)) for length in image.size)
        scaled = image.resize((width, height), resample)
        canvas = Image.new("RGB", (side, side), tuple(self._padding()))
        canvas.paste(scaled, ((side - width) // 2, (side - height) // 2))
        return canvas

    def _padding(self) -> list[int]:
        return [round(255 * value) for value in self.mean]


def _without_far_ends(image: Image.Image) -> Image.Image:
    """Cut a very long photo to its middle: scaled as a whole by its short side it would take any amount of memory."""
    longest = MAX_CROP_RATIO * min(image.size)
    if max(image.size) <= longest:
        return image
    width, height = (min(length, longest) for length in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


class Normalize(nn.Module):
    """(B, 3, H, W) uint8 to float32 of zero mean and unit deviation, on the device where the pixels are."""

    mean: Tensor
    std: Tensor

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__()
        # Not in the state dict: the preprocessing itself is saved beside the weights.
        self.register_buffer("mean", 255 * torch.tensor(preprocessing.mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(preprocessing.std).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Normalise a batch."""
        return (pixels.to(self.mean.dtype) - self.mean) / self.std
