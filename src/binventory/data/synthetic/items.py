"""Pictures of single items, upright, before they are put into a bin."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

from binventory.data.synthetic.draw import INK, Color, barcode, blend, from_array, shade, text_lines, write
from binventory.data.synthetic.products import Product

Patch = tuple[Image.Image, Image.Image]  # RGB picture and L mask of one size


def draw_item(product: Product, size: tuple[int, int], sticker: tuple[float, float, float]) -> Patch:
    """Paint one unit.

    Args:
        product: what it is.
        size: width and height in pixels.
        sticker: middle of the scan label in 0..1 of the size, and its width in pixels.

    Returns:
        An RGB picture and an L mask of that size.
    """
    rng = np.random.default_rng(product.look)
    picture, mask = PAINTERS[product.kind.name](product, rng, max(8, size[0]), max(8, size[1]))
    x, y, width = sticker[0] * picture.width, sticker[1] * picture.height, sticker[2]
    barcode(ImageDraw.Draw(picture), rng, (x - width / 2, y - width / 3, x + width / 2, y + width / 3))
    return picture, mask


def _canvas(color: Color, width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw, Image.Image]:
    picture = Image.new("RGB", (width, height), color)
    return picture, ImageDraw.Draw(picture), Image.new("L", (width, height), 255)


def _cuboid(
    product: Product, rng: np.random.Generator, width: int, height: int
) -> tuple[ImageDraw.ImageDraw, int, Patch]:
    """A box seen a little from above: front, lid, and edges. Also gives the height of the lid."""
    picture, pen, mask = _canvas(shade(product.color, 0.92), width, height)
    lid = int(min(height * 0.22, width * 0.16) * rng.uniform(0.5, 1.0))
    inset = int(width * rng.uniform(0.02, 0.08))
    pen.polygon(
        [(0, lid), (inset, 0), (width - 1 - inset, 0), (width - 1, lid)], blend(product.color, (255, 250, 235), 0.28)
    )
    cut = ImageDraw.Draw(mask)
    cut.polygon([(-1, -1), (inset, -1), (-1, lid)], 0)
    cut.polygon([(width, -1), (width - 1 - inset, -1), (width, lid)], 0)
    edge = shade(product.color, 0.45)
    pen.rectangle((0, lid, width - 1, height - 1), outline=edge, width=3)
    pen.line((0, lid, width, lid), shade(product.color, 1.25), 2)
    return pen, lid, (picture, mask)


def _carton(product: Product, rng: np.random.Generator, width: int, height: int) -> Patch:
    pen, lid, patch = _cuboid(product, rng, width, height)
    if rng.random() < 0.6:  # packing tape
        x, half = width * rng.uniform(0.3, 0.7), width * 0.06
        pen.rectangle((x - half, 0, x + half, height), blend(product.color, (236, 222, 190), 0.4))
    if rng.random() < 0.6:
        write(
            pen,
            product.brand,
            (width * 0.1, lid + height * 0.1, width * 0.9, lid + height * 0.4),
            shade(product.color, 0.5),
        )
    return patch


def _box(product: Product, rng: np.random.Generator, width: int, height: int) -> Patch:
    pen, lid, patch = _cuboid(product, rng, width, height)
    face = height - lid
    if rng.random() < 0.5:  # a coloured band across
        y = lid + face * rng.uniform(0.1, 0.6)
        pen.rectangle((3, y, width - 4, y + face * rng.uniform(0.15, 0.3)), product.accent)
    else:  # a picture
        x, y = width * rng.uniform(0.15, 0.5), lid + face * rng.uniform(0.2, 0.5)
        pen.ellipse((x, y, x + width * 0.35, y + face * 0.35), product.accent)
    write(pen, product.brand, (width * 0.08, lid + face * 0.06, width * 0.92, lid + face * 0.34), product.accent)
    text_lines(
        pen,
        rng,
        (width * 0.1, lid + face * 0.75, width * 0.6, height * 0.95),
        blend(product.color, product.accent, 0.6),
    )
    return patch


def _book(product: Product, rng: np.random.Generator, width: int, height: int) -> Patch:
    picture, pen, mask = _canvas(product.color, width, height)
    pages = max(2, int(width * 0.1))
    pen.rectangle((width - pages, 3, width, height - 3), (226, 218, 198))
    for x in range(width - pages, width, 3):
        pen.line((x, 3, x, height), (190, 180, 158))
    for y in (rng.uniform(0.04, 0.12), rng.uniform(0.78, 0.9)):
        pen.rectangle((0, height * y, width - pages, height * (y + 0.035)), product.accent)
    pen.line((3, 0, 3, height), shade(product.color, 1.35), 3)
    if width > 40:
        write(pen, product.brand, (width * 0.08, height * 0.16, width * 0.86, height * 0.34), product.accent)
    pen.rectangle((0, 0, width - 1, height - 1), outline=shade(product.color, 0.45), width=2)
    return picture, mask


def _flat(product: Product, rng: np.random.Generator, width: int, height: int) -> Patch:
    """A thick book or pad that lies: its spine, and paper above."""
    picture, pen, mask = _canvas(product.color, width, height)
    paper = int(height * rng.uniform(0.12, 0.3))
    pen.rectangle((0, 0, width, paper), (224, 216, 198))
    for y in range(2, paper, 3):
        pen.line((0, y, width, y), (190, 182, 162))
    pen.line((0, paper, width, paper), shade(product.color, 1.4), 3)
    for x in (0.06, 0.9):
        pen.rectangle((width * x, paper, width * (x + 0.03), height), product.accent)
    write(pen, product.brand, (width * 0.15, paper, width * 0.6, height), product.accent)
    pen.rectangle((0, 0, width - 1, height - 1), outline=shade(product.color, 0.45), width=2)
    return picture, mask


def _round(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Shade a picture as if bent round an upright cylinder, with a highlight."""
    across = np.linspace(-1, 1, picture.width)
    light = 0.42 + 0.62 * np.sqrt(np.clip(1 - across**2, 0, 1))
    light += 0.35 * np.exp(-(((across + rng.uniform(0.2, 0.5)) / 0.12) ** 2))
    return from_array(np.asarray(picture) * light[None, :, None])


def _bottle(product: Product, rng: np.random.Generator, width: int, height: int) -> Patch:
    picture, pen, _ = _canvas(product.color, width, height)
    cap, shoulder = height * rng.uniform(0.1, 0.16), height * rng.uniform(0.2, 0.32)
    pen.rectangle((0, 0, width, cap), blend(product.accent, INK, 0.2))
    top, bottom = shoulder + height * 0.1, height * rng.uniform(0.78, 0.9)
    pen.rectangle((0, top, width, bottom), product.accent)
    write(pen, product.brand, (width * 0.1, top, width * 0.9, (top + bottom) / 2), product.color)
    text_lines(pen, rng, (width * 0.25, (top + bottom) / 2, width * 0.75, bottom - 3), product.color)
    mask = Image.new("L", (width, height), 0)
    body = ImageDraw.Draw(mask)
    half = width * rng.uniform(0.16, 0.26)
    middle = width / 2
    body.rectangle((middle - half, 0, middle + half, shoulder), 255)
    corner = [(middle - half, cap), (middle + half, cap), (width, shoulder * 1.15), (0, shoulder * 1.15)]
    body.polygon(corner, 255)
    body.rounded_rectangle((0, shoulder, width - 1, height - 1), width * 0.12, 255)
    return _round(picture, rng), mask


def _can(product: Product, rng: np.random.Generator, width: int, height: int) -> Patch:
    picture, pen, _ = _canvas(product.color, width, height)
    rim = min(width * 0.2, height * 0.3)
    pen.rectangle((0, height * 0.32, width, height * 0.62), product.accent)
    write(pen, product.brand, (width * 0.1, height * 0.34, width * 0.9, height * 0.6), product.color)
    pen.rectangle((0, height - rim * 0.5, width, height), (150, 152, 156))
    picture = _round(picture, rng)
    pen = ImageDraw.Draw(picture)
    pen.ellipse((0, 0, width - 1, rim), (186, 188, 190), outline=(96, 98, 102), width=2)
    mask = Image.new("L", (width, height), 0)
    body = ImageDraw.Draw(mask)
    body.rectangle((0, rim / 2, width, height - rim / 2), 255)
    body.ellipse((0, 0, width - 1, rim), 255)
    body.ellipse((0, height - rim - 1, width - 1, height - 1), 255)
    return picture, mask


def _soft_outline(rng: np.random.Generator, width: int, height: int, wobble: float) -> list[tuple[float, float]]:
    """A rounded rectangle whose edge wanders, as points."""
    turn = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = np.sign(np.cos(turn)) * np.abs(np.cos(turn)) ** 0.45
    y = np.sign(np.sin(turn)) * np.abs(np.sin(turn)) ** 0.45
    phase = rng.uniform(0, 2 * np.pi, 3)
    radius = 1 - wobble * (1 + np.sin(3 * turn + phase[0]) + 0.7 * np.sin(5 * turn + phase[1])) / 3
    return list(zip(width / 2 * (1 + x * radius), height / 2 * (1 + y * radius), strict=True))


def _bag(product: Product, rng: np.random.Generator, width: int, height: int) -> Patch:
    """A polybag: soft edge, wrinkles that shine."""
    picture, pen, _ = _canvas(shade(product.color, 0.9), width, height)
    shine, fold = blend(product.color, (255, 255, 250), 0.55), shade(product.color, 0.62)
    for _ in range(22):
        start, turn = rng.uniform((0, 0), (width, height)), rng.uniform(0, np.pi)
        along = rng.uniform(0.15, 0.5) * min(width, height) * np.array((np.cos(turn), np.sin(turn)))
        bent = start + along / 2 + rng.normal(0, 0.06 * min(width, height), 2)
        points = [tuple(point) for point in (start, bent, start + along)]
        pen.line([(x + 2, y + 2) for x, y in points], fold, 2)
        pen.line(points, shine, int(rng.integers(1, 4)))
    across, down = np.linspace(-1, 1, width), np.linspace(-1, 1, height)
    bulge = 1.12 - 0.3 * (across[None, :, None] ** 2 + (down[:, None, None] + 0.4) ** 2) / 2
    picture = from_array(np.asarray(picture) * bulge)
    pen = ImageDraw.Draw(picture)
    outline = _soft_outline(rng, width, height, 0.07)
    pen.line([*outline, outline[0]], blend(product.color, (255, 255, 250), 0.35), 3)
    mask = Image.new("L", (width, height), 0)
    ImageDraw.Draw(mask).polygon(outline, 255)
    return picture, mask


def _pouch(product: Product, rng: np.random.Generator, width: int, height: int) -> Patch:
    """A stand-up pouch: crimped top, a round label."""
    picture, pen, _ = _canvas(product.color, width, height)
    crimp = height * rng.uniform(0.08, 0.14)
    pen.rectangle((0, 0, width, crimp), shade(product.color, 1.2))
    for x in range(0, width, 6):
        pen.line((x, 0, x, crimp), shade(product.color, 0.8))
    pen.ellipse((width * 0.18, height * 0.25, width * 0.82, height * 0.72), product.accent)
    write(pen, product.brand, (width * 0.22, height * 0.35, width * 0.78, height * 0.6), product.color)
    mask = Image.new("L", (width, height), 0)
    body = ImageDraw.Draw(mask)
    belly = width * 0.05
    body.polygon(
        [(belly, 0), (width - belly, 0), (width, height * 0.6), (width - 1, height), (0, height), (0, height * 0.6)],
        255,
    )
    across = np.linspace(-1, 1, width)
    return from_array(np.asarray(picture) * (1.08 - 0.4 * across**4)[None, :, None]), mask


PAINTERS: dict[str, Callable[[Product, np.random.Generator, int, int], Patch]] = {
    "carton": _carton,
    "box": _box,
    "book": _book,
    "flat": _flat,
    "bottle": _bottle,
    "can": _can,
    "bag": _bag,
    "pouch": _pouch,
}
