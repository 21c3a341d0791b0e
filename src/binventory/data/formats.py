"""Which files are photos: by the ending of a name where they are listed, by their first bytes where they are read."""

from __future__ import annotations

from pathlib import PurePath, PurePosixPath

# The endings of what is read; the content decides how. Any case.
PHOTO_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".webp"),
    *(".bmp", ".dib", ".tif", ".tiff"),
)
# Pictures that cameras, phones and browsers write and that are not read: listed as such, never passed over in silence
OTHER_SUFFIXES = (
    *(".avif", ".gif", ".heic", ".heics", ".heif", ".heifs", ".hif", ".ico", ".j2c", ".j2k", ".jp2", ".jpf", ".jpx"),
    *(".jxl", ".jxr", ".pbm", ".pcx", ".pgm", ".pnm", ".ppm", ".psd", ".tga"),
    *(".3fr", ".arw", ".cr2", ".cr3", ".dng", ".nef", ".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".srw"),
)
EXPORTED_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")  # those that torchvision knows
SYSTEM_FOLDERS = ("__MACOSX", "@eaDir")  # of archivers and file servers, with forks and thumbnails of all photos

READ_FORMATS = ("JPEG", "PNG", "WebP", "BMP", "TIFF")
NO_PHOTO = "neither JPEG nor PNG, WebP, BMP or TIFF"
HEAD_BYTES = 32  # by which a format is known
BMP_HEADER_BYTES = (12, 40, 52, 56, 64, 108, 124)  # "BM" alone starts many a text

_STARTS = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    **dict.fromkeys((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), "TIFF"),
    **dict.fromkeys((b"GIF87a", b"GIF89a"), "GIF"),
    **dict.fromkeys((b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"), "JPEG 2000"),
    b"\0\0\0\x0cJXL ": "JPEG XL",
    b"8BPS": "PSD",
}
_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    b"crx ": "CR3",
}


def is_photo(name: str) -> bool:
    """Whether a file's name is that of a photo that is read: one of `PHOTO_SUFFIXES` in any case, not hidden."""
    return _ends(name, PHOTO_SUFFIXES)


def is_other_picture(name: str) -> bool:
    """Whether a file's name is that of a picture that is not read: one of `OTHER_SUFFIXES` in any case, not hidden."""
    return _ends(name, OTHER_SUFFIXES)


def _ends(name: str, suffixes: tuple[str, ...]) -> bool:
    return name.lower().endswith(suffixes) and not PurePosixPath(name).name.startswith(".")


def exported_suffix(path: PurePath) -> str:
    """Return the ending under which a photo is found again by any reader of folders: its own where that is known."""
    suffix = path.suffix.lower()
    return suffix if suffix in EXPORTED_SUFFIXES else ".jpg"  # its content decides how it is read


def format_of(head: bytes) -> str | None:
    """Return what a file is by its first `HEAD_BYTES`: one of `READ_FORMATS`, another picture, or None."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[:2] == b"BM" and int.from_bytes(head[14:18], "little") in BMP_HEADER_BYTES:
        return "BMP"
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12])
    return next((kind for start, kind in _STARTS.items() if head.startswith(start)), None)
