"""Which photos `predict.py input=…` means."""

from __future__ import annotations

import glob
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from binventory.config.schema import S3Config
from binventory.data.metadata import MetadataError, read_metadata
from binventory.data.sources.base import BinFiles
from binventory.data.sources.bucket import is_bucket_layout, list_bins, mirror_bins
from binventory.data.sources.photo_tree import PhotoFile, count_of, fetch_uris, ids_of, is_photo, list_photos
from binventory.data.sources.s3 import S3Connection, is_s3, naming, split_uri
from binventory.data.sources.table import TABLE_SUFFIXES, photos_of, read_rows
from binventory.data.summary import reason_lines, reason_of
from binventory.data.text import id_of_name
from binventory.errors import InputError


@dataclass(frozen=True)
class InputPhoto:
    """A photo to predict.

    Attributes:
        id: unique in the input: a bin's id or row's id where it has one, else made of the file name, see `ids_of`.
        path: the file on this machine; None when there is an `error` instead.
        quantity: the recorded quantity where the input states one that can be read.
        error: why there is no file.
        quantity_problem: why a quantity is recorded that cannot be used; the photo can be predicted without it.
    """

    id: str
    path: Path | None
    quantity: int | None = None
    error: str | None = None
    quantity_problem: str | None = None


def list_inputs(location: str, s3: S3Config, data_dir: str | Path, key: str = "input") -> list[InputPhoto]:
    """List the photos of an input, in natural order (2 before 10); those on S3 are fetched below `data_dir`.

    The input may be a photo, a folder (its jpg, jpeg and png files at any depth), a glob, a folder in bucket layout
    (all its photos, also those that its file_list.json leaves out), an ImageFolder tree, a table or index with a
    `path` column (in the order of its rows), and the same on S3 except a glob. `key` is the config key that holds it.

    Raises:
        InputError: nothing was found, or the folder, table or bucket cannot be read.
    """
    with naming(key):
        if PurePosixPath(location).suffix.lower() in TABLE_SUFFIXES:
            return _table(location, s3, data_dir)
        photos = _remote(location, s3, data_dir) if is_s3(location) else _local(location, s3, data_dir)
        if not photos:
            raise InputError(f"{location}: holds no photo; name a jpg, jpeg or png file, or a folder or glob of them")
    return photos


def record_warnings(photos: Sequence[InputPhoto]) -> list[str]:
    """Return lines that say which recorded quantities cannot be used and why; none where all can."""
    unusable: dict[str, list[str]] = defaultdict(list)
    for photo in photos:
        if photo.quantity_problem is not None:
            unusable[reason_of(photo.quantity_problem)].append(photo.id)
    number = sum(map(len, unusable.values()))
    return [f"warning: {number:,} recorded quantities cannot be used", *reason_lines(unusable)] if unusable else []


def _local(location: str, s3: S3Config, data_dir: str | Path) -> list[InputPhoto]:
    path = Path(location)
    if path.is_dir():
        if is_bucket_layout(path):
            return _bins(list_bins(path))
        return _photos(list_photos(location, s3, data_dir))
    if path.exists():
        return [InputPhoto(id_of_name(path.stem)[0], path)]
    if glob.has_magic(location):
        found = [Path(name) for name in glob.glob(str(path), recursive=True) if is_photo(name)]  # noqa: PTH207
        return _photos([PhotoFile(match.as_posix(), match) for match in found if not match.is_dir()], trees=False)
    raise InputError(f"{location}: no such file or folder; check the path")


def _remote(location: str, s3: S3Config, data_dir: str | Path) -> list[InputPhoto]:
    if is_photo(location):
        photo = fetch_uris([location], s3, data_dir, location)[location]
        if photo.path is None:
            raise InputError(photo.error or location)
        return [InputPhoto(id_of_name(photo.path.stem)[0], photo.path)]
    bucket, prefix = split_uri(location)
    layout = f"{prefix}/bin-images".lstrip("/")
    if any(S3Connection(s3).list_objects(bucket, layout, recursive=False, page_keys=1)):
        return _bins(mirror_bins(location, None, None, s3, data_dir))
    return _photos(list_photos(location, s3, data_dir))


def _table(location: str, s3: S3Config, data_dir: str | Path) -> list[InputPhoto]:
    rows = read_rows(location, s3)
    photos = photos_of(rows, s3, data_dir, location)
    return [
        InputPhoto(row.id, None, row.quantity, problem)
        if path is None
        else InputPhoto(row.id, path, row.quantity, None, problem if row.quantity is None else None)
        for row, (path, problem) in zip(rows, photos, strict=True)
    ]


def _bins(bins: Iterable[BinFiles]) -> list[InputPhoto]:
    with_photo = [found for found in bins if found.photo is not None or found.problem is not None]
    return [_bin(found) for found in sorted(with_photo, key=lambda found: _natural(found.id))]


def _bin(found: BinFiles) -> InputPhoto:
    error = found.problem if found.photo is None else None
    if found.metadata is None:
        return InputPhoto(found.id, found.photo, None, error)
    try:
        return InputPhoto(found.id, found.photo, read_metadata(found.metadata).quantity, error)
    except MetadataError as unusable:
        return InputPhoto(found.id, found.photo, None, error, unusable.reason)


def _photos(photos: list[PhotoFile], trees: bool = True) -> list[InputPhoto]:
    ordered = sorted(photos, key=lambda photo: _natural(photo.name))
    counts = [count_of(photo.name) if trees else None for photo in ordered]
    is_tree = None not in counts
    ids = [id_of_name(made)[0] for made in ids_of([photo.name for photo in ordered])]
    return [
        InputPhoto(photo_id, photo.path, count if is_tree else None, photo.error)
        for photo_id, photo, count in zip(ids, ordered, counts, strict=True)
    ]


def _natural(name: str) -> tuple[list[str | int], str]:
    parts: list[str | int] = [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
    return parts, name
