"""Bins laid out as in the public bucket: `bin-images/ID.jpg` and `metadata/ID.json`, in a folder or on S3."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from binventory.config.schema import S3Config
from binventory.data.sources.base import BinFiles, Listing
from binventory.data.sources.file_list import (
    FILE_LIST_NAME,
    name_order,
    own_list_of_folder,
    parse_file_list,
    read_file_list,
    take,
)
from binventory.data.sources.mirror import Outcome, RemoteFile, download, target_of
from binventory.data.sources.progress import counted
from binventory.data.sources.s3 import S3Connection, is_s3, mirror_folder, naming, read_object, split_uri
from binventory.data.text import id_of_name
from binventory.errors import InputError

PHOTOS, PHOTO_SUFFIX = "bin-images", ".jpg"
METADATA, METADATA_SUFFIX = "metadata", ".json"


class BucketSource:
    """Reads the bucket layout; one on S3 is mirrored below `data_dir` first.

    Taken are the bins of `file_list`, else those of the location's own file_list.json, else all of which a photo or
    metadata exists; of these the first `limit` by name. Arguments as in `Source`.
    """

    def __init__(
        self, location: str, *, file_list: str | None, limit: int | None, s3: S3Config, data_dir: str | Path
    ) -> None:
        self.location = location
        self.file_list = file_list
        self.limit = limit
        self.s3 = s3
        self.data_dir = data_dir

    def fetch(self) -> Listing:
        """Mirror if need be, then list. Raises InputError when the location or the list cannot be used."""
        folder = Path(self.location)
        with naming("data.file_list"):
            wanted = None if self.file_list is None else read_file_list(self.file_list, self.s3)
        with naming("data.source"):
            if is_s3(self.location):
                wanted = wanted or _own_list(self.location, self.s3)
                bins = mirror_bins(self.location, wanted, self.limit, self.s3, self.data_dir)
            else:
                _check_layout(folder)
                wanted = wanted or own_list_of_folder(folder)
                bins = list_bins(folder)
            return take(bins, wanted, self.limit, self.location)


def list_bins(folder: Path) -> Iterator[BinFiles]:
    """Give the bins of a folder in bucket layout: every id of which a photo or metadata exists.

    A file whose name cannot be an id is a bin with a problem.

    Raises:
        InputError: a folder cannot be read.
    """
    photos, problems = _files_by_id(folder / PHOTOS, PHOTO_SUFFIX)
    metadata, more_problems = _files_by_id(folder / METADATA, METADATA_SUFFIX)
    problems |= more_problems
    for bin_id in photos.keys() | metadata.keys():
        paths = (
            folder / PHOTOS / photos[bin_id] if bin_id in photos else None,
            folder / METADATA / metadata[bin_id] if bin_id in metadata else None,
        )
        yield BinFiles(bin_id, *paths, needs_metadata=True, problem=problems.get(bin_id))


def mirror_bins(
    location: str, wanted: Iterable[str] | None, limit: int | None, s3: S3Config, data_dir: str | Path
) -> Iterator[BinFiles]:
    """Download the first `limit` by name of the `wanted` bins (None: of all) and give what there is of them.

    A file that cannot be had is that bin's `problem`; a bin without any file is left out.

    Raises:
        InputError: the bucket cannot be reached, listed or written to disk.
    """
    bucket, prefix = split_uri(location)
    if prefix and target_of(bucket, prefix, s3, data_dir) is None:
        raise InputError(
            f"{location}: the prefix cannot be a path on this machine; name one without '.' and '..' parts"
        )
    place = _Place(bucket, prefix, mirror_folder(bucket, s3, data_dir))
    problems: dict[str, str] = {}
    if wanted is None:
        files, problems = _list_remote(place, limit, s3)
    else:
        ids = sorted(wanted, key=name_order)[:limit]
        files = {bin_id: (place.photo(bin_id), place.metadata(bin_id)) for bin_id in ids}
    outcome = download([file for pair in files.values() for file in pair if file is not None], s3, data_dir, location)
    for bin_id, pair in files.items():
        found = _bin_files(bin_id, *pair, outcome)
        if found.photo or found.metadata or found.problem:
            yield found
    for bin_id, reason in problems.items():
        yield BinFiles(bin_id, None, needs_metadata=True, problem=reason)


@dataclass(frozen=True)
class _Place:
    """A bucket layout on S3 and the folder of its bucket here."""

    bucket: str
    prefix: str
    folder: Path

    def key(self, folder: str, name: str = "") -> str:
        return "/".join(part for part in (self.prefix, folder, name) if part)

    def photo(self, bin_id: str, size_bytes: int | None = None) -> RemoteFile:
        return self._file(self.key(PHOTOS, bin_id + PHOTO_SUFFIX), size_bytes)

    def metadata(self, bin_id: str, size_bytes: int | None = None) -> RemoteFile:
        return self._file(self.key(METADATA, bin_id + METADATA_SUFFIX), size_bytes)

    def _file(self, key: str, size_bytes: int | None) -> RemoteFile:
        return RemoteFile(self.bucket, key, self.folder / key, size_bytes)


_Pair = tuple[RemoteFile | None, RemoteFile | None]


def _list_remote(place: _Place, limit: int | None, s3: S3Config) -> tuple[dict[str, _Pair], dict[str, str]]:
    """Photo and metadata of the first `limit` ids by name, and the problems of those whose name cannot be an id.

    Each folder is listed no further than that takes.
    """
    connection = S3Connection(s3)
    sizes, problems = [], {}
    for folder, suffix in ((PHOTOS, PHOTO_SUFFIX), (METADATA, METADATA_SUFFIX)):
        listed = connection.list_objects(place.bucket, place.key(folder), recursive=False, page_keys=limit or 1000)
        where = f"s3://{place.bucket}/{place.key(folder)}"
        names = ((entry.key.rpartition("/")[2], entry.size_bytes) for entry in counted(listed, where))
        here = {}
        for name, size_bytes in islice(((name, size) for name, size in names if _is_part(name, suffix)), limit):
            bin_id, problem = id_of_name(name.removesuffix(suffix))
            here[bin_id] = size_bytes
            if problem is not None:
                problems[bin_id] = problem
        sizes.append(here)
    photos, metadata = sizes
    if not photos and not metadata:
        raise InputError(
            f"s3://{place.bucket}/{place.prefix}: has neither {PHOTOS}/ID.jpg nor {METADATA}/ID.json; "
            "name the prefix above them"
        )
    ids = sorted(photos.keys() | metadata.keys(), key=name_order)[:limit]
    files = {
        bin_id: (
            place.photo(bin_id, photos[bin_id]) if bin_id in photos else None,
            place.metadata(bin_id, metadata[bin_id]) if bin_id in metadata else None,
        )
        for bin_id in ids
        if bin_id not in problems
    }
    return files, {bin_id: problems[bin_id] for bin_id in ids if bin_id in problems}


def _bin_files(bin_id: str, photo: RemoteFile | None, metadata: RemoteFile | None, outcome: Outcome) -> BinFiles:
    failed = [file for file in (photo, metadata) if file is not None and file.target in outcome.failed]
    return BinFiles(
        bin_id,
        photo.target if photo is not None and outcome.has(photo.target) else None,
        metadata.target if metadata is not None and outcome.has(metadata.target) else None,
        needs_metadata=True,
        problem="; ".join(f"{file.uri}: {outcome.failed[file.target]}" for file in failed) or None,
    )


def _files_by_id(folder: Path, suffix: str) -> tuple[dict[str, str], dict[str, str]]:
    """The names of the files of one kind, and the problems of those whose name cannot be an id; both by id."""
    found: dict[str, str] = {}
    problems: dict[str, str] = {}
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                # not is_file(): a dangling link or a pipe named like a photo is a bad photo, not a missing one
                if _is_part(entry.name, suffix):
                    bin_id, problem = id_of_name(entry.name.removesuffix(suffix))
                    found[bin_id] = entry.name
                    if problem is not None:
                        problems[bin_id] = problem
    except FileNotFoundError:
        return {}, {}
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    return found, problems


def _is_part(name: str, suffix: str) -> bool:
    """Whether a file is part of the layout; hidden ones, which systems leave, are not."""
    return name.endswith(suffix) and not name.startswith(".")


def _own_list(location: str, s3: S3Config) -> dict[str, int] | None:
    bucket, prefix = split_uri(location)
    uri = f"s3://{'/'.join(part for part in (bucket, prefix, FILE_LIST_NAME) if part)}"
    data = read_object(uri, s3)
    return None if data is None else parse_file_list(data, uri)


def _check_layout(folder: Path) -> None:
    if (folder / PHOTOS).is_dir() or (folder / METADATA).is_dir():
        return
    if folder.is_file():
        raise InputError(f"{folder}: is a file, not a folder; for a CSV or Parquet table set data=table")
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; check the path")
    counts = any(entry.is_dir() and entry.name.isdigit() for entry in folder.iterdir())
    hint = "for <count>/<id>.jpg set data=imagefolder" if counts else "name the folder above them"
    raise InputError(f"{folder}: has neither {PHOTOS}/ID.jpg nor {METADATA}/ID.json; {hint}")


def is_bucket_layout(folder: Path) -> bool:
    """Whether a local folder holds photos in bucket layout."""
    return (folder / PHOTOS).is_dir()
