"""Bytes to pixels, for indexing, training, predicting and serving alike: all accept and refuse the same photos."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from io import BytesIO
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from binventory.data.reading import MAX_PHOTO_BYTES, UnreadableError, read_limited, stamp_of
from binventory.data.text import printable
from binventory.errors import InputError

MAX_PIXELS = 100_000_000  # a photo of this size takes 400 MB as RGB
MAX_SIDE = 20_000  # resizing takes memory by the longer side, however narrow the photo
MAX_SCANS = 100  # of a progressive JPEG; usual are 10, and 60 bytes more make libjpeg pass over all pixels once more

JPEG_START = b"\xff\xd8\xff"
PNG_START = b"\x89PNG\r\n\x1a\n"
JPEG_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")  # those left out stand alone, within pixel data
START_OF_SCAN, END_OF_IMAGE, FIRST_SEGMENT = 0xDA, 0xD9, 0xC0
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF: the tag, and its values for photos that lie on their side
SUFFIX_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}

# What Pillow's decoders raise on damaged files: OSError where pixel data ends early, the others on broken headers
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error)


class PhotoError(InputError):
    """A photo that cannot be used. `reason` is the part of the message that does not repeat the file's name."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = printable(reason)
        super().__init__(f"{printable(name)}: {self.reason}")


def read_photo(path: Path, stamp: tuple[int, int] | None = None) -> bytes:
    """Read the bytes of a photo.

    Args:
        path: the file.
        stamp: its `stamp_of` when it was indexed; another one means that this is not the photo that was labelled.

    Raises:
        PhotoError: the file cannot be read, is no regular file (a pipe would block for ever), is over 64 MiB, or has
            another stamp.
    """
    try:
        data = read_limited(path, MAX_PHOTO_BYTES)
        # after reading: a file that was put there meanwhile counts too
        is_another = stamp is not None and stamp_of(path.stat()) != stamp
    except UnreadableError as error:
        raise PhotoError(str(path), f"file {error}") from error
    except OSError as error:
        raise PhotoError(str(path), f"file cannot be read: {error.strerror}") from error
    if is_another:
        raise PhotoError(str(path), "another photo than was indexed")
    return data


class Photo(NamedTuple):
    """A decoded photo.

    Attributes:
        image: loaded, of mode RGB, upright.
        size: width and height of the upright photo as it was taken.
        factor: what these were divided by, and rounded up, to give those of `image`.
    """

    image: Image.Image
    size: tuple[int, int]
    factor: int


def decode_rgb(data: bytes, name: str) -> Image.Image:
    """Decode a JPEG or PNG at its full size; see `decode_photo`."""
    return decode_photo(data, name).image


def decode_photo(data: bytes, name: str, wanted: Callable[[tuple[int, int]], tuple[int, int]] | None = None) -> Photo:
    """Decode a JPEG or PNG, upright by its EXIF orientation.

    Grey, 16-bit, palette and CMYK pixels become 8-bit RGB; transparent ones are laid on white.

    Args:
        data: the whole file.
        name: file name for messages; where it ends in .jpg, .jpeg or .png the content must be of that format.
        wanted: width and height of a photo -> those that are needed of it, the same for a photo that lies on its side.
            A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size where that is no less. None: at its full size.

    Raises:
        PhotoError: empty, neither JPEG nor PNG, another format than the name says, animated, over 100 megapixels or
            20,000 pixels on a side, a JPEG of over 100 scans, or truncated or corrupt anywhere that can be noticed.
    """
    content = _content_format(data, name)
    if content == "JPEG":
        _check_markers(data, name)
    try:
        # Not Image.open: it would warn or raise about large photos by limits of its own, before ours are asked.
        image: ImageFile = JpegImageFile(BytesIO(data)) if content == "JPEG" else PngImageFile(BytesIO(data))
        _check_header(image, name)
        (width, height), factor = image.size, 1
        if wanted is not None and content == "JPEG":
            factor = _factor(image, wanted(image.size))
            image.draft(None, (width // factor, height // factor))
        image.load()
        is_sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
        ImageOps.exif_transpose(image, in_place=True)
        return Photo(_to_rgb(image), (height, width) if is_sideways else (width, height), factor)
    except PhotoError:
        raise
    except DAMAGE as error:
        raise PhotoError(name, f"truncated or corrupt: {error}") from error


def reduction(size: tuple[int, int], wanted: tuple[int, int]) -> int:
    """Return by what a JPEG's sides are divided when it is decoded where another size is wanted: 1, 2, 4 or 8."""
    surplus = min(size[0] // wanted[0], size[1] // wanted[1])
    return next(factor for factor in (8, 4, 2, 1) if factor <= max(surplus, 1))


def _factor(image: ImageFile, wanted: tuple[int, int]) -> int:
    factor = reduction(image.size, wanted)
    # a last row that is there in part would be the first of a photo that is then turned
    is_turned = image.getexif().get(ORIENTATION, 1) != 1
    return 1 if is_turned and any(side % factor for side in image.size) else factor


def _content_format(data: bytes, name: str) -> str:
    if not data:
        raise PhotoError(name, "empty file")
    if data.startswith(JPEG_START):
        content = "JPEG"
    elif data.startswith(PNG_START):
        content = "PNG"
    else:
        raise PhotoError(name, "neither JPEG nor PNG")
    suffix = PurePath(name).suffix.lower()
    if SUFFIX_FORMATS.get(suffix, content) != content:
        raise PhotoError(name, f"content does not match the name: a {content} named {suffix}")
    return content


def _check_markers(data: bytes, name: str) -> None:
    """Refuse what libjpeg would take: a file whose end is missing or zero, and one that it would decode for hours."""
    position, num_scans = len(JPEG_START) - 1, 0
    while (marker := JPEG_MARKER.search(data, position)) is not None:
        kind, position = marker[0][1], marker.end()
        if kind == END_OF_IMAGE:
            return
        if kind < FIRST_SEGMENT:
            raise PhotoError(name, f"truncated or corrupt: no marker is 0x{kind:02X}")
        if kind == START_OF_SCAN:
            num_scans += 1
            if num_scans > MAX_SCANS:
                raise PhotoError(name, f"too many scans: at most {MAX_SCANS}")
        position += int.from_bytes(data[position : position + 2])  # the length of what belongs to the marker
    raise PhotoError(name, "truncated or corrupt: no end of image")


def _check_header(image: ImageFile, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        limits = f"at most {MAX_PIXELS // 10**6} megapixels and {MAX_SIDE:,} on a side"
        raise PhotoError(name, f"too many pixels: {width}x{height}, {limits}")
    if getattr(image, "is_animated", False):
        raise PhotoError(name, "animated: a photo has one frame")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        opaque = Image.new("RGB", layer.size, "white")
        opaque.paste(layer, mask=layer)
        return opaque
    return image.convert("RGB")
