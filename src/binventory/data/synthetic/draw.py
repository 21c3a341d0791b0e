"""Strokes that several drawn things share."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

INK: Color = (28, 28, 32)
PAPER: Color = (246, 245, 240)


def shade(color: Color, factor: float) -> Color:
    """Multiply a colour: below 1 darker, above 1 lighter."""
    red, green, blue = (min(255, round(channel * factor)) for channel in color)
    return red, green, blue


def blend(first: Color, second: Color, share: float) -> Color:
    """Mix two colours; `share` is that of the second."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


def write(pen: ImageDraw.ImageDraw, text: str, box: tuple[float, float, float, float], color: Color) -> None:
    """Write one word, centred and as large as the box (left, top, right, bottom) allows."""
    left, top, right, bottom = box
    size = min(bottom - top, (right - left) / (0.66 * len(text)))
    if size >= 5:
        pen.text(((left + right) / 2, (top + bottom) / 2), text, color, _font(int(size)), anchor="mm")


@cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size)


def text_lines(
    pen: ImageDraw.ImageDraw, rng: np.random.Generator, box: tuple[float, float, float, float], color: Color
) -> None:
    """Fill a box with strokes that look like lines of small print."""
    left, top, right, bottom = box
    step = max(5.0, (bottom - top) / 6)
    for y in np.arange(top, bottom - 2, step):
        pen.line((left, y, left + (right - left) * rng.uniform(0.5, 1.0), y), color, max(1, int(step * 0.35)))


def barcode(pen: ImageDraw.ImageDraw, rng: np.random.Generator, box: tuple[float, float, float, float]) -> None:
    """Draw a white sticker with a bar code and a line of print below it."""
    left, top, right, bottom = box
    pen.rectangle(box, PAPER, outline=(150, 148, 142))
    pad, base = (right - left) * 0.1, top + (bottom - top) * 0.68
    x = left + pad
    while x < right - pad:
        width = 1 + int(rng.integers(0, 3))
        pen.line((x, top + pad, x, base), INK, width)
        x += width + 1 + int(rng.integers(0, 2))
    pen.line((left + pad, (base + bottom) / 2, right - 2 * pad, (base + bottom) / 2), (90, 90, 94), 2)


def matrix_code(pen: ImageDraw.ImageDraw, rng: np.random.Generator, box: tuple[float, float, float, float]) -> None:
    """Draw a two-dimensional code on white."""
    left, top, right, bottom = box
    pen.rectangle(box, PAPER)
    cells = 7
    cell = (right - left) / (cells + 2)
    for row, column in np.argwhere(rng.random((cells, cells)) < 0.55).tolist():
        x, y = left + (column + 1) * cell, top + (row + 1) * (bottom - top) / (cells + 2)
        pen.rectangle((x, y, x + cell, y + cell), INK)


def from_array(pixels: np.ndarray) -> Image.Image:
    """Round (H, W, 3) or (H, W) floats in 0..255 to an image."""
    return Image.fromarray(np.clip(pixels + 0.5, 0, 255).astype(np.uint8))
