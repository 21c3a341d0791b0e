"""Bytes to pixels, for indexing, training, predicting and serving alike: all accept and refuse the same photos."""

from __future__ import annotations

import stat
import struct
from io import BytesIO
from pathlib import Path, PurePath

import numpy as np
from PIL import Image, ImageOps
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile

from binventory.errors import InputError

MAX_PIXELS = 100_000_000  # a photo of this size takes 300 MB as RGB
MAX_PHOTO_BYTES = 64 * 2**20

JPEG_START = b"\xff\xd8\xff"
PNG_START = b"\x89PNG\r\n\x1a\n"
SUFFIX_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG"}

# What Pillow's decoders raise on damaged files: OSError where pixel data ends early, the others on broken headers
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error)


class PhotoError(InputError):
    """A photo that cannot be used. `reason` is the part of the message that does not repeat the file's name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


def read_photo(path: Path) -> bytes:
    """Read the bytes of a photo.

    Raises:
        PhotoError: the file cannot be read, is no regular file (a pipe would block for ever) or is over 64 MiB.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise PhotoError(str(path), "not a regular file")
        if status.st_size > MAX_PHOTO_BYTES:
            size = f"{status.st_size / 2**20:.0f} MiB, at most {MAX_PHOTO_BYTES // 2**20} MiB are read"
            raise PhotoError(str(path), f"file too large: {size}")
        return path.read_bytes()
    except OSError as error:
        raise PhotoError(str(path), f"cannot be read: {error.strerror or error}") from error


def decode_rgb(data: bytes, name: str) -> Image.Image:
    """Decode a JPEG or PNG, upright by its EXIF orientation.

    Grey, 16-bit, palette and CMYK pixels become 8-bit RGB; transparent ones are laid on white.

    Args:
        data: the whole file.
        name: file name for messages; where it ends in .jpg, .jpeg or .png the content must be of that format.

    Returns:
        A loaded image of mode RGB.

    Raises:
        PhotoError: empty, neither JPEG nor PNG, another format than the name says, animated, over 100 megapixels, or
            truncated or corrupt anywhere.
    """
    content = _content_format(data, name)
    try:
        # Not Image.open: it would warn or raise about large photos by limits of its own, before ours are asked.
        image: ImageFile = JpegImageFile(BytesIO(data)) if content == "JPEG" else PngImageFile(BytesIO(data))
        _check_header(image, name)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _to_rgb(image)
    except PhotoError:
        raise
    except DAMAGE as error:
        raise PhotoError(name, f"truncated or corrupt: {error}") from error


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


def _check_header(image: ImageFile, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise PhotoError(name, f"too many pixels: {width}x{height}, at most {MAX_PIXELS // 10**6} megapixels")
    if getattr(image, "is_animated", False):
        raise PhotoError(name, "animated: a photo has one frame")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255
        return Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
