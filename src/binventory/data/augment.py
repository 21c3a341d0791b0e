"""Augmentation as a function of (seed, epoch, position): a photo gets the same draw whoever loads it, in any order."""

from __future__ import annotations

import torch
from torch import Tensor

from binventory.config.schema import DataConfig

# Keys of `data` whose augmentation can turn a photo into any number of others; 0 switches each off.
ENDLESS: tuple[str, ...] = ()

_MASK = (1 << 64) - 1


def endless_augmentations(data: DataConfig) -> list[str]:
    """Return what is asked for that can turn a photo into any number of others, as `data.key=value`."""
    return [f"data.{name}={getattr(data, name)}" for name in ENDLESS if getattr(data, name)]


def uniform(seed: int, epoch: int, position: Tensor) -> Tensor:
    """Draw one number per photo from a counter-based generator (the splitmix64 finaliser).

    Args:
        seed: the run's seed.
        epoch: the epoch, from 0.
        position: (B,) int64, the photos' places in their split.

    Returns:
        (B,) float64 in [0, 1), on the device of `position`.
    """
    state = _mix(_mix(seed) ^ (epoch + 1))
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
    flipped = uniform(seed, epoch, position) < probability
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
    flipped = uniform(seed, epoch, position) < probability
    return torch.where(flipped.view(-1, 1), features[:, 1], features[:, 0])


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
