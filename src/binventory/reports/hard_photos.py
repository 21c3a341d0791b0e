"""Which predictions to look at first, and the photos of them as the model got them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from binventory.data.decode import read_photo
from binventory.data.preprocess import Preprocessing

Row = Mapping[str, Any]  # of predictions.csv, without an error


def certainty(row: Row, counts: Sequence[int]) -> float:
    """Return the probability of the likeliest count."""
    return max(float(row[f"p_{count}"]) for count in counts)


def least_certain(rows: Sequence[Row], counts: Sequence[int], number: int) -> list[int]:
    """Return the positions of at most so many rows, the least certain first."""
    return sorted(range(len(rows)), key=lambda place: certainty(rows[place], counts))[:number]


def most_wrong(rows: Sequence[Row], counts: Sequence[int], number: int) -> list[int]:
    """Return the positions of at most so many wrong rows, those that gave the recorded quantity least first."""
    known = set(counts)
    wrong = [place for place, row in enumerate(rows) if row["quantity"] in known - {row["predicted"]}]
    return sorted(wrong, key=lambda place: float(rows[place][f"p_{rows[place]['quantity']}"]))[:number]


def as_seen(photo: Path, preprocessing: Preprocessing, side: int) -> Image.Image:
    """Return what the model saw of a photo, in more or fewer pixels: squashed, padded or cut as for the model.

    Args:
        photo: the file.
        preprocessing: of the model.
        side: of the square that is returned, in pixels.

    Raises:
        PhotoError: it cannot be read.
    """
    pixels = replace(preprocessing, image_size=side).pixels(read_photo(photo), str(photo))
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
