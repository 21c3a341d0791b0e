"""Photos and metadata files as nobody should write them, each with what is to be said about it."""

from __future__ import annotations

import json
import struct
import zlib
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from binventory.data.formats import NO_PHOTO

HEALTHY = {f"{100_000 + 10 * number}": number % 2 + 1 for number in range(40)}
KILOBYTE = 1024


def encode(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def photo(seed: int, width: int = 48, height: int = 32) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, deflated: bytes) -> bytes:
    """A PNG of one bit a pixel."""
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", deflated) + png_chunk(b"IEND", b"")


@cache
def real_bomb() -> bytes:
    """60,000 x 60,000 black pixels, whole and valid: 450 MB in half a megabyte."""
    row_bytes = 60_000 // 8 + 1
    total, block = row_bytes * 60_000, bytes(2**20)
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = pack.compress(block) + pack.flush(zlib.Z_FULL_FLUSH)
    again = pack.compress(block) + pack.flush(zlib.Z_FULL_FLUSH)
    whole, rest = divmod(total, len(block))
    end = pack.compress(bytes(rest)) + pack.flush()
    checksum = 1
    for size in [len(block)] * whole + [rest]:
        checksum = zlib.adler32(block[:size], checksum)
    return png(60_000, 60_000, b"\x78\xda" + start + again * (whole - 1) + end + struct.pack(">I", checksum))


def jpeg_claiming(width: int, height: int) -> bytes:
    data = bytearray(encode(photo(1)))
    place = data.index(b"\xff\xc0") + 5
    data[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def many_scans(times: int) -> bytes:
    """A JPEG of ten megapixels whose last scan stands there again and again: 20 ms for every 120 bytes."""
    whole = encode(Image.new("RGB", (4000, 2500), (90, 80, 70)), progressive=True)
    place = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[place:-2] * times + b"\xff\xd9"


def foreign_marker() -> bytes:
    """A JPEG in whose pixel data stands what is no marker: libjpeg passes over it, and so could a bomb be hidden."""
    whole = encode(photo(5, 160, 120), progressive=True, restart_marker_blocks=1)
    place = whole.index(b"\xff\xd0", whole.index(b"\xff\xda"))
    return whole[:place] + b"\xff\x17\0\4ab" + whole[place:]


def animated() -> bytes:
    frames = [photo(seed, 8, 8) for seed in (1, 2)]
    return encode(frames[0], "PNG", save_all=True, append_images=frames[1:])


def frames(kind: str) -> bytes:
    return encode(photo(1), kind, save_all=True, append_images=[photo(2)])


def bmp_of_runs(width: int, height: int) -> bytes:
    """Rows that end before they begin: two bytes each, which Pillow fills pixel by pixel."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, 0, 0, 0, 256, 0)
    start = 14 + len(header) + 4 * 256
    runs = b"\1\0\0\0" * height + b"\0\1"
    return b"BM" + struct.pack("<IHHI", start + len(runs), 0, 0, start) + header + bytes(4 * 256) + runs


def webp_claiming(width: int, height: int) -> bytes:
    data = bytearray(encode(photo(1), "WEBP"))
    place = data.index(b"\x9d\x01\x2a") + 3
    data[place : place + 4] = struct.pack("<HH", width, height)
    return bytes(data)


def tiff_claiming(tag: int, value: int) -> bytes:
    data = bytearray(encode(photo(1), "TIFF"))
    place = data.index(struct.pack("<H", tag), struct.unpack_from("<I", data, 4)[0])
    data[place : place + 12] = struct.pack("<HHII", tag, 4, 1, value)
    return bytes(data)


@cache
def bad_photos() -> dict[str, tuple[bytes, str]]:
    """Id -> the file's content and how what is said about it begins."""
    whole = encode(photo(7, 160, 120), quality=90)
    named = {
        "empty": (b"", "empty file"),
        "zeros": (bytes(5000), NO_PHOTO),
        "text": (b"<html>404</html>", NO_PHOTO),
        "gif": (encode(photo(1), "GIF"), f"{NO_PHOTO}: a picture in GIF"),
        "heic": (b"\0\0\0\x18ftypheic\0\0\0\0" + bytes(200), f"{NO_PHOTO}: a picture in HEIC"),
        "animated": (animated(), "animated"),
        "animated_webp": (frames("WEBP"), "animated"),
        "pages": (frames("TIFF"), "several pages"),
        "bomb": (real_bomb(), "too many pixels: 60000x60000"),
        "runs": (bmp_of_runs(10_000, 10_000), "too many pixels: 10000x10000, at most 4 megapixels"),
        "webp_claims": (webp_claiming(16_000, 16_000), "too many pixels: 16000x16000, at most 50 megapixels"),
        "tiff_claims": (tiff_claiming(256, 60_000), "too many pixels: 60000x"),
        "tiff_outside": (tiff_claiming(273, 2**31), "truncated or corrupt: a strip or tile ends outside of the file"),
        "tiff_tags": (b"II*\0\x08\0\0\0\xff\xff" + bytes(12 * 65_535 + 4), "too many tags: 65535"),
        **{
            f"{kind}_cut".lower(): (encode(photo(1), kind)[:-40], "truncated or corrupt")
            for kind in ("PNG", "WEBP", "BMP", "TIFF")
        },
        "claims": (jpeg_claiming(60_000, 60_000), "too many pixels: 60000x60000"),
        "narrow": (jpeg_claiming(1, 60_000), "too many pixels: 1x60000, at most 100 megapixels and 20,000 on a side"),
        "scans": (many_scans(200), "too many scans"),
        "tail_zero": (whole[:6000] + bytes(len(whole) - 6000), "truncated or corrupt: no end of image"),
        "foreign": (foreign_marker(), "truncated or corrupt: no marker is 0x17"),
    }
    cut = range(KILOBYTE, len(whole), KILOBYTE)
    return named | {f"cut_{size // KILOBYTE:02d}": (whole[:size], "truncated or corrupt") for size in cut}


@cache
def odd_photos() -> dict[str, tuple[bytes, tuple[int, int]]]:
    """Id -> content of a photo that is unusual and can be used, and its size once it is upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return {
        "one": (encode(photo(1, 1, 1)), (1, 1)),
        "grey": (encode(photo(2).convert("L")), (48, 32)),
        "cmyk": (encode(photo(3).convert("CMYK")), (48, 32)),
        "turned": (encode(photo(4), exif=exif), (32, 48)),
        "progressive": (encode(photo(5), progressive=True), (48, 32)),
        "long": (encode(photo(6, 2000, 2)), (2000, 2)),
        **{kind.lower(): (encode(photo(1), kind), (48, 32)) for kind in ("PNG", "WEBP", "BMP", "TIFF")},
        "mpo": (frames("MPO"), (48, 32)),
        "turned_tiff": (encode(photo(4), "TIFF", exif=exif), (32, 48)),
    }


def stated(quantity: object, **more: object) -> bytes:
    return json.dumps({"EXPECTED_QUANTITY": quantity, "BIN_FCSKU_DATA": {"A": {"quantity": 1}}, **more}).encode()


@cache
def bad_metadata() -> dict[str, tuple[bytes, str]]:
    """Id -> a metadata file's content and how what is said about it begins."""
    whole = stated(1)
    unusable = "EXPECTED_QUANTITY is no whole number from 0 to 1000000"
    values: list[object] = [-1, 10**7, 10**300, 1.0, 2.5, "1", True, None, [1], {"a": 1}, float("nan"), float("inf")]
    return {f"value_{place:02d}": (stated(value), unusable) for place, value in enumerate(values)} | {
        "m_empty": (b"", "metadata file is empty"),
        "m_zeros": (bytes(300), "metadata is not JSON"),
        "m_cut": (whole[:-3], "metadata is not JSON"),
        "m_array": (b"[1]", "metadata is no JSON object: list"),
        "m_other": (b'{"expected_quantity": 1}', "metadata has no EXPECTED_QUANTITY"),
        "m_twice": (b'{"EXPECTED_QUANTITY": 1, "EXPECTED_QUANTITY": 2}', "EXPECTED_QUANTITY stands twice"),
        "m_escaped": (b'{"EXPECTED_QUANTITY": 1, "EXPECTED_QUANTIT\\u0059": 2}', "EXPECTED_QUANTITY stands twice"),
        "m_lists": (
            stated(1)[:-1] + b', "x": ' + b"[" * 10_000 + b"]" * 10_000 + b"}",
            "metadata is nested too deeply",
        ),
        "m_dicts": (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "metadata is nested too deeply"),
        "m_digits": (b'{"EXPECTED_QUANTITY": 1' + b"0" * 10_000 + b"}", "metadata is not JSON"),
        "m_latin": (stated(1)[:-1] + b', "name": "\xe9"}', "metadata is not UTF-8"),
        "m_photo": (encode(photo(1)), "metadata is not UTF-8"),
    }


@cache
def odd_metadata() -> dict[str, tuple[bytes, str]]:
    """Id -> content of a metadata file whose quantity, 1, holds all the same, and a part of what is noted."""
    many = {f"A{number}": {"quantity": 1_000_000} for number in range(3000)}
    terminal = {"\x1b[31mA\nB": {"quantity": "one", "name": "\x1b]0;mine\x07"}, "\udc80": 3}
    faults = {f"item {number}": None for number in range(40_000)}
    return {
        "sum_of_billions": (stated(1, BIN_FCSKU_DATA=many), "item quantities sum to 3000000000"),
        "terminal_codes": (stated(1, BIN_FCSKU_DATA=terminal), "item without a usable quantity: \\x1b[31mA\\nB"),
        "forty_thousand_faults": (stated(1, BIN_FCSKU_DATA=faults), "39995 more faults"),
        "no_items": (stated(1, BIN_FCSKU_DATA=[1]), "no item list"),
        "item_twice": (
            b'{"EXPECTED_QUANTITY": 1, "BIN_FCSKU_DATA": {"A": {"quantity": 1}, "A": {"quantity": 1}}}',
            "key stands twice: A",
        ),
    }


def write_bucket(folder: Path, bin_id: str, photo_bytes: bytes, metadata: bytes) -> None:
    for name, content in (("bin-images", photo_bytes), ("metadata", metadata)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{bin_id}{'.jpg' if name == 'bin-images' else '.json'}").write_bytes(content)


def write_healthy(folder: Path) -> None:
    for bin_id, quantity in HEALTHY.items():
        items = {f"ASIN{bin_id}": {"quantity": quantity}}
        write_bucket(folder, bin_id, encode(photo(int(bin_id))), stated(quantity, BIN_FCSKU_DATA=items))


def write_hostile(folder: Path) -> dict[str, str | None]:
    """Add all of the above to a folder in bucket layout; return id -> how its problem begins, None where it is usable."""
    expected: dict[str, str | None] = {}
    for bin_id, (content, reason) in bad_photos().items():
        write_bucket(folder, bin_id, content, stated(2))
        expected[bin_id] = reason
    for bin_id, (content, reason) in bad_metadata().items():
        write_bucket(folder, bin_id, encode(photo(8)), content)
        expected[bin_id] = reason
    for bin_id, (content, _) in odd_photos().items():
        write_bucket(folder, bin_id, content, stated(2))
        expected[bin_id] = None
    for bin_id, (content, _) in odd_metadata().items():
        write_bucket(folder, bin_id, encode(photo(9)), content)
        expected[bin_id] = None
    return expected


def truth(bin_id: str) -> int:
    """The quantity that a bin of these has, whatever its files say."""
    return HEALTHY.get(bin_id, 1 if bin_id in odd_metadata() else 2)
