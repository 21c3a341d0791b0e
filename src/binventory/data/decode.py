"""Bytes to pixels, for indexing, training, predicting and serving alike: all accept and refuse the same photos."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.Image import Transpose
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from binventory.data.containers import (
    DAMAGE,
    ContainerError,
    check_bmp,
    check_jpeg,
    check_png,
    check_size,
    check_webp,
    readable_png,
)
from binventory.data.formats import HEAD_BYTES, NO_PHOTO, format_of
from binventory.data.reading import MAX_PHOTO_BYTES, stamp_of
from binventory.data.text import printable
from binventory.data.tiff import check_tiff
from binventory.errors import InputError
from binventory.files import UnreadableError, read_limited

ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # EXIF: the tag, and its values for photos that lie on their side
UPRIGHT: dict[object, Transpose] = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}


class _Format(NamedTuple):
    """How a format is read: by which of Pillow's plugins, and what is checked before, which gives the bytes for it."""

    plugin: Callable[[BytesIO], ImageFile]
    check: Callable[[bytes], bytes]


# Not Image.open: it would try every plugin there is, and warn or raise about large photos by limits of its own.
# MpoImageFile is not among them: the first picture of an MPO is a JPEG.
FORMATS = {
    "JPEG": _Format(JpegImageFile, check_jpeg),
    "PNG": _Format(PngImageFile, check_png),
    "WebP": _Format(WebPImageFile, check_webp),
    "BMP": _Format(BmpImageFile, check_bmp),
    "TIFF": _Format(TiffImageFile, check_tiff),
}


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
    """Decode a photo at its full size; see `decode_photo`."""
    return decode_photo(data, name).image


def decode_photo(data: bytes, name: str, wanted: Callable[[tuple[int, int]], tuple[int, int]] | None = None) -> Photo:
    """Decode a JPEG (also the first picture of an MPO), PNG, WebP, BMP or TIFF, upright by its EXIF orientation.

    Its content alone says which it is. Grey, 16-bit, palette and CMYK pixels become 8-bit RGB; transparent ones are
    laid on white. EXIF data, texts and profiles that cannot be read are passed over.

    Args:
        data: the whole file.
        name: file name for messages.
        wanted: width and height of a photo -> those that are needed of it, the same for a photo that lies on its side.
            A JPEG is then decoded at 1/2, 1/4 or 1/8 of its size where that is no less. None: at its full size.

    Raises:
        PhotoError: empty, another format, animated or of several pages, over 100 megapixels (WebP: 50) or 20,000 pixels
            on a side, a JPEG of over 100 scans, or truncated or corrupt anywhere that can be noticed.
    """
    content = _content_format(data, name)
    try:
        checked = FORMATS[content].check(data)
        try:
            return _decoded(content, checked, wanted)
        except DAMAGE:
            if content != "PNG" or (readable := readable_png(checked)) is checked:
                raise
            return _decoded(content, readable, wanted)
    except ContainerError as error:
        raise PhotoError(name, str(error)) from error
    except DAMAGE as error:
        raise PhotoError(name, f"truncated or corrupt: {error}") from error


def _decoded(content: str, data: bytes, wanted: Callable[[tuple[int, int]], tuple[int, int]] | None) -> Photo:
    opened = FORMATS[content].plugin(BytesIO(data))
    check_size(opened.size)
    if getattr(opened, "is_animated", False):
        raise ContainerError("animated: a photo has one frame")
    (width, height), factor = opened.size, 1
    if wanted is not None and content == "JPEG":
        factor = _factor(opened, wanted(opened.size))
        opened.draft(None, (width // factor, height // factor))
    opened.load()
    orientation = _orientation(opened)  # none of a TIFF, which Pillow has turned by now
    image: Image.Image = opened
    if content == "BMP" and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        image = image.convert("RGB")  # many programs leave these bytes zero and mean opaque
    method = UPRIGHT.get(orientation)
    if method is not None:
        image = image.transpose(method)
    return Photo(_to_rgb(image), (height, width) if orientation in SIDEWAYS else (width, height), factor)


def _orientation(image: ImageFile) -> object:
    try:
        found = image.getexif().get(ORIENTATION)
    except DAMAGE:  # the pixels are sound all the same
        return None
    return found if isinstance(found, Hashable) else None


def reduction(size: tuple[int, int], wanted: tuple[int, int]) -> int:
    """Return by what a JPEG's sides are divided when it is decoded where another size is wanted: 1, 2, 4 or 8."""
    surplus = min(size[0] // wanted[0], size[1] // wanted[1])
    return next(factor for factor in (8, 4, 2, 1) if factor <= max(surplus, 1))


def _factor(image: ImageFile, wanted: tuple[int, int]) -> int:
    factor = reduction(image.size, wanted)
    # a last row that is there in part would be the first of a photo that is then turned
    return 1 if _orientation(image) not in (1, None) and any(side % factor for side in image.size) else factor


def _content_format(data: bytes, name: str) -> str:
    if not data:
        raise PhotoError(name, "empty file")
    content = format_of(data[:HEAD_BYTES])
    if content not in FORMATS:
        raise PhotoError(name, NO_PHOTO + ("" if content is None else f": a picture in {content}"))
    return content


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
