"""TIFF files cut down to what a photo needs: Pillow and libtiff then see no tag that was not checked here."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from binventory.data.containers import MAX_PIXELS, MAX_SIDE, ContainerError, check_jpeg, check_size, corrupt

MAX_TAGS = 1000
MAX_COPIES = 16
MAX_PARTS = 2**17  # strips or tiles: 100 megapixels in tiles of 32 x 32
MAX_SAMPLES = 8
MAX_TILE_PIXELS = 2**20  # or four times the photo's: a tile may be larger than the photo
MAX_BYTES = 4 * MAX_PIXELS  # of all pixels as they are stored

KIND_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
NUMBERS = {1: "B", 3: "H", 4: "I", 16: "Q"}

SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PLANAR = 273, 277, 278, 279, 284
TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, SAMPLE_FORMAT = 322, 323, 324, 325, 339
# Of the others: fill order, orientation, predictor, colour map, extra samples, JPEG tables and how YCbCr is stored
KEPT = {
    *(WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, STRIP_OFFSETS, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PLANAR),
    *(TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES, SAMPLE_FORMAT, 266, 274, 317, 320, 338, 347),
    *(529, 530, 531, 532),
}
NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACK_BITS = 1, 5, 7, 8, 32946, 32773
COMPRESSIONS = (NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACK_BITS)
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR = 0, 1, 2, 3, 5, 6
DEEP = (BLACK_IS_ZERO, RGB, CMYK)  # what Pillow reads right in 16 bits


class _Layout(NamedTuple):
    """How numbers stand in a file: struct's byte order, and the formats of classic TIFF or BigTIFF."""

    order: str
    is_big: bool

    @property
    def offset(self) -> str:
        return self.order + ("Q" if self.is_big else "I")

    @property
    def num_tags(self) -> str:
        return self.order + ("Q" if self.is_big else "H")

    @property
    def entry(self) -> str:
        return self.order + ("HHQ8s" if self.is_big else "HHI4s")


class _Entry(NamedTuple):
    raw: bytes
    kind: int
    num_values: int
    value: bytes


def check_tiff(data: bytes) -> bytes:
    """Return the file with one directory, at its end, of those tags alone that its pixels and orientation need.

    Raises:
        ContainerError: more than one page, pixels or a compression that photos do not have, too large, or damaged.
    """
    layout = _Layout("<" if data[:1] == b"I" else ">", data[2:4] in (b"+\0", b"\0+"))
    try:
        (first,) = struct.unpack_from(layout.offset, data, 8 if layout.is_big else 4)
        entries, following = _directory(data, layout, first)
        _check_following(data, layout, following)
        tags = {tag: _numbers(entry, layout) for tag, entry in entries.items()}
        _check_pixels(tags)
        _check_parts(data, tags)
    except (struct.error, IndexError, OverflowError) as error:
        raise corrupt(error) from error
    raw = [entries[tag].raw for tag in sorted(entries) if tag in KEPT]
    start = len(data) + len(data) % 2
    directory = struct.pack(layout.num_tags, len(raw)) + b"".join(raw) + struct.pack(layout.offset, 0)
    head = data[:8] if layout.is_big else data[:4]
    head += struct.pack(layout.offset, start)
    return b"".join((head, memoryview(data)[len(head) :], b"\0" * (len(data) % 2), directory))


def _check_following(data: bytes, layout: _Layout, following: int) -> None:
    """Refuse further pages but for smaller copies of the first, as some programs store them."""
    for _ in range(MAX_COPIES):
        if not following:
            return
        entries, following = _directory(data, layout, following)
        if SUBFILE not in entries or not _numbers(entries[SUBFILE], layout)[0] & 1:
            break
    raise ContainerError("several pages: a photo has one")


def _directory(data: bytes, layout: _Layout, position: int) -> tuple[dict[int, _Entry], int]:
    """Return the known tags by number of the directory at a position, and where the next directory is."""
    (num_tags,) = struct.unpack_from(layout.num_tags, data, position)
    if num_tags > MAX_TAGS:
        raise ContainerError(f"too many tags: {num_tags}, at most {MAX_TAGS}")
    position += struct.calcsize(layout.num_tags)
    size = struct.calcsize(layout.entry)
    entries: dict[int, _Entry] = {}
    for start in range(position, position + num_tags * size, size):
        tag, kind, count, value = struct.unpack_from(layout.entry, data, start)
        if tag not in KEPT | {SUBFILE} or tag in entries:
            continue
        length = count * KIND_BYTES.get(kind, 0)
        if count > MAX_PARTS or not length:
            raise corrupt(f"tag {tag} has {count} values of kind {kind}")
        if length > len(value):
            (place,) = struct.unpack(layout.offset, value)
            value = data[place : place + length] if place < len(data) else b""
        if len(value) < length:
            raise corrupt(f"tag {tag} lies outside of the file")
        entries[tag] = _Entry(data[start : start + size], kind, count, value[:length])
    return entries, struct.unpack_from(layout.offset, data, position + num_tags * size)[0]


def _numbers(entry: _Entry, layout: _Layout) -> Sequence[int]:
    kind = NUMBERS.get(entry.kind)
    return () if kind is None else struct.unpack(f"{layout.order}{entry.num_values}{kind}", entry.value)


def _check_pixels(tags: Mapping[int, Sequence[int]]) -> None:
    """Refuse what is no photo's, or what Pillow would read as other pixels than it is."""
    size = tags.get(WIDTH, (0,))[0], tags.get(HEIGHT, (0,))[0]
    check_size(size)
    compression = tags.get(COMPRESSION, (NONE,))[0]
    if compression not in COMPRESSIONS:
        raise ContainerError(f"a TIFF of compression {compression}: save it with LZW, deflate, JPEG or none")
    photometric, bits = tags.get(PHOTOMETRIC, (WHITE_IS_ZERO,))[0], set(tags.get(BITS, (1,)))
    kind = f"a TIFF of pixels that photos do not have: photometric {photometric}, bits {sorted(bits)}"
    num_samples, is_planar = tags.get(SAMPLES, (1,))[0], tags.get(PLANAR, (1,))[0] != 1
    is_odd = (
        bits - {1, 2, 4, 8, 16}
        or len(bits) != 1
        or set(tags.get(SAMPLE_FORMAT, (1,))) != {1}  # signed or floating: the range is anybody's guess
        or photometric not in (WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, PALETTE, CMYK, YCBCR)
        or (bits == {16} and (photometric not in DEEP or is_planar))
        or (photometric == YCBCR and compression != JPEG)
        or num_samples > MAX_SAMPLES
    )
    if is_odd:
        raise ContainerError(kind)
    if tags.get(SUBFILE, (0,))[0] & 1:  # as in most raw files of cameras
        raise ContainerError("a TIFF whose first page is a thumbnail")
    if size[0] * size[1] * num_samples * max(bits) // 8 > MAX_BYTES:
        raise ContainerError(f"too many pixels: {size[0]}x{size[1]} of {num_samples} x {max(bits)} bits")


def _check_parts(data: bytes, tags: Mapping[int, Sequence[int]]) -> None:
    """Refuse strips or tiles that are missing, lie outside of the file, or lie on each other to be unpacked often."""
    width, height = tags[WIDTH][0], tags[HEIGHT][0]
    num_samples, compression = tags.get(SAMPLES, (1,))[0], tags.get(COMPRESSION, (NONE,))[0]
    if TILE_OFFSETS in tags and STRIP_OFFSETS not in tags:
        offsets, sizes = tags[TILE_OFFSETS], tags.get(TILE_BYTES, ())
        across, down = tags.get(TILE_WIDTH, (0,))[0], tags.get(TILE_HEIGHT, (0,))[0]
        is_odd = not 0 < across <= MAX_SIDE or not 0 < down <= MAX_SIDE
        if is_odd or across * down > max(4 * width * height, MAX_TILE_PIXELS):
            raise corrupt(f"tiles of {across}x{down}")
    else:
        offsets, sizes = tags.get(STRIP_OFFSETS, ()), tags.get(STRIP_BYTES, ())
        across, down = width, min(tags.get(ROWS_PER_STRIP, (height,))[0], height)
        if down < 1:
            raise corrupt("strips of no rows")
    num_parts = -(-width // across) * -(-height // down)
    if tags.get(PLANAR, (1,))[0] != 1:
        num_parts *= num_samples
    if len(offsets) < num_parts or (len(sizes) != len(offsets) and (sizes or compression != NONE)):
        raise corrupt(f"{len(offsets)} of {num_parts} strips or tiles")
    if any(start + size > len(data) for start, size in zip(offsets, sizes, strict=False)):
        raise corrupt("a strip or tile ends outside of the file")
    row_bytes = -(-width * num_samples * max(tags.get(BITS, (1,))) // 8)
    if sum(sizes) > len(data) or (compression == NONE and sizes and sum(sizes) < height * row_bytes):
        raise corrupt("strips or tiles have other sizes than the photo")
    if compression == JPEG:
        for start, size in zip(offsets, sizes, strict=True):
            check_jpeg(data[start : start + size])
