"""Augmentation as a function of (seed, epoch, position): a photo gets the same draw whoever loads it, in any order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from binventory.config.schema import DataConfig

# Draws of a photo that do not hang on each other. The flip's is the first.
_FLIP, _SHIFT_X, _SHIFT_Y, _SCALE, _ROTATION, _BRIGHTNESS, _CONTRAST, _SATURATION = range(8)
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601 luma, as Pillow and torchvision have it

_MASK = (1 << 64) - 1


def uniform(seed: int, epoch: int, position: Tensor, draw: int = 0) -> Tensor:
    """Draw one number per photo from a counter-based generator (the splitmix64 finaliser).

    Args:
        seed: the run's seed.
        epoch: the epoch, from 0.
        position: (B,) int64, the photos' places in their split.
        draw: which of a photo's independent draws.

    Returns:
        (B,) float64 in [0, 1), on the device of `position`.
    """
    state = _mix(_mix(seed) ^ (epoch + 1))
    if draw:
        state = _mix(state ^ (draw << 48))
    counter = position * _signed(0x9E3779B97F4A7C15) + _signed(state)
    counter = (counter ^ _shift(counter, 30)) * _signed(0xBF58476D1CE4E5B9)
    counter = (counter ^ _shift(counter, 27)) * _signed(0x94D049BB133111EB)
    return _shift(counter ^ _shift(counter, 31), 11).double() / (1 << 53)


def random_flip(pixels: Tensor, position: Tensor, *, probability: float, seed: int, epoch: int) -> Tensor:
    """Flip photos of a batch from left to right, each with the given probability.

    Args:
        pixels: (B, 3, H, W) uint8.
        position: (B,) int64, the photos' places in their split.
        probability: of one photo being flipped.
        seed: the run's seed.
        epoch: the epoch, from 0.

    Returns:
        (B, 3, H, W) uint8.
    """
    if probability == 0:
        return pixels
    flipped = _is_flipped(position, probability, seed, epoch)
    return torch.where(flipped.view(-1, 1, 1, 1), pixels.flip(3), pixels)


def random_view(features: Tensor, position: Tensor, *, probability: float, seed: int, epoch: int) -> Tensor:
    """Take for each photo the features that `random_flip` of its pixels would lead to.

    Args:
        features: (B, num_views, num_features) float32 of each photo as it is and, where there are two views, flipped.
        position: (B,) int64, the photos' places in their split.
        probability: of one photo being flipped.
        seed: the run's seed.
        epoch: the epoch, from 0.

    Returns:
        (B, num_features) float32.
    """
    if probability == 0:
        return features[:, 0]
    flipped = _is_flipped(position, probability, seed, epoch)
    return torch.where(flipped.view(-1, 1), features[:, 1], features[:, 0])


def _is_flipped(position: Tensor, probability: float, seed: int, epoch: int) -> Tensor:
    return uniform(seed, epoch, position, _FLIP) < probability


@dataclass(frozen=True)
class Augmentation:
    """What training photos go through, as a batch on their device. See the keys of `data` for the amounts.

    All of it is safe for counting as long as amounts are small: no photo is cut or erased on purpose, and what comes
    in at the borders is of one colour. A mirrored border would show items twice.

    Args:
        data: the `data` config.
        fill: R, G and B in 0..1 of what lies beyond the borders: the mean of the normalisation.
        seed: the run's seed.
    """

    data: DataConfig
    fill: Sequence[float]
    seed: int

    def __call__(self, pixels: Tensor, position: Tensor, epoch: int) -> Tensor:
        """Augment a batch.

        Args:
            pixels: (B, 3, H, W) uint8.
            position: (B,) int64, the photos' places in their split.
            epoch: the epoch, from 0.

        Returns:
            (B, 3, H, W) uint8 where photos are flipped at most, else float32 in 0..255.
        """
        data = self.data
        pixels = random_flip(pixels, position, probability=data.hflip, seed=self.seed, epoch=epoch)
        amounts = continuous_augmentations(data)
        if not amounts:
            return pixels
        draws = _Draws(self.seed, epoch, position)
        photos = pixels.float()
        if amounts.keys() & {"shift", "scale", "rotation_degrees"}:
            photos = _moved(photos, self._transforms(draws), self.fill)
        for name, draw, change in _PHOTOMETRIC:
            if name in amounts:
                photos = change(photos, draws.factor(draw, amounts[name]).float().view(-1, 1, 1, 1))
        return photos

    def _transforms(self, draws: _Draws) -> Tensor:
        """Return (B, 2, 3) float32: where in the photo each output place looks, both in -1..1."""
        angle = math.radians(self.data.rotation_degrees) * draws.signed(_ROTATION)
        zoom = (math.log1p(self.data.scale) * draws.signed(_SCALE)).exp()
        cos, sin = angle.cos() / zoom, angle.sin() / zoom
        shift = [2 * self.data.shift * draws.signed(draw) for draw in (_SHIFT_X, _SHIFT_Y)]
        rows = [torch.stack([cos, sin, shift[0]], dim=1), torch.stack([-sin, cos, shift[1]], dim=1)]
        return torch.stack(rows, dim=1).float()


def continuous_augmentations(data: DataConfig) -> dict[str, float]:
    """Return the keys of `data`, and their amounts, whose augmentation of a photo is not one of a few."""
    names = ("shift", "scale", "rotation_degrees", "brightness", "contrast", "saturation")
    return {name: getattr(data, name) for name in names if getattr(data, name) > 0}


@dataclass(frozen=True)
class _Draws:
    """The random numbers of a batch."""

    seed: int
    epoch: int
    position: Tensor

    def signed(self, draw: int) -> Tensor:
        """Return (B,) float64 in [-1, 1)."""
        return 2 * uniform(self.seed, self.epoch, self.position, draw) - 1

    def factor(self, draw: int, amount: float) -> Tensor:
        """Return (B,) float64 in [1 - amount, 1 + amount)."""
        return 1 + amount * self.signed(draw)


def _moved(photos: Tensor, transforms: Tensor, colour: Sequence[float]) -> Tensor:
    # Made there, value by value: a copy of a list would keep the host until the device is idle.
    fill = torch.stack([photos.new_full((), 255 * value) for value in colour]).view(1, -1, 1, 1)
    grid = functional.affine_grid(transforms, list(photos.shape), align_corners=False)
    return functional.grid_sample(photos - fill, grid, padding_mode="zeros", align_corners=False) + fill


def _brightened(photos: Tensor, factor: Tensor) -> Tensor:
    return (photos * factor).clamp(0, 255)


def _contrasted(photos: Tensor, factor: Tensor) -> Tensor:
    return _blended(photos, _grey(photos).mean(dim=(1, 2, 3), keepdim=True), factor)


def _saturated(photos: Tensor, factor: Tensor) -> Tensor:
    return _blended(photos, _grey(photos), factor)


_PHOTOMETRIC = (
    ("brightness", _BRIGHTNESS, _brightened),
    ("contrast", _CONTRAST, _contrasted),
    ("saturation", _SATURATION, _saturated),
)


def _blended(photos: Tensor, other: Tensor, factor: Tensor) -> Tensor:
    return (other + (photos - other) * factor).clamp(0, 255)


def _grey(photos: Tensor) -> Tensor:
    red, green, blue = (weight * photos[:, place : place + 1] for place, weight in enumerate(_GREY))
    return red + green + blue


def _shift(value: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
