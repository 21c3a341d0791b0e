"""What surrounds a photo's pixels, judged before a decoder sees it: whole, of bounded cost, and of one photo."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import NamedTuple

from PIL.PngImagePlugin import PngStream

MAX_PIXELS = 100_000_000  # a photo of this size takes 400 MB as RGB
MAX_SIDE = 20_000  # resizing takes memory by the longer side, however narrow the photo
MAX_SCANS = 100  # of a progressive JPEG; usual are 10, and 60 bytes more make libjpeg pass over all pixels once more
MAX_SEGMENTS = 30_000  # or chunks: a file of 64 MiB has millions of empty ones, each of which takes time and memory
MAX_WEBP_PIXELS = MAX_PIXELS // 2  # libwebp takes twice the memory a pixel
MAX_RLE_PIXELS = 4_000_000  # of a BMP: Pillow unpacks runs in Python

# What decoders raise on damaged files: OSError where pixel data ends early, the others on broken headers
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error)

JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")  # those left out stand alone, within pixel data
START_OF_SCAN, END_OF_IMAGE, FIRST_SEGMENT = 0xDA, 0xD9, 0xC0

PNG_START_BYTES = 8
PNG_KIND = re.compile(rb"[A-Za-z]{4}")
PNG_PIXEL_CHUNKS = (b"tRNS", b"acTL", b"fcTL", b"fdAT")  # not critical by their names, but pixels depend on them

WEBP_ANIMATION = 0x02  # a flag of the VP8X chunk


class ContainerError(Exception):
    """Why a file's container cannot be used: the reason without the file's name."""


def corrupt(what: object) -> ContainerError:
    """Return the error for a damaged file."""
    return ContainerError(f"truncated or corrupt: {what}")


def check_size(size: tuple[int, int], max_pixels: int = MAX_PIXELS) -> None:
    """Refuse sizes (width, height) whose pixels would take more memory than there may be."""
    width, height = size
    if width < 1 or height < 1:
        raise corrupt(f"{width}x{height} pixels")
    if width * height > max_pixels or max(width, height) > MAX_SIDE:
        limits = f"at most {max_pixels // 10**6} megapixels and {MAX_SIDE:,} on a side"
        raise ContainerError(f"too many pixels: {width}x{height}, {limits}")


def check_jpeg(data: bytes) -> bytes:
    """Refuse what libjpeg would take: a file whose end is missing or zero, and one that it would decode for hours."""
    position, num_scans = 2, 0
    for _ in range(MAX_SEGMENTS):
        if (marker := JPEG_MARKER.search(data, position)) is None:
            raise corrupt("no end of image")
        kind, position = marker[0][1], marker.end()
        if kind == END_OF_IMAGE:  # of the first picture where there are several, as in an MPO
            return data
        if kind < FIRST_SEGMENT:
            raise corrupt(f"no marker is 0x{kind:02X}")
        if kind == START_OF_SCAN:
            num_scans += 1
            if num_scans > MAX_SCANS:
                raise ContainerError(f"too many scans: at most {MAX_SCANS}")
        position += int.from_bytes(data[position : position + 2])  # the length of what belongs to the marker
    raise _too_many_segments()


def _too_many_segments() -> ContainerError:
    return ContainerError(f"too many segments: at most {MAX_SEGMENTS:,}")


class _Chunk(NamedTuple):
    kind: bytes
    start: int  # of its length field
    end: int  # after its checksum
    is_whole: bool  # by its checksum

    @property
    def is_needed(self) -> bool:
        return not self.kind[0] & 0x20 or self.kind in PNG_PIXEL_CHUNKS


def _png_chunks(data: bytes) -> Iterator[_Chunk]:
    position = PNG_START_BYTES
    for _ in range(MAX_SEGMENTS):
        if position + 12 > len(data):
            raise corrupt("no end of image")
        kind, end = data[position + 4 : position + 8], position + 12 + int.from_bytes(data[position : position + 4])
        if PNG_KIND.fullmatch(kind) is None:
            raise corrupt("no chunk where one must be")
        if end > len(data):
            raise corrupt("no end of image")
        checksum = zlib.crc32(memoryview(data)[position + 4 : end - 4])
        yield _Chunk(kind, position, end, checksum == int.from_bytes(data[end - 4 : end]))
        if kind == b"IEND":
            return
        position = end
    raise _too_many_segments()


def check_png(data: bytes) -> bytes:
    """Refuse a PNG of which a part that pixels depend on is damaged; return it without other damaged parts."""
    chunks = list(_png_chunks(data))
    if chunks[0].kind != b"IHDR" or not any(chunk.kind == b"IDAT" for chunk in chunks):
        raise corrupt("no header or no pixels")
    for chunk in chunks:
        if chunk.is_needed and not chunk.is_whole:
            raise corrupt(f"wrong checksum of {chunk.kind.decode()}")
    return _png_of(data, [chunk for chunk in chunks if chunk.is_whole])


def readable_png(data: bytes) -> bytes:
    """Return a PNG that `check_png` gave without texts, profiles and the like that Pillow cannot read."""
    stream = PngStream(BytesIO(data))  # one for all: it also bounds the memory that texts take together

    def is_readable(chunk: _Chunk) -> bool:
        position, length = chunk.start + 8, chunk.end - chunk.start - 12
        stream.fp.seek(position)  # type: ignore[union-attr]
        try:
            stream.call(chunk.kind, position, length)
        except AttributeError:  # a kind that Pillow has no reader for
            return True
        except DAMAGE:
            return False
        return True

    return _png_of(data, [chunk for chunk in _png_chunks(data) if chunk.is_needed or is_readable(chunk)])


def _png_of(data: bytes, chunks: list[_Chunk]) -> bytes:
    if sum(chunk.end - chunk.start for chunk in chunks) == chunks[-1].end - PNG_START_BYTES:
        return data  # none is left out
    return data[:PNG_START_BYTES] + b"".join(data[chunk.start : chunk.end] for chunk in chunks)


def check_webp(data: bytes) -> bytes:
    """Refuse a WebP that is cut off, animated, or larger than stated here: libwebp takes memory as it opens a file."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data) + 1:  # some writers leave out the last padding byte
        raise corrupt("no end of image")
    position, num_frames, num_chunks = 12, 0, 0
    while position + 8 <= min(end, len(data)):
        num_chunks += 1
        if num_chunks > MAX_SEGMENTS:
            raise _too_many_segments()
        kind, length = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        content = data[position + 8 : position + 8 + min(length, 16)]
        position += 8 + length + length % 2
        if position > end + 1 or len(content) < min(length, 16):
            raise corrupt(f"{kind!r} ends outside of the file")
        if kind == b"ANMF":
            num_frames += 1
            if len(content) >= 16:
                check_size(_webp_size(content[6:]), MAX_WEBP_PIXELS)
        elif kind == b"VP8X" and len(content) >= 10:
            check_size(_webp_size(content[4:]), MAX_WEBP_PIXELS)
        elif kind == b"VP8 " and len(content) >= 10:
            width, height = struct.unpack_from("<HH", content, 6)
            check_size((width & 0x3FFF, height & 0x3FFF), MAX_WEBP_PIXELS)
        elif kind == b"VP8L" and len(content) >= 5:
            bits = int.from_bytes(content[1:5], "little")
            check_size((1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)), MAX_WEBP_PIXELS)
    if num_frames > 1:
        raise ContainerError("animated: a photo has one frame")
    return data


def _webp_size(content: bytes) -> tuple[int, int]:
    return 1 + int.from_bytes(content[:3], "little"), 1 + int.from_bytes(content[3:6], "little")


def check_bmp(data: bytes) -> bytes:
    """Refuse a BMP whose runs would be unpacked for minutes."""
    header_bytes = int.from_bytes(data[14:18], "little")
    if header_bytes >= 40 and len(data) >= 54:
        width, height, compression = struct.unpack_from("<ii4xI", data, 18)
        if compression in (1, 2):
            check_size((width, abs(height)), MAX_RLE_PIXELS)
    return data
