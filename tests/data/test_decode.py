"""Photos become RGB images, or are refused with a reason."""

from __future__ import annotations

import os
import struct
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from binventory.data.decode import MAX_PHOTO_BYTES, PhotoError, decode_rgb, read_photo


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(width: int = 40, height: int = 24) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, np.full_like(x, 60)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_size(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    return start + png_chunk(b"IDAT", zlib.compress(b"\0" * 100)) + png_chunk(b"IEND", b"")


def animated_png() -> bytes:
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    return encode(frames[0], "PNG", save_all=True, append_images=frames[1:])


JPEG = encode(gradient(), "JPEG")
PNG = encode(gradient(), "PNG")


@pytest.mark.parametrize(
    ("data", "name", "reason"),
    [
        (b"", "a.jpg", "empty file"),
        (b"<html>404</html>", "a.jpg", "neither JPEG nor PNG, WebP, BMP or TIFF"),
        (b"BMW, a text", "a.bmp", "neither JPEG nor PNG, WebP, BMP or TIFF"),
        (encode(gradient(), "GIF"), "a.gif", "neither JPEG nor PNG, WebP, BMP or TIFF: a picture in GIF"),
        (JPEG[:-60], "a.jpg", "truncated or corrupt"),
        (JPEG[:30], "a.jpg", "truncated or corrupt"),
        (PNG[: len(PNG) // 2], "a.png", "truncated or corrupt"),
        (png_of_size(10_001, 10_000), "a.png", "too many pixels: 10001x10000, at most 100 megapixels"),
        (animated_png(), "a.png", "animated"),
    ],
)
def test_unusable_photo_is_refused_with_its_name_and_a_reason(data: bytes, name: str, reason: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a refused photo must not also warn, e.g. about its size
        with pytest.raises(PhotoError) as error:
            decode_rgb(data, name)
    assert error.value.reason.startswith(reason)
    assert str(error.value) == f"{name}: {error.value.reason}"
    assert "\n" not in str(error.value)


def test_what_is_said_of_a_photo_is_one_line_without_terminal_codes() -> None:
    assert str(PhotoError("a\n\x1b[2J.jpg", "broken\r\n\x07")) == "a\\n\\x1b[2J.jpg: broken\\r\\n\\x07"


def test_a_photo_just_under_the_limit_gets_past_the_size_check() -> None:
    with pytest.raises(PhotoError, match="truncated"):  # the file of this test holds no pixels
        decode_rgb(png_of_size(10_000, 10_000), "a.png")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        *(("JPEG", {}), ("PNG", {}), ("WEBP", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TIFF", {})),
        *(("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "jpeg"})),
    ],
)
def test_photo_cut_off_anywhere_is_refused(kind: str, options: dict[str, object]) -> None:
    data = encode(gradient(12, 9), kind, **options)
    decode_rgb(data, "a")
    for length in range(len(data) - 1):
        with pytest.raises(PhotoError):
            decode_rgb(data[:length], "a")


@pytest.mark.parametrize("kind", ["JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF"])
def test_content_decides_whatever_the_name_says(kind: str) -> None:
    more = {"save_all": True, "append_images": [gradient().rotate(180)]} if kind == "MPO" else {}
    data = encode(gradient(), kind, **more)
    found = [np.asarray(decode_rgb(data, name)).astype(int) for name in ("a.jpg", "a.PNG", "a.tif", "request body")]
    assert np.abs(found[0] - np.asarray(gradient())).mean() < (0.1 if kind in ("PNG", "BMP", "TIFF") else 4)
    assert all((pixels == found[0]).all() for pixels in found)


def changed(chunk: bytes, content: bytes, checksum: bytes | None = None) -> bytes:
    """The PNG with one chunk more before its pixels, whose checksum may be wrong."""
    place = PNG.index(b"IDAT") - 4
    whole = png_chunk(chunk, content)
    return PNG[:place] + (whole if checksum is None else whole[:-4] + checksum) + PNG[place:]


@pytest.mark.parametrize(
    "chunk", [b"eXIf", b"zTXt", b"iTXt", b"tEXt", b"iCCP", b"gAMA", b"pHYs", b"cHRM", b"sRGB", b"tIME"]
)
def test_png_with_sound_pixels_is_taken_whatever_else_of_it_is_broken(chunk: bytes) -> None:
    text = b"key\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000) if chunk == b"iTXt" else b"key\0\7broken"
    for content in (b"", b"\xff", b"key\0", text, b"II*\0\xff\xff\xff\x7f", b"\0" * 40):
        for checksum in (None, b"oops"):
            pixels = np.asarray(decode_rgb(changed(chunk, content, checksum), "a.png"))
            np.testing.assert_array_equal(pixels, np.asarray(gradient()))


def test_what_is_sound_beside_a_broken_chunk_still_counts() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encode(gradient(), "PNG", exif=exif)
    place = data.index(b"IDAT") - 4
    for broken in (png_chunk(b"iCCP", b"name\0\7"), png_chunk(b"zTXt", b"key\0\7") * 2, png_chunk(b"gAMA", b"")):
        pixels = np.asarray(decode_rgb(data[:place] + broken + data[place:], "a.png"))
        np.testing.assert_array_equal(pixels, np.rot90(np.asarray(gradient()), -1))


@pytest.mark.parametrize("chunk", [b"IHDR", b"IDAT", b"IEND", b"PLTE", b"tRNS"])
def test_png_whose_pixels_may_be_broken_is_refused(chunk: bytes) -> None:
    data = bytearray(encode(gradient().quantize(16), "PNG", transparency=3))
    place = data.index(chunk) + 4 + int.from_bytes(data[data.index(chunk) - 4 : data.index(chunk)])
    data[place] ^= 1
    with pytest.raises(PhotoError, match=f"truncated or corrupt: wrong checksum of {chunk.decode()}"):
        decode_rgb(bytes(data), "a.png")


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation: int) -> None:
    upright = np.zeros((16, 32, 3), dtype=np.uint8)
    upright[:8, :16] = (255, 0, 0)  # red top left, green top right
    upright[:8, 16:] = (0, 255, 0)
    undo = {  # what the camera stored, so that the orientation turns it upright
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: np.rot90,
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind, options in (
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ):
        pixels = np.asarray(decode_rgb(encode(stored, kind, exif=exif, **options), "a"))
        np.testing.assert_array_equal(pixels, upright)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_photo_keeps_its_colours(kind: str) -> None:
    data = encode(gradient().convert("CMYK"), kind, quality=100)
    pixels = np.asarray(decode_rgb(data, "a.jpg")).astype(int)
    assert np.abs(pixels - np.asarray(gradient())).mean() < 3


def bmp_with_alpha(alpha: int) -> bytes:
    """A BMP that names a mask for alpha, as few programs that fill it and many that leave it zero do."""
    pixels = np.dstack([np.asarray(gradient())[::-1, :, ::-1], np.full((24, 40), alpha, np.uint8)]).tobytes()
    masks = struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 56, 40, 24, 1, 32, 3, len(pixels), 0, 0, 0, 0) + masks
    return b"BM" + struct.pack("<IHHI", 70 + len(pixels), 0, 0, 70) + header + pixels


def test_alpha_of_a_bmp_counts_where_it_was_filled() -> None:
    grey = np.asarray(gradient()).astype(int)
    for alpha in (0, 255):
        np.testing.assert_array_equal(np.asarray(decode_rgb(bmp_with_alpha(alpha), "a.bmp")), grey)
    half = np.asarray(decode_rgb(bmp_with_alpha(128), "a.bmp")).astype(int)
    assert np.abs(half - (grey * 128 + 255 * 127) / 255).max() <= 1


def test_grey_becomes_three_equal_channels() -> None:
    pixels = np.asarray(decode_rgb(encode(gradient().convert("L"), "PNG"), "a.png"))
    np.testing.assert_array_equal(pixels, np.stack([np.asarray(gradient().convert("L"))] * 3, axis=-1))


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    grey = (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024) + 100
    pixels = np.asarray(decode_rgb(encode(Image.fromarray(grey), "PNG"), "a.png"))
    np.testing.assert_array_equal(pixels[..., 0], grey >> 8)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparent_pixels_become_white_and_opaque_ones_stay(mode: str) -> None:
    image = Image.new("RGBA", (4, 2), (40, 40, 40, 255))
    image.paste((0, 0, 0, 0), (0, 0, 2, 2))
    if mode == "RGB":  # one colour of an opaque mode may be declared transparent
        files = [encode(image.convert("RGB"), "PNG", transparency=(0, 0, 0))]
    else:
        files = [encode(image.convert(mode), "PNG")]
        if mode == "RGBA":
            files += [encode(image, "WEBP", lossless=True), encode(image, "TIFF"), encode(image, "TIFF", big_tiff=True)]
    for data in files:
        pixels = np.asarray(decode_rgb(data, "a.png"))
        assert (pixels[:, :2] == 255).all()
        assert (pixels[:, 2:] == 40).all()


def test_read_photo_names_what_cannot_be_read(tmp_path: Path) -> None:
    huge = tmp_path / "huge.jpg"
    with huge.open("wb") as file:
        file.truncate(MAX_PHOTO_BYTES + 1)
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in (
        ("huge.jpg", "file too large: 64 MiB"),
        ("pipe.jpg", "not a regular file"),
        ("gone.jpg", "cannot be read: No such file"),
    ):
        with pytest.raises(PhotoError, match=reason):
            read_photo(tmp_path / name)


@pytest.mark.abid
def test_all_native_originals_decode(abid: Path) -> None:
    photos = sorted((abid / "native" / "bin-images").iterdir())
    widths = [decode_rgb(read_photo(photo), photo.name).width for photo in photos]
    assert len(widths) == 389
    assert 304 <= min(widths) < max(widths) <= 1100
