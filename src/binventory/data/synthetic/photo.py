"""From a bin to the bytes of its photo."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter

from binventory.data.synthetic.bins import Bin
from binventory.data.synthetic.draw import from_array
from binventory.data.synthetic.items import draw_item
from binventory.data.synthetic.layout import Unit
from binventory.data.synthetic.pod import paint_front, paint_walls

OVERSAMPLING = 2  # pixels painted for each pixel of the photo, in both directions: smooth edges
LAMP = np.array((0.93, 0.85, 0.74), np.float32)  # warm


def draw_photo(drawn: Bin, photo_size: int) -> bytes:
    """Draw a bin.

    Args:
        drawn: what is to be seen.
        photo_size: width of the photo in pixels; its height is 0.68 to 1.0 of that.

    Returns:
        A JPEG file.
    """
    picture = paint_walls(drawn.pod, photo_size * OVERSAMPLING)
    for unit in drawn.units:
        _paint_unit(picture, unit)
    paint_front(drawn.pod, picture)
    return _expose(picture.reduce(OVERSAMPLING), np.random.default_rng(drawn.exposure))


def _paint_unit(picture: Image.Image, unit: Unit) -> None:
    scale = picture.width
    size = round(unit.width * scale), round(unit.height * scale)
    item, mask = draw_item(unit.product, size, (*unit.sticker, unit.sticker_width * scale))
    if abs(unit.tilt) > 0.5:
        item = item.rotate(unit.tilt, Image.Resampling.BILINEAR, expand=True)
        mask = mask.rotate(unit.tilt, Image.Resampling.BILINEAR, expand=True)
    left, top = round(unit.x * scale - mask.width / 2), round(unit.bottom * scale - mask.height)
    _paint_shadow(picture, mask, left, top)
    picture.paste(item, (left, top), mask)


def _paint_shadow(picture: Image.Image, mask: Image.Image, left: int, top: int) -> None:
    """Darken what lies behind an item, most to its right and close around it."""
    reach = max(4, picture.width // 40)
    shadow = Image.new("L", (mask.width + 4 * reach, mask.height + 4 * reach), 0)
    shadow.paste(130, (2 * reach, 2 * reach), mask)
    shadow = shadow.filter(ImageFilter.BoxBlur(reach))
    picture.paste((18, 14, 10), (left - 2 * reach + reach // 2, top - 2 * reach + reach // 3), shadow)


def _expose(picture: Image.Image, rng: np.random.Generator) -> bytes:
    """Take the photo: focus, warm dim light that falls off, sensor noise, compression."""
    focus = rng.uniform(0.0, 0.55) * picture.width / 128
    picture = picture.filter(ImageFilter.GaussianBlur(focus))
    pixels = np.asarray(picture, np.float32)
    height, width, _ = pixels.shape
    x = np.linspace(-1, 1, width, dtype=np.float32) - np.float32(rng.uniform(-0.4, 0.4))
    y = np.linspace(-1, 1, height, dtype=np.float32) - np.float32(rng.uniform(-0.6, 0.1))
    falloff = 1 - np.float32(rng.uniform(0.12, 0.3)) * (x[None, :, None] ** 2 + y[:, None, None] ** 2) / 2
    gain = np.float32(rng.uniform(0.9, 1.3))
    tint = LAMP * rng.uniform(0.95, 1.05, 3).astype(np.float32)
    noise = rng.standard_normal(pixels.shape, np.float32) * np.float32(rng.uniform(1.0, 5.0))
    file = io.BytesIO()
    from_array(pixels * falloff * gain * tint + 8 + noise).save(file, "JPEG", quality=int(rng.integers(72, 93)))
    return file.getvalue()
