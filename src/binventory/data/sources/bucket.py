"""Bins laid out as in the public bucket: `bin-images/ID.jpg` and `metadata/ID.json`, in a folder or on S3."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from binventory.config.schema import S3Config
from binventory.data.formats import is_other_picture, is_photo
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
from binventory.data.sources.photo_tree import looks_like_photo
from binventory.data.sources.progress import counted
from binventory.data.sources.s3 import (
    S3Connection,
    S3Object,
    is_s3,
    mirror_folder,
    naming,
    read_object,
    resolved,
    split_folder,
)
from binventory.data.summary import not_taken_lines
from binventory.data.text import MADE_ID, id_of_name
from binventory.errors import InputError

PHOTOS, PHOTO_SUFFIX = "bin-images", ".jpg"  # of the public bucket; any ending of a photo is taken
METADATA, METADATA_SUFFIX = "metadata", ".json"
MAX_LISTINGS = 100  # for so many ids each is looked for by itself; for more the whole folder is listed


class BucketSource:
    """Reads the bucket layout; one on S3 is mirrored below `data_dir` first.

    A bin's photo is `ID` with any ending of a photo in any case.

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
                found = mirror_bins(self.location, wanted, self.limit, self.s3, self.data_dir)
            else:
                _check_layout(folder)
                wanted = wanted or own_list_of_folder(folder)
                found = list_bins(folder)
            return take(found.bins, wanted, self.limit, self.location, found.not_taken)


class LayoutBins(NamedTuple):
    """The bins of a bucket layout, and names of files beside the photos that look like photos and are not read."""

    bins: Iterator[BinFiles]
    not_taken: Sequence[str]


def list_bins(folder: Path) -> LayoutBins:
    """List the bins of a folder in bucket layout: every id of which a photo or metadata exists.

    A file whose name cannot be an id is a bin with a problem, and so are two photos of one id.

    Raises:
        InputError: a folder cannot be read.
    """
    photos, metadata = _part_of(folder / PHOTOS, _Part(is_photo)), _part_of(folder / METADATA, _Part(_is_metadata))

    def bins() -> Iterator[BinFiles]:
        for bin_id in photos.names.keys() | metadata.names.keys():
            paths = (
                None if (name := photos.name(bin_id)) is None else folder / PHOTOS / name,
                None if (name := metadata.name(bin_id)) is None else folder / METADATA / name,
            )
            problem = photos.problem(bin_id) or metadata.problem(bin_id)
            yield BinFiles(bin_id, *paths, needs_metadata=True, problem=problem)

    return LayoutBins(bins(), photos.not_taken)


def mirror_bins(
    location: str, wanted: Iterable[str] | None, limit: int | None, s3: S3Config, data_dir: str | Path
) -> LayoutBins:
    """Download the first `limit` by name of the `wanted` bins (None: of all) and list what there is of them.

    A file that cannot be had is that bin's `problem`; a bin without any file is left out. A wanted photo is `ID.jpg`;
    only where there is none is another ending looked for.

    Raises:
        InputError: the bucket cannot be reached, listed or written to disk.
    """
    bucket, prefix = split_folder(location)
    s3 = resolved(s3)
    if prefix and target_of(bucket, prefix, s3, data_dir) is None:
        raise InputError(
            f"{location}: the prefix cannot be a path on this machine; name one without '.' and '..' parts"
        )
    place = _Place(bucket, prefix, mirror_folder(bucket, s3, data_dir))
    problems: dict[str, str] = {}
    not_taken: Sequence[str] = ()
    if wanted is None:
        files, problems, not_taken = _list_remote(place, limit, s3)
    else:
        ids = sorted(wanted, key=name_order)[:limit]
        files = {bin_id: (place.photo(bin_id + PHOTO_SUFFIX), place.metadata(bin_id)) for bin_id in ids}
    outcome = download([file for pair in files.values() for file in pair if file is not None], s3, data_dir, location)
    missing = [bin_id for bin_id, (photo, _) in files.items() if photo is not None and photo.target in outcome.missing]
    if wanted is not None and missing:
        others, problems = _other_photos(place, missing, s3)
        files |= {bin_id: (photo, files[bin_id][1]) for bin_id, photo in others.items()}
        if photos := [photo for photo in others.values() if photo is not None]:
            more = download(photos, s3, data_dir, location)
            outcome.missing |= more.missing
            outcome.failed |= more.failed

    def bins() -> Iterator[BinFiles]:
        for bin_id, pair in files.items():
            found = _bin_files(bin_id, *pair, outcome, problems.get(bin_id))
            if found.photo or found.metadata or found.problem:
                yield found

    return LayoutBins(bins(), not_taken)


@dataclass(frozen=True)
class _Place:
    """A bucket layout on S3 and the folder of its bucket here."""

    bucket: str
    prefix: str
    folder: Path

    def key(self, folder: str, name: str = "") -> str:
        return "/".join(part for part in (self.prefix, folder, name) if part)

    def photo(self, name: str, there: S3Object | None = None) -> RemoteFile:
        return self._file(self.key(PHOTOS, name), there)

    def metadata(self, bin_id: str, there: S3Object | None = None) -> RemoteFile:
        return self._file(self.key(METADATA, bin_id + METADATA_SUFFIX), there)

    def _file(self, key: str, there: S3Object | None) -> RemoteFile:
        return RemoteFile(self.bucket, key, self.folder / key, there)


_Pair = tuple[RemoteFile | None, RemoteFile | None]


class _Part:
    """The photos or the metadata files of a layout by id; hidden files, which systems leave, are none."""

    def __init__(self, is_part: Callable[[str], bool]) -> None:
        self.is_part = is_part
        self.names: dict[str, str] = {}  # by id
        self.there: dict[str, S3Object] = {}
        self.not_taken: list[str] = []
        self._problems: dict[str, str] = {}
        self._twice: dict[str, set[str]] = defaultdict(set)

    def add(self, name: str, there: S3Object | None = None) -> None:
        bin_id, problem = id_of_name(name.rpartition(".")[0])
        if bin_id in self.names:
            self._twice[bin_id] |= {self.names[bin_id], name}
        self.names[bin_id] = name
        if there is not None:
            self.there[bin_id] = there
        if problem is not None:
            self._problems[bin_id] = problem

    def name(self, bin_id: str) -> str | None:
        """The file of an id; None where there is none, or not one alone."""
        return None if bin_id in self._twice else self.names.get(bin_id)

    def problem(self, bin_id: str) -> str | None:
        """Why the bin of an id cannot be used, by its files' names."""
        if bin_id in self._twice:
            return f"several photos of one id: {', '.join(sorted(self._twice[bin_id]))}"
        return self._problems.get(bin_id)


def _is_metadata(name: str) -> bool:
    return name.endswith(METADATA_SUFFIX) and not name.startswith(".")


def _list_remote(
    place: _Place, limit: int | None, s3: S3Config
) -> tuple[dict[str, _Pair], dict[str, str], Sequence[str]]:
    """Photo and metadata of the first `limit` ids by name, problems by id, and the names of pictures that are not read.

    Each folder is listed no further than that takes.
    """
    connection = S3Connection(s3)
    photos, metadata = _Part(is_photo), _Part(_is_metadata)
    for folder, part in ((PHOTOS, photos), (METADATA, metadata)):
        # one key more than the limit: it tells whether the last id has another photo
        page_keys = 1000 if limit is None else limit + 1
        listed = connection.list_objects(place.bucket, place.key(folder), recursive=False, page_keys=page_keys)
        for name, entry in _names(counted(listed, f"s3://{place.bucket}/{place.key(folder)}")):
            if part.is_part(name):
                if len(part.names) == limit and id_of_name(name.rpartition(".")[0])[0] not in part.names:
                    break
                part.add(name, entry)
            elif part is photos and is_other_picture(name):
                photos.not_taken.append(name)
    if not photos.names and not metadata.names:
        raise InputError(
            f"s3://{place.bucket}/{place.prefix}: has neither {PHOTOS}/ID.jpg nor {METADATA}/ID.json; "
            f"{'; '.join([*not_taken_lines(photos.not_taken), 'name the prefix above them'])}"
        )
    ids = sorted(photos.names.keys() | metadata.names.keys(), key=name_order)[:limit]
    problems = {bin_id: problem for bin_id in ids if (problem := photos.problem(bin_id) or metadata.problem(bin_id))}
    files: dict[str, _Pair] = {}
    for bin_id in ids:
        photo = None if (one := photos.name(bin_id)) is None else place.photo(one, photos.there[bin_id])
        about = None if bin_id not in metadata.names else place.metadata(bin_id, metadata.there[bin_id])
        files[bin_id] = (None, None) if bin_id.startswith(MADE_ID) else (photo, about)
    return files, problems, photos.not_taken


def _other_photos(
    place: _Place, ids: Sequence[str], s3: S3Config
) -> tuple[dict[str, RemoteFile | None], dict[str, str]]:
    """Photos of some ids whatever their ending, None where there are several, and the problems of these."""
    connection, photos, sought = S3Connection(s3), _Part(is_photo), set(ids)
    starts = [f"{bin_id}." for bin_id in ids] if len(ids) <= MAX_LISTINGS else [""]
    for start in starts:
        listed = connection.list_objects(place.bucket, place.key(PHOTOS), recursive=False, name_start=start)
        for name, entry in _names(counted(listed, f"s3://{place.bucket}/{place.key(PHOTOS)}")):
            if is_photo(name) and name.rpartition(".")[0] in sought:
                photos.add(name, entry)
    found = {
        bin_id: None if photos.name(bin_id) is None else place.photo(name, photos.there[bin_id])
        for bin_id, name in photos.names.items()
    }
    return found, {bin_id: problem for bin_id in found if (problem := photos.problem(bin_id))}


def _names(listed: Iterable[S3Object]) -> Iterator[tuple[str, S3Object]]:
    return ((entry.key.rpartition("/")[2], entry) for entry in listed)


def _bin_files(
    bin_id: str, photo: RemoteFile | None, metadata: RemoteFile | None, outcome: Outcome, problem: str | None
) -> BinFiles:
    failed = [file for file in (photo, metadata) if file is not None and file.target in outcome.failed]
    return BinFiles(
        bin_id,
        photo.target if photo is not None and outcome.has(photo.target) else None,
        metadata.target if metadata is not None and outcome.has(metadata.target) else None,
        needs_metadata=True,
        problem=problem or "; ".join(f"{file.uri}: {outcome.failed[file.target]}" for file in failed) or None,
    )


def _part_of(folder: Path, part: _Part) -> _Part:
    """Add the files of a folder, if there is one, to a part."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                # not is_file(): a dangling link or a pipe named like a photo is a bad photo, not a missing one
                if part.is_part(entry.name):
                    part.add(entry.name)
                elif part.is_part is is_photo and looks_like_photo(Path(entry.path)):
                    part.not_taken.append(entry.name)
    except FileNotFoundError:
        return part
    except OSError as error:
        raise InputError(f"{folder}: cannot be read: {error.strerror}") from error
    return part


def _own_list(location: str, s3: S3Config) -> dict[str, int] | None:
    bucket, prefix = split_folder(location)
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
