"""Whatever the bytes of a photo are, decoding gives an RGB image of the size that they state, or says why not."""

from __future__ import annotations

import struct
import time
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from binventory.data.containers import MAX_PIXELS
from binventory.data.decode import PhotoError, decode_rgb
from tests.fuzz.amounts import check_refusal, corpus, fuzz
from tests.memory import peak_growth_bytes

PNG_START = b"\x89PNG\r\n\x1a\n"
MAX_SECONDS = 5.0  # of the processor; a whole photo of 100 megapixels takes one or two


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def seeds() -> list[bytes]:
    """Small valid files that use what the formats have."""
    photo = Image.effect_noise((40, 24), 60).convert("RGB")
    exif = Image.Exif()
    exif[0x0112], exif[0x010E], exif[0x8769] = 6, "a bin", {0x9003: "2015:01:01 00:00:00"}
    turned = Image.Exif()
    turned[0x0112] = 6
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    text = PngImagePlugin.PngInfo()
    text.add_text("a", "b" * 50, zip=True)
    text.add_itxt("c", "d" * 50, zip=True)
    frames = [photo.resize((8, 8)), photo.resize((8, 8)).rotate(90)]
    return [
        encode(photo, "JPEG", quality=70),
        encode(photo, "JPEG", progressive=True),
        encode(photo, "JPEG", exif=exif, icc_profile=icc, comment="hello", dpi=(72, 72)),
        encode(photo, "JPEG", restart_marker_blocks=2, subsampling=0),
        encode(photo.convert("L"), "JPEG"),
        encode(photo.convert("CMYK"), "JPEG"),
        encode(photo, "PNG", exif=exif, icc_profile=icc, pnginfo=text),
        encode(photo.convert("RGBA"), "PNG"),
        encode(photo.quantize(16), "PNG", transparency=3),
        encode(photo.convert("I;16"), "PNG"),
        encode(photo.convert("1"), "PNG"),
        encode(photo.convert("L"), "PNG", transparency=7),
        encode(photo, "WEBP", exif=exif, icc_profile=icc),
        encode(photo, "WEBP", lossless=True),
        encode(photo.convert("RGBA"), "WEBP"),
        encode(photo, "BMP"),
        encode(photo.quantize(16), "BMP"),
        encode(photo.convert("1"), "BMP"),
        rle_bmp(),
        encode(photo, "TIFF", exif=turned, icc_profile=icc),
        encode(photo, "TIFF", compression="tiff_lzw", big_tiff=True),
        encode(photo, "TIFF", compression="tiff_adobe_deflate", strip_size=800),
        encode(photo, "TIFF", compression="jpeg"),
        encode(photo.convert("CMYK"), "TIFF", compression="packbits"),
        encode(photo.convert("I;16"), "TIFF"),
        encode(photo.quantize(16), "TIFF"),
        encode(frames[0], "PNG", save_all=True, append_images=frames[1:]),
    ]


def rle_bmp() -> bytes:
    """A BMP of runs: plain ones, literal pixels, a jump, the ends of rows and of the picture."""
    runs = b"\x28\7\0\0" + b"\0\4\1\2\3\4\x24\5\0\0" + b"\0\2\5\0\x23\1\0\0" + b"\x28\1\0\0" * 21 + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, 40, 24, 1, 8, 1, len(runs), 0, 0, 16, 0)
    palette = bytes(range(64))
    return b"BM" + struct.pack("<IHHI", 118 + len(runs), 0, 0, 118) + header + palette + runs


SEEDS = seeds()
Place = st.floats(0, 1)  # as a share of the length: what is left of an example when it is made smaller still fits


def at(data: bytearray, place: float) -> int:
    return round(place * max(len(data) - 1, 0))


def truncate(data: bytearray, start: float) -> None:
    del data[at(data, start) :]


def flip(data: bytearray, place: float, value: int) -> None:
    if data:
        data[at(data, place)] = value


def duplicate(data: bytearray, start: float, length: int, times: int) -> None:
    place = at(data, start)
    data[place:place] = data[place : place + length] * times


def delete(data: bytearray, start: float, length: int) -> None:
    place = at(data, start)
    del data[place : place + length]


def splice(data: bytearray, start: float, other: bytes, begin: float, length: int) -> None:
    place, source = at(data, start), at(bytearray(other), begin)
    data[place:place] = other[source : source + length]


def zero(data: bytearray, start: float) -> None:
    place = at(data, start)
    data[place:] = bytes(len(data) - place)


def mend_checksums(data: bytearray) -> None:
    """Give the chunks of a PNG the checksums of what they hold now: else damage never gets past the first check."""
    place = len(PNG_START)
    while data.startswith(PNG_START) and place + 12 <= len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4])
        if end + 4 > len(data):
            return
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[place + 4 : end]))
        place = end + 4


CHANGES = st.one_of(
    st.tuples(st.just(flip), Place, st.integers(0, 255)),
    st.tuples(st.just(flip), st.floats(0, 0.2), st.integers(0, 255)),  # where the headers are
    st.tuples(st.just(truncate), Place),
    st.tuples(st.just(zero), Place),
    st.tuples(st.just(duplicate), Place, st.integers(1, 200), st.integers(1, 40)),
    st.tuples(st.just(delete), Place, st.integers(1, 100)),
    st.tuples(st.just(splice), Place, st.sampled_from(SEEDS), Place, st.integers(1, 300)),
    st.tuples(st.just(mend_checksums)),
)


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for change, *arguments in draw(st.lists(CHANGES, max_size=6)):
        change(data, *arguments)
    if draw(st.booleans()):
        mend_checksums(data)
    return bytes(data)


STARTS = st.sampled_from(
    [
        *(b"", b"\xff\xd8\xff", b"\xff\xd8\xff\xe1", PNG_START, PNG_START + b"\0\0\0\rIHDR"),
        *(b"RIFF\0\1\0\0WEBPVP8 ", b"RIFF\0\1\0\0WEBPVP8X", b"II*\0\x08\0\0\0\x0a\0", b"MM\0+\0\x08\0\0"),
        b"BM" + bytes(12) + b"\x28\0\0\0",
    ]
)
NAMES = st.sampled_from(["a.jpg", "a.png", "a", "a\nb\x1b[31m.jpg"])


def check(data: bytes, name: str) -> None:
    started = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # Pillow's of odd EXIF data
        image, growth_bytes = peak_growth_bytes(lambda: decoded(data, name))
    assert time.process_time() - started < MAX_SECONDS
    stated = stated_size(data)
    num_pixels = 0 if stated is None else stated[0] * stated[1]
    # Pillow takes 4 bytes a pixel, and turning or converting an image makes a second one
    bytes_a_pixel = 24 if data[8:12] == b"WEBP" else 12
    assert growth_bytes < 2**25 + (bytes_a_pixel * num_pixels if num_pixels <= MAX_PIXELS else 0)
    if image is not None:
        assert image.mode == "RGB"
        assert stated in (image.size, image.size[::-1])
        assert len(image.tobytes()) == 3 * num_pixels


def decoded(data: bytes, name: str) -> Image.Image | None:
    try:
        return decode_rgb(data, name)
    except PhotoError as error:
        check_refusal(error)
        return None


def stated_size(data: bytes) -> tuple[int, int] | None:
    """Width and height by the header, read here by hand."""
    readers = {b"\x89P": png_size, b"BM": bmp_size, b"RI": webp_size, b"II": tiff_size, b"MM": tiff_size}
    try:
        return readers.get(data[:2], jpeg_size)(data)
    except (struct.error, OverflowError):  # the header is cut off, or its directory is beyond any file
        return None


def png_size(data: bytes) -> tuple[int, int] | None:
    place = data.find(b"IHDR") + 4
    return struct.unpack_from(">II", data, place) if place >= 4 else None


def bmp_size(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH" if data[14:18] == b"\x0c\0\0\0" else "<Ii", data, 18)
    return width, abs(height)


def webp_size(data: bytes) -> tuple[int, int]:
    if data[12:16] == b"VP8X":
        low = struct.unpack_from("<HBHB", data, 24)
        return 1 + low[0] + (low[1] << 16), 1 + low[2] + (low[3] << 16)
    if data[12:16] == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", data, 26)
    return width & 0x3FFF, height & 0x3FFF


def tiff_size(data: bytes) -> tuple[int, int] | None:
    order, is_big = ("<" if data[:2] == b"II" else ">"), 43 in data[2:4]
    (start,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, 8 if is_big else 4)
    (number,) = struct.unpack_from(order + ("Q" if is_big else "H"), data, start)
    sides: dict[int, int] = {}
    for place in range(min(number, 1000)):
        entry = start + (8 + 20 * place if is_big else 2 + 12 * place)
        tag, kind = struct.unpack_from(order + "HH", data, entry)
        if tag in (256, 257) and tag not in sides:
            number_type = {1: "B", 3: "H", 16: "Q"}.get(kind, "I")
            (sides[tag],) = struct.unpack_from(order + number_type, data, entry + (12 if is_big else 8))
    return (sides[256], sides[257]) if len(sides) == 2 else None


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """That of the first frame."""
    place = 2
    while place + 9 <= len(data):
        if data[place] != 0xFF:
            place += 1
            continue
        kind = data[place + 1]
        if kind in {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}:
            height, width = struct.unpack(">HH", data[place + 5 : place + 9])
            return width, height
        if kind in (0x00, 0x01, 0xFF) or 0xD0 <= kind <= 0xD9:
            place += 1 if kind == 0xFF else 2
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4])
    return None


@pytest.mark.parametrize("path", corpus("image"))
def test_saved(path: Path) -> None:
    for name in (path.name, "a"):
        check(path.read_bytes(), name)


@pytest.mark.parametrize("place", range(len(SEEDS)))
def test_undamaged(place: int) -> None:
    is_animated = place == len(SEEDS) - 1
    assert (decoded(SEEDS[place], "a") is None) == is_animated


@fuzz(500)
@given(damaged_files(), NAMES)
def test_damaged(data: bytes, name: str) -> None:
    check(data, name)


@fuzz(200)
@given(st.builds(bytes.__add__, STARTS, st.binary(max_size=400)), NAMES)
def test_random_bytes(data: bytes, name: str) -> None:
    check(data, name)
