"""One function turns bytes into pixels: whatever the photo, near to what Pillow makes of it at its full size."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from binventory.data.decode import PhotoError, decode_photo, reduction
from binventory.data.preprocess import STRIP_ROWS, Preprocessing
from tests.data.hostile import encode, photo

SIDE = 32
ORIENTATION = 0x0112


def smooth(width: int, height: int) -> Image.Image:
    """A photo without fine detail, of which all ways to make it smaller give nearly the same."""
    return photo(3, 5, 4).resize((width, height), Image.Resampling.BICUBIC)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


PHOTOS = {
    "JPEG": encode(smooth(150, 100), quality=95),
    "JPEG of a third of the size that is halved": encode(smooth(60, 50), quality=95),
    "large JPEG": encode(smooth(1200, 900), quality=95),
    "progressive": encode(smooth(300, 201), quality=95, progressive=True),
    "grey": encode(smooth(301, 200).convert("L"), quality=95),
    "CMYK": encode(smooth(200, 300).convert("CMYK"), quality=95),
    "on its side": encode(smooth(199, 301), quality=95, exif=turned(6)),
    "on its side, of a size that can be halved": encode(smooth(200, 300), quality=95, exif=turned(8)),
    "upside down": encode(smooth(301, 199), quality=95, exif=turned(3)),
    "tiny": encode(smooth(9, 7), quality=95),
    "PNG": encode(smooth(150, 100), "PNG"),
    "large PNG": encode(smooth(900, 1200), "PNG"),
    "long": encode(smooth(1500, 90), quality=95),
}


def by_pillow(data: bytes, resize: str, interpolation: str) -> np.ndarray:
    """Decode at full size and resize, as this function once did."""
    from io import BytesIO

    image = ImageOps.exif_transpose(Image.open(BytesIO(data))).convert("RGB")
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    if resize == "crop" and max(image.size) > 4 * min(image.size):
        image = ImageOps.fit(
            image, tuple(min(side, 4 * min(image.size)) for side in image.size), Image.Resampling.NEAREST
        )
    scale = SIDE / (max(image.size) if resize == "letterbox" else min(image.size))
    size = (SIDE, SIDE) if resize == "squash" else tuple(max(1, round(side * scale)) for side in image.size)
    canvas = Image.new("RGB", (SIDE, SIDE), tuple(round(255 * value) for value in Preprocessing(SIDE).mean))
    canvas.paste(image.resize(size, filters[interpolation]), tuple((SIDE - side) // 2 for side in size))
    return np.asarray(canvas).astype(int)


@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
@pytest.mark.parametrize("name", PHOTOS)
def test_pixels_are_near_those_of_the_whole_photo(name: str, resize: str) -> None:
    for interpolation in ("bilinear", "bicubic"):
        pixels = Preprocessing(SIDE, resize, interpolation).pixels(PHOTOS[name], "body").permute(1, 2, 0).numpy()
        difference = np.abs(pixels - by_pillow(PHOTOS[name], resize, interpolation))
        assert difference.mean() < 0.7
        assert difference.max() <= (2 if "PNG" in name else 10)


@pytest.mark.parametrize(
    ("name", "factor"), [("JPEG", 2), ("large JPEG", 8), ("progressive", 4), ("tiny", 1), ("PNG", 1)]
)
def test_a_jpeg_is_decoded_no_larger_than_it_is_needed(name: str, factor: int) -> None:
    whole = decode_photo(PHOTOS[name], "body")
    assert whole.image.size == whole.size
    photo = decode_photo(PHOTOS[name], "body", Preprocessing(SIDE).resized)
    assert photo.size == whole.size
    assert photo.image.size == tuple(-(-side // factor) for side in whole.size)
    if "PNG" not in name:
        assert reduction(photo.size, (SIDE, SIDE)) == factor
    assert min(photo.image.size) >= min(SIDE, *photo.size)


def test_the_size_of_a_photo_that_lies_on_its_side_is_the_upright_one() -> None:
    for stored, factor in (((136, 128), 4), ((131, 129), 1)):
        data = encode(smooth(*stored), quality=95, exif=turned(6))
        photo = decode_photo(data, "body", lambda _: (32, 32))
        assert photo.size == stored[::-1]
        assert photo.image.size == (stored[1] // factor, stored[0] // factor)


def test_a_photo_cut_anywhere_is_refused_at_every_size() -> None:
    data = encode(photo(5, 64, 48), progressive=True)
    for length in range(2, len(data) - 2, 3):
        for side in (8, 32):
            with pytest.raises(PhotoError):
                Preprocessing(side).pixels(data[:length], "body")


def test_a_tall_photo_is_taken_over_in_strips() -> None:
    tall = photo(1, 3, 2 * STRIP_ROWS + 5)
    pixels = Preprocessing(max(tall.size), "letterbox").pixels(encode(tall, "PNG"), "body").permute(1, 2, 0).numpy()
    left = (max(tall.size) - 3) // 2
    np.testing.assert_array_equal(pixels[:, left : left + 3], np.asarray(tall))


@pytest.fixture
def _threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_threads")
def test_the_number_of_threads_changes_no_bit() -> None:
    found = []
    for num_threads in (1, 2, 5):
        torch.set_num_threads(num_threads)
        found.append([Preprocessing(SIDE, interpolation="bicubic").pixels(data, "body") for data in PHOTOS.values()])
    assert all(torch.equal(one, other) for many in found[1:] for one, other in zip(found[0], many, strict=True))


DIGEST = """
import hashlib
from tests.data.test_preprocess import PHOTOS, Preprocessing
modes = [(resize, kind) for resize in ("squash", "crop") for kind in ("bilinear", "bicubic")]
pixels = [Preprocessing(32, *mode).pixels(data, "body").contiguous() for data in PHOTOS.values() for mode in modes]
print(hashlib.sha256(b"".join(each.numpy().tobytes() for each in pixels)).hexdigest())
"""


@pytest.mark.long
def test_the_kind_of_cpu_changes_no_bit() -> None:
    """So the cache's key need not name it, and a model sees the same pixels where it serves as where it learned."""
    said = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "ATEN_CPU_CAPABILITY": capability},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for capability in ("default", "avx2", "avx512")
    }
    assert len(said) == 1
