"""From a photo's bytes to what a network sees: the same function for training, predicting and serving."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import torch
import torch.nn.functional as F
from PIL import Image, features
from torch import Tensor, nn

from binventory.data.decode import Photo, decode_photo

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PIXELS_VERSION = 2  # raise it when `Preprocessing.pixels` gives other values for some photo

MAX_CROP_RATIO = 4  # of a photo's sides where resize=crop
STRIP_ROWS = 1024
ABOVE_ONE = 1 + 1e-9


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
        libjpeg = features.version("libjpeg_turbo") or features.version("jpg")
        return {
            **{"image_size": self.image_size, "resize": self.resize, "interpolation": self.interpolation},
            "padding": self._padding() if self.resize == "letterbox" else None,
            # torch resizes; its builds for the CPU and for GPUs give the same bits on the CPU
            "decoder": [PIXELS_VERSION, PIL.__version__, libjpeg, torch.__version__.partition("+")[0]],
        }

    def pixels(self, photo: bytes, name: str) -> Tensor:
        """Decode and resize one photo.

        Args:
            photo: the file's content.
            name: what to call it in an error.

        Returns:
            (3, image_size, image_size) uint8, RGB, in memory as channels_last.

        Raises:
            PhotoError: the bytes are no usable photo.
        """
        return self.square(decode_photo(photo, name, self.resized))

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return width and height to which a photo of this width and height is resized, before it is padded or cut."""
        side = self.image_size
        if self.resize == "squash":
            return side, side
        if self.resize == "crop":
            longest = MAX_CROP_RATIO * min(size)  # see `_middle`
            size = min(size[0], longest), min(size[1], longest)
        scale = side / (max(size) if self.resize == "letterbox" else min(size))
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))

    def square(self, photo: Photo) -> Tensor:
        """Resize a photo that was decoded at no less than `resized`. Returns what `pixels` does."""
        side, (width, height) = self.image_size, self.resized(photo.size)
        scaled = self._scaled(photo, width, height)
        if self.resize == "squash":
            return scaled
        top, left = (side - height) // 2, (side - width) // 2
        if self.resize == "crop":
            return scaled[:, -top : side - top, -left : side - left]
        canvas = torch.tensor(self._padding(), dtype=torch.uint8).repeat(side, side, 1).permute(2, 0, 1)
        canvas[:, top : top + height, left : left + width] = scaled
        return canvas

    def _scaled(self, photo: Photo, width: int, height: int) -> Tensor:
        """Return (3, height, width): the same bits for any number of threads and any CPU."""
        image, covered = photo.image, (photo.size[0] / photo.factor, photo.size[1] / photo.factor)
        if self.resize == "crop" and max(photo.size) > MAX_CROP_RATIO * min(photo.size):
            image = _middle(image)
            covered = image.size
        batch = torch.from_numpy(_array(image)).permute(0, 3, 1, 2)
        if image.size == (width, height):
            return batch[0]
        resized = partial(F.interpolate, batch, mode=self.interpolation, antialias=True)
        if image.size == covered:
            return resized((height, width))[0]
        # The last row or column is there in part. The sizes that come of this are rounded down, hence a little more.
        scale = (height / covered[1] * ABOVE_ONE, width / covered[0] * ABOVE_ONE)
        return resized(scale_factor=scale, recompute_scale_factor=False)[0]

    def _padding(self) -> list[int]:
        return [round(255 * value) for value in self.mean]


def _middle(image: Image.Image) -> Image.Image:
    """Cut a very long photo to its middle: scaled as a whole by its short side it would take any amount of memory."""
    longest = MAX_CROP_RATIO * min(image.size)
    width, height = (min(length, longest) for length in image.size)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def _array(image: Image.Image) -> npt.NDArray[np.uint8]:
    """Return (1, H, W, 3), taken in strips: Pillow makes two more copies of what it hands out."""
    array = np.empty((1, image.height, image.width, 3), dtype=np.uint8)
    if image.height <= STRIP_ROWS:
        array[0] = np.asarray(image)
        return array
    for top in range(0, image.height, STRIP_ROWS):
        bottom = min(image.height, top + STRIP_ROWS)
        array[0, top:bottom] = np.asarray(image.crop((0, top, image.width, bottom)))
    return array


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
