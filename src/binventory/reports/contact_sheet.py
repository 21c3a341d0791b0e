"""A sheet of the photos that a model is least certain of, to look at first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from binventory.data.decode import PhotoError
from binventory.data.preprocess import Preprocessing
from binventory.data.text import printable
from binventory.files import atomic_path
from binventory.reports.hard_photos import as_seen, certainty, least_certain

CELL = 200  # pixels a photo
CAPTION = 44
GAP = 12
HEADER = 56
SHOWN_AS = {"squash": "squashed to a square", "letterbox": "padded to a square", "crop": "cut to their centre"}
PAPER, INK, FAINT, BAR, TRACK, ALERT = "#fbfaf7", "#22252b", "#6d7178", "#3b6fb6", "#e4e3de", "#b3402e"


def save_contact_sheet(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    photos: Sequence[Path],
    counts: Sequence[int],
    num_photos: int,
    preprocessing: Preprocessing,
) -> None:
    """Draw the least certain photos, least certain first, with what was predicted and recorded.

    Args:
        path: the PNG to write.
        rows: rows of predictions.csv without errors.
        photos: the photo of each row. One that is gone by now leaves its cell empty but for the reason.
        counts: what the probabilities stand for.
        num_photos: at most so many.
        preprocessing: of the model: photos are shown as it got them.
    """
    chosen = [(rows[place], photos[place]) for place in least_certain(rows, counts, num_photos)]
    num_columns = min(6, len(chosen))
    num_rows = -(-len(chosen) // num_columns)
    width = max(560, GAP + num_columns * (CELL + GAP))
    sheet = Image.new("RGB", (width, HEADER + num_rows * (CELL + CAPTION + GAP) + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    title = f"The {len(chosen)} least certain of {len(rows)} photos"
    draw.text((GAP, 12), title, fill=INK, font=ImageFont.load_default(20))
    legend = f"photos as the model gets them ({SHOWN_AS[preprocessing.resize]}); bars: probability of each count"
    draw.text((GAP, 36), legend, fill=FAINT, font=ImageFont.load_default(12))
    for place, (row, photo) in enumerate(chosen):
        left = GAP + place % num_columns * (CELL + GAP)
        top = HEADER + place // num_columns * (CELL + CAPTION + GAP)
        _draw_photo(sheet, draw, (left, top), photo, preprocessing)
        _draw_caption(draw, (left, top + CELL), row, counts)
    with atomic_path(path) as temporary:
        sheet.save(temporary, format="PNG")


def _draw_photo(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    photo: Path,
    preprocessing: Preprocessing,
) -> None:
    try:
        sheet.paste(as_seen(photo, preprocessing, CELL), corner)
    except PhotoError as error:  # it could be read when it was predicted
        left, top = corner
        draw.rectangle((left, top, left + CELL - 1, top + CELL - 1), fill=TRACK)
        draw.text((left + 8, top + 8), error.reason[:30], fill=ALERT, font=ImageFont.load_default(11))


def _draw_caption(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], row: Mapping[str, Any], counts: Sequence[int]
) -> None:
    """Draw what was predicted and recorded; `corner` is the upper left one."""
    left, top = corner
    said = f"{row['predicted']} ({certainty(row, counts):.0%})"
    recorded = "" if row["quantity"] is None else f"recorded {row['quantity']}"
    baseline = top + 4
    draw.text((left, baseline), said, fill=INK, font=ImageFont.load_default(16))
    colour = FAINT if row["quantity"] == row["predicted"] else ALERT
    draw.text((left + 78, baseline + 3), recorded, fill=colour, font=ImageFont.load_default(12))
    draw.text((left, baseline + 22), printable(str(row["id"]), 28), fill=FAINT, font=ImageFont.load_default(11))
    _draw_bars(draw, (left + CELL, baseline + 18), row, counts)


def _draw_bars(
    draw: ImageDraw.ImageDraw, corner: tuple[int, int], row: Mapping[str, Any], counts: Sequence[int]
) -> None:
    """Draw one small bar per count; `corner` is the lower right one."""
    right, bottom = corner
    bar, height = max(2, min(7, 42 // len(counts))), 16
    for place, count in enumerate(counts):
        left = right - (len(counts) - place) * (bar + 2)
        draw.rectangle((left, bottom - height, left + bar - 1, bottom), fill=TRACK)
        top = bottom - round(height * row[f"p_{count}"])
        draw.rectangle((left, top, left + bar - 1, bottom), fill=BAR)
