"""Which photos `predict.py input=…` means."""

from __future__ import annotations

import glob
import re
import sys
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from binventory.config.schema import S3Config
from binventory.data.formats import is_other_picture, is_photo
from binventory.data.metadata import MetadataError, read_metadata
from binventory.data.sources.base import BinFiles
from binventory.data.sources.bucket import LayoutBins, is_bucket_layout, list_bins, mirror_bins
from binventory.data.sources.mirror import distrust
from binventory.data.sources.photo_tree import (
    PhotoFile,
    PhotoTree,
    count_of,
    fetch_uris,
    ids_of,
    list_photos,
    looks_like_photo,
)
from binventory.data.sources.s3 import S3Connection, is_s3, naming, split_folder
from binventory.data.sources.table import TABLE_SUFFIXES, photos_of, read_rows
from binventory.data.summary import READ_SUFFIXES, not_taken_lines, reason_lines, reason_of
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

    The input may be a photo, a folder (its photos at any depth), a glob, a folder in bucket layout (all its photos,
    also those that its file_list.json leaves out), an ImageFolder tree, a table or index with a `path` column (in the
    order of its rows), and the same on S3 except a glob. `key` is the config key that holds it. Files that look like
    photos and are not read are counted and named on stderr.

    Raises:
        InputError: nothing was found, or the folder, table or bucket cannot be read.
    """
    with naming(key):
        if PurePosixPath(location).suffix.lower() in TABLE_SUFFIXES:
            return _table(location, s3, data_dir)
        photos, not_taken = _remote(location, s3, data_dir) if is_s3(location) else _local(location, s3, data_dir)
        named = not_taken_lines(not_taken)
        if not photos:
            hint = "; ".join(named) or f"name a {READ_SUFFIXES} file, or a folder or glob of them"
            raise InputError(f"{location}: holds no photo; {hint}")
    for line in named:
        print(f"warning: {key}: {line}", file=sys.stderr)
    return photos


def record_warnings(photos: Sequence[InputPhoto]) -> list[str]:
    """Return lines that say which recorded quantities cannot be used and why; none where all can."""
    unusable: dict[str, list[str]] = defaultdict(list)
    for photo in photos:
        if photo.quantity_problem is not None:
            unusable[reason_of(photo.quantity_problem)].append(photo.id)
    number = sum(map(len, unusable.values()))
    return [f"warning: {number:,} recorded quantities cannot be used", *reason_lines(unusable)] if unusable else []


def _local(location: str, s3: S3Config, data_dir: str | Path) -> tuple[list[InputPhoto], Sequence[str]]:
    path = Path(location)
    if path.is_dir():
        if is_bucket_layout(path):
            return _bins(list_bins(path))
        return _photos(list_photos(location, s3, data_dir))
    if path.exists() and not location.endswith("/"):
        return [InputPhoto(id_of_name(path.stem)[0], path)], ()
    if glob.has_magic(location) and not location.endswith("/"):
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]  # noqa: PTH207
        files = [match for match in found if not match.is_dir()]
        photos = [PhotoFile(match.as_posix(), match) for match in files if is_photo(match.name)]
        others = [match.as_posix() for match in files if not is_photo(match.name) and looks_like_photo(match)]
        return _photos(PhotoTree(photos, others), trees=False)
    raise InputError(f"{location}: no such file or folder; check the path")


def _remote(location: str, s3: S3Config, data_dir: str | Path) -> tuple[list[InputPhoto], Sequence[str]]:
    if is_photo(location) or is_other_picture(location):
        photo = fetch_uris([location], s3, data_dir, location)[location]
        if photo.path is not None:
            return [InputPhoto(id_of_name(photo.path.stem)[0], photo.path)], ()
        if is_photo(location):
            raise InputError(photo.error or location)
    bucket, prefix = split_folder(location)
    layout = f"{prefix}/bin-images".lstrip("/")
    if any(S3Connection(s3).list_objects(bucket, layout, recursive=False, page_keys=1)):
        mirrored = mirror_bins(location, None, None, s3, data_dir)
        bins = list(mirrored.bins)
        photos, not_taken = _bins(LayoutBins(iter(bins), mirrored.not_taken))
        unreadable = {photo.id for photo in photos if photo.quantity_problem is not None}
        distrust((found.metadata for found in bins if found.id in unreadable and found.metadata), data_dir)
        return photos, not_taken
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


def _bins(layout: LayoutBins) -> tuple[list[InputPhoto], Sequence[str]]:
    with_photo = [found for found in layout.bins if found.photo is not None or found.problem is not None]
    return [_bin(found) for found in sorted(with_photo, key=lambda found: _natural(found.id))], layout.not_taken


def _bin(found: BinFiles) -> InputPhoto:
    error = found.problem if found.photo is None else None
    if found.metadata is None:
        return InputPhoto(found.id, found.photo, None, error)
    try:
        return InputPhoto(found.id, found.photo, read_metadata(found.metadata).quantity, error)
    except MetadataError as unusable:
        return InputPhoto(found.id, found.photo, None, error, unusable.reason)


def _photos(tree: PhotoTree, trees: bool = True) -> tuple[list[InputPhoto], Sequence[str]]:
    ordered = sorted(tree.photos, key=lambda photo: _natural(photo.name))
    counts = [count_of(photo.name) if trees else None for photo in ordered]
    is_tree = None not in counts
    ids = [id_of_name(made)[0] for made in ids_of([photo.name for photo in ordered])]
    photos = [
        InputPhoto(photo_id, photo.path, count if is_tree else None, photo.error)
        for photo_id, photo, count in zip(ids, ordered, counts, strict=True)
    ]
    return photos, tree.not_taken


def _natural(name: str) -> tuple[list[str | int], str]:
    parts: list[str | int] = [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
    return parts, name
