"""TIFF files in the arrangements that cameras and programs write give the pixels that they hold, or say why not."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from binventory.data.decode import PhotoError, decode_rgb

WIDTH, HEIGHT = 40, 24
OFFSETS_AND_SIZES = {"strips": (273, 279), "tiles": (324, 325)}
FORMATS = {1: "B", 3: "H", 4: "I"}

Tags = dict[int, tuple[int, list[int]]]


def gradient() -> npt.NDArray[np.uint8]:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 6, y * 10, np.full_like(x, 60)], axis=-1).astype(np.uint8)


PIXELS = gradient()
GREY = PIXELS[..., 0]


def short(*values: int) -> tuple[int, list[int]]:
    return 3, list(values)


def tags(bits: Sequence[int], photometric: int, **more: int) -> Tags:
    made = {256: short(WIDTH), 257: short(HEIGHT), 258: short(*bits), 259: short(1), 262: short(photometric)}
    return made | {277: short(len(bits)), 278: short(HEIGHT)} | {int(tag[1:]): short(v) for tag, v in more.items()}


def write(
    stated: Mapping[int, tuple[int, list[int]]], parts: Sequence[bytes], order: str = "<", kind: str = "strips"
) -> bytes:
    """A TIFF of these tags and strips or tiles, which come before the directory."""
    blob, offsets = b"", []
    for part in parts:
        offsets.append(8 + len(blob))
        blob += part + b"\0" * (len(part) % 2)
    starts, sizes = OFFSETS_AND_SIZES[kind]
    whole = {starts: (4, offsets), sizes: (4, [len(part) for part in parts]), **stated}
    directory, beyond = b"", b""
    after = 8 + len(blob) + 2 + 12 * len(whole) + 4
    for tag, (number_kind, values) in sorted(whole.items()):
        raw = struct.pack(f"{order}{len(values)}{FORMATS[number_kind]}", *values)
        if len(raw) > 4:
            raw, beyond = struct.pack(order + "I", after + len(beyond)), beyond + raw + b"\0" * (len(raw) % 2)
        directory += struct.pack(order + "HHI", tag, number_kind, len(values)) + raw.ljust(4, b"\0")
    start = b"II*\0" if order == "<" else b"MM\0*"
    start += struct.pack(order + "I", 8 + len(blob))
    return start + blob + struct.pack(order + "H", len(whole)) + directory + bytes(4) + beyond


def decoded(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(decode_rgb(data, "a.tif"))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("compression", "pack"), [(1, bytes), (8, zlib.compress)])
def test_arrangements_of_pixels(order: str, compression: int, pack: Callable[[bytes], bytes]) -> None:
    rgb = tags((8, 8, 8), 2, t259=compression)
    padded = np.zeros((32, 48, 3), np.uint8)
    padded[:HEIGHT, :WIDTH] = PIXELS
    corners = [(y, x) for y in (0, 16) for x in (0, 16, 32)]
    tile = rgb | {322: short(16), 323: short(16)}
    rows = range(0, HEIGHT, 7)
    strips = [pack(PIXELS[row : row + 7].tobytes()) for row in rows]
    planes = [pack(PIXELS[row : row + 7, :, band].tobytes()) for band in range(3) for row in rows]
    tiles = [pack(padded[y : y + 16, x : x + 16].tobytes()) for y, x in corners]
    tile_planes = [pack(padded[y : y + 16, x : x + 16, band].tobytes()) for band in range(3) for y, x in corners]
    for data in (
        write(rgb | {278: short(7)}, strips, order),
        write(rgb | {278: short(7), 284: short(2)}, planes, order),
        write(tile, tiles, order, "tiles"),
        write(tile | {284: short(2)}, tile_planes, order, "tiles"),
    ):
        np.testing.assert_array_equal(decoded(data), PIXELS)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("compression", "pack"), [(1, bytes), (8, zlib.compress)])
def test_kinds_of_pixels(order: str, compression: int, pack: Callable[[bytes], bytes]) -> None:
    def data(bits: Sequence[int], photometric: int, pixels: npt.NDArray[np.uint8], **more: int) -> bytes:
        wide = (pixels * np.uint16(257)).astype(order + "u2")
        stored = wide if bits[0] == 16 else pixels
        return write(tags(bits, photometric, t259=compression, **more), [pack(stored.tobytes())], order)

    half = np.full_like(GREY, 128)
    premultiplied = np.dstack([PIXELS // 2, half])
    on_white = premultiplied[..., :3].astype(int) + 127
    grey = np.stack([GREY] * 3, axis=-1)
    ink = np.dstack([GREY, *[np.zeros_like(GREY)] * 3])
    inked = np.dstack([255 - GREY, *[np.full_like(GREY, 255)] * 2])
    for bits in (8, 16):
        np.testing.assert_array_equal(decoded(data([bits] * 3, 2, PIXELS)), PIXELS)
        np.testing.assert_array_equal(decoded(data([bits] * 4, 2, premultiplied, t338=1)), on_white)
        np.testing.assert_array_equal(decoded(data([bits], 1, GREY)), grey)
        np.testing.assert_array_equal(decoded(data([bits] * 4, 5, ink)), inked)
    np.testing.assert_array_equal(decoded(data([8], 0, 255 - GREY)), grey)
    np.testing.assert_array_equal(decoded(data([8, 8], 1, np.dstack([GREY, half * 0]), t338=2)), grey * 0 + 255)
    colours = [*range(0, 65_536, 257)], [*range(65_535, -1, -257)], [0] * 256
    palette = tags([8], 3, t259=compression) | {320: short(*colours[0], *colours[1], *colours[2])}
    expected = np.dstack([GREY, 255 - GREY, GREY * 0])
    np.testing.assert_array_equal(decoded(write(palette, [pack(GREY.tobytes())], order)), expected)
    turned = tags([8] * 3, 2, t259=compression, t274=6)
    upright = np.asarray(Image.fromarray(PIXELS).transpose(Image.Transpose.ROTATE_270))
    np.testing.assert_array_equal(decoded(write(turned, [pack(PIXELS.tobytes())], order)), upright)


def with_a_second_page(subfile: int) -> bytes:
    data = write(tags([8] * 3, 2), [PIXELS.tobytes()])
    (first,) = struct.unpack_from("<I", data, 4)
    link = first + 2 + 12 * struct.unpack_from("<H", data, first)[0]
    page = struct.pack("<H", 1) + struct.pack("<HHII", 254, 4, 1, subfile) + bytes(4)
    return data[:link] + struct.pack("<I", len(data)) + data[link + 4 :] + page


def test_smaller_copies_of_the_photo_are_passed_over() -> None:
    np.testing.assert_array_equal(decoded(with_a_second_page(1)), PIXELS)
    with pytest.raises(PhotoError, match="several pages"):
        decoded(with_a_second_page(0))


RGB = tags((8, 8, 8), 2)
BYTES = PIXELS.tobytes()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (write(RGB | {259: short(50_000)}, [BYTES]), "a TIFF of compression 50000: save it with"),
        (write(RGB | {339: short(3, 3, 3)}, [BYTES]), "a TIFF of pixels that photos do not have"),
        (write(tags([16], 0), [BYTES]), "a TIFF of pixels that photos do not have: photometric 0, bits \\[16\\]"),
        (write(tags([8] * 3, 6), [BYTES]), "a TIFF of pixels that photos do not have"),
        (write(tags([8] * 3, 32_803), [BYTES]), "a TIFF of pixels that photos do not have"),
        (write(RGB | {254: short(1)}, [BYTES]), "a TIFF whose first page is a thumbnail"),
        (write(RGB | {278: short(7)}, [BYTES]), "truncated or corrupt: 1 of 4 strips or tiles"),
        (write(RGB | {278: short(7)}, [BYTES[:400]] * 4), "truncated or corrupt: strips or tiles have other sizes"),
        (write(RGB | {273: (4, [8, 8])}, [BYTES]), "truncated or corrupt: 2 of 1 strips"),
        (write(RGB | {278: short(0)}, [BYTES]), "truncated or corrupt: strips of no rows"),
        (write(RGB | {279: (4, [2**31])}, [BYTES]), "truncated or corrupt: a strip or tile ends outside of the file"),
        (write(RGB | {322: (4, [2**31]), 323: short(16)}, [BYTES], kind="tiles"), "truncated or corrupt: tiles of"),
        (write(RGB | {256: (4, [90_000])}, [BYTES]), "too many pixels: 90000x24"),
        (write(tags([16] * 8, 5) | {256: (4, [9000]), 257: (4, [9000])}, [BYTES]), "too many pixels: 9000x9000 of 8"),
        # the same strip a hundred times: to unpack it once is cheap
        (
            write(RGB | {259: short(8), 278: short(1), 273: (4, [8] * 24), 279: (4, [len(BYTES)] * 24)}, [BYTES]),
            "truncated or corrupt: strips or tiles have other sizes",
        ),
        (write(RGB | {259: short(7)}, [b"\xff\xd8\xff\xc0" + bytes(90)]), "truncated or corrupt: no end of image"),
        (write(RGB, [BYTES])[:8], "truncated or corrupt"),
        (b"II*\0\xff\xff\xff\xff", "truncated or corrupt"),
        (b"MM\0+\0\x08\0\0" + b"\x80" * 8, "truncated or corrupt"),
    ],
)
def test_what_is_no_photo_or_costs_too_much_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(PhotoError, match=f"^a.tif: {reason}"):
        decoded(data)
