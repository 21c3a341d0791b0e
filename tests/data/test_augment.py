"""Augmentation on the device: what it does to a photo, and that it is a function of (seed, epoch, position)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from binventory.config.compose import compose_checked
from binventory.data.augment import Augmentation
from tests.running import TINY, Run

DARK = 40
FILL = (0.5, 0.25, 0.75)
SIDE = 32
OFF = ["hflip", "shift", "scale", "rotation_degrees", "brightness", "contrast", "saturation"]
LIGHT = {"shift": 0.1, "scale": 0.2, "rotation_degrees": 10.0, "brightness": 0.2, "contrast": 0.3, "saturation": 0.4}


def augmentation(seed: int = 0, fill: Sequence[float] = (DARK / 255,) * 3, **amounts: float) -> Augmentation:
    values = dict.fromkeys(OFF, 0.0) | amounts
    config: Any = compose_checked("train", [f"data.{name}={value}" for name, value in values.items()])[0]
    return Augmentation(config.data, fill, seed)


def photos(num: int = 16) -> Tensor:
    """Bright squares of one colour in the middle of a dark photo."""
    pixels = torch.full((num, 3, SIDE, SIDE), DARK, dtype=torch.uint8)
    pixels[:, :, 10:22, 8:20] = torch.tensor([160, 120, 60], dtype=torch.uint8).view(1, 3, 1, 1)
    return pixels


def centre(photo: Tensor) -> Tensor:
    """Return the place of the bright square, (x, y) in pixels."""
    weight = photo[0].double() - DARK
    places = torch.arange(SIDE, dtype=torch.float64) + 0.5
    return torch.stack([(weight.sum(0) * places).sum(), (weight.sum(1) * places).sum()]) / weight.sum()


def test_a_photo_gets_the_same_whatever_batch_it_is_in() -> None:
    augment, pixels, places = augmentation(hflip=0.5, **LIGHT), photos(), torch.arange(16) * 7
    whole = augment(pixels, places, 3)
    for order in (torch.arange(5), torch.randperm(16)):
        torch.testing.assert_close(augment(pixels[order], places[order], 3), whole[order], rtol=0, atol=1e-3)
    for other in (augment(pixels, places, 4), augment(pixels, places + 1, 3)):
        assert not torch.allclose(other, whole, atol=1)
    assert not torch.allclose(augmentation(seed=1, hflip=0.5, **LIGHT)(pixels, places, 3), whole, atol=1)


def test_photos_of_a_batch_differ_and_draws_are_independent() -> None:
    moved = augmentation(shift=0.2)(photos(200), torch.arange(200), 0)
    centres = torch.stack([centre(photo) for photo in moved]) - centre(photos(1)[0])
    assert centres.abs().max() <= 0.2 * SIDE + 0.1
    assert centres.abs().amax(dim=0).min() > 0.17 * SIDE
    assert abs(torch.corrcoef(centres.T)[0, 1]) < 0.2, "both directions at once would be a diagonal"
    assert (centres.mean(dim=0).abs() < 1).all()


def test_what_comes_in_is_of_the_fill_colour() -> None:
    moved = augmentation(fill=FILL, shift=0.25)(photos(), torch.arange(16), 0)
    corners = moved[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    is_fill = (corners - 255 * torch.tensor(FILL).view(1, 3, 1)).abs().amax(dim=1) < 1e-3
    assert is_fill.any(dim=1).all(), "every photo is moved, and at least one corner lies beyond its border"


def test_scale_keeps_the_middle_and_changes_the_size() -> None:
    area = [
        (photo[0] > (DARK + 160) / 2).sum().item()
        for photo in augmentation(scale=0.5)(photos(200), torch.arange(200), 0)
    ]
    whole = 12 * 12
    assert whole / 1.5**2 * 0.8 < min(area) < whole * 0.6
    assert whole * 1.6 < max(area) < whole * 1.5**2 * 1.2


def test_rotation_turns_around_the_middle() -> None:
    pixels = photos(200)
    turned = augmentation(rotation_degrees=45)(pixels, torch.arange(200), 0)
    arm = centre(pixels[0]) - SIDE / 2
    arms = torch.stack([centre(photo) for photo in turned]) - SIDE / 2
    torch.testing.assert_close(arms.norm(dim=1), arm.norm().expand(200), rtol=0.1, atol=0.1)
    angles = torch.rad2deg(torch.atan2(arms[:, 1], arms[:, 0]) - torch.atan2(arm[1], arm[0]))
    angles = (angles + 180) % 360 - 180
    assert -46 < angles.min() < -38
    assert 38 < angles.max() < 46


def test_a_square_stays_a_square() -> None:
    moved = augmentation(shift=0.1, scale=0.4, rotation_degrees=45)(photos(200), torch.arange(200), 0)
    places = torch.arange(SIDE, dtype=torch.float64) + 0.5
    for photo in moved:
        weight = (photo[0].double() - DARK) / (photo[0].double() - DARK).sum()
        x, y = places.view(1, -1) - centre(photo)[0], places.view(-1, 1) - centre(photo)[1]
        wide, high, slant = (weight * x * x).sum(), (weight * y * y).sum(), (weight * x * y).sum()
        assert abs(wide - high) < 0.05 * wide
        assert abs(slant) < 0.05 * wide


def test_light_changes() -> None:
    pixels, places = photos(200), torch.arange(200)
    brighter = augmentation(brightness=0.5)(pixels, places, 0) / pixels
    assert torch.allclose(brighter.amin(dim=(1, 2, 3)), brighter[:, 0, 0, 0], atol=1e-4)
    assert 0.5 <= brighter.min() < 0.52
    assert 1.27 < brighter.max() <= 1.5
    grey = augmentation(contrast=0.99)(pixels, places, 0).flatten(1).std(dim=1)
    assert grey.min() < 0.1 * pixels[0].float().std()
    colour = augmentation(saturation=0.99)(pixels, places, 0)
    spread = (colour.amax(dim=1) - colour.amin(dim=1)).amax(dim=(1, 2))
    assert spread.min() < 10
    luma = (colour * torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(dim=1)
    mild = spread < 150  # nothing was cut off at 0 or 255
    assert (luma[mild] - luma[mild][:1]).abs().max() < 1, "how bright a place looks stays"


def test_nothing_asked_for_changes_nothing() -> None:
    pixels = photos()
    assert augmentation()(pixels, torch.arange(16), 0) is pixels
    assert augmentation(hflip=1.0)(pixels, torch.arange(16), 0).dtype == torch.uint8


def test_augmented_training(run: Run) -> None:
    """The same wherever photos come from, and not what it is without."""

    def figures(*overrides: str) -> list[dict[str, str]]:
        rows = list(csv.DictReader((run("train", *TINY, *overrides) / "metrics.csv").open()))
        return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]

    augmented = figures("augment=light")
    assert augmented == figures("augment=light", "data.cache=false")
    assert augmented != figures()
