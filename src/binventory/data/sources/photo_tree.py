"""The photos below a folder or an S3 prefix, whatever their arrangement."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from binventory.config.schema import S3Config
from binventory.data.columns import Texts
from binventory.data.formats import HEAD_BYTES, SYSTEM_FOLDERS, format_of, is_other_picture, is_photo
from binventory.data.reading import read_head
from binventory.data.sources.mirror import RemoteFile, download, target_of
from binventory.data.sources.s3 import S3Connection, is_s3, resolved, split_folder, split_uri
from binventory.data.text import printable
from binventory.errors import InputError

COUNT_NAME = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class PhotoFile:
    """A photo of a tree.

    Attributes:
        name: path relative to the tree's root, with '/'.
        path: the file on this machine; None when it could not be fetched.
        error: why not.
    """

    name: str
    path: Path | None
    error: str | None = None


class PhotoTree(NamedTuple):
    """The photos of a tree, and the names of files that look like photos and are not read."""

    photos: list[PhotoFile]
    not_taken: list[str]


def looks_like_photo(path: Path) -> bool:
    """Whether a file that is no photo by its name is a picture: by its name another one, or by its first bytes any."""
    if path.name.startswith("."):
        return False
    return is_other_picture(path.name) or format_of(read_head(path, HEAD_BYTES)) is not None


def list_photos(location: str, s3: S3Config, data_dir: str | Path) -> PhotoTree:
    """List the photos below a folder, or fetch and list those below an S3 prefix, at any depth, hidden ones left out.

    Raises:
        InputError: the folder or the bucket cannot be read.
    """
    if is_s3(location):
        return _fetch_tree(location, s3, data_dir)
    return _walk(Path(location))


def count_of(name: str) -> int | None:
    """The count of a photo named `<count>/<file>`; None for any other name."""
    folder, _, file = name.partition("/")
    return int(folder) if file and "/" not in file and COUNT_NAME.fullmatch(folder) else None


def ids_of(names: Sequence[str]) -> Texts[str]:
    """Ids for photos that state none: the file name without its suffix where only one photo has it.

    Photos of the same file name in different folders are told apart by their whole path with `__` for '/': `a/1.jpg`
    and `b/1.jpg` become `a__1.jpg` and `b__1.jpg`.

    Raises:
        InputError: two photos have the same path, or paths that only differ by '/' and `__`.
    """
    shared = Texts[str](PurePosixPath(name).stem for name in names).shared()
    ids = Texts[str](_id_of(PurePosixPath(name), shared) for name in names)
    if twice := ids.repeated():
        both = " and ".join(printable(names[place]) for place in twice)
        raise InputError(f"{both} would have the same id {printable(ids[twice[0]])}; rename one")
    return ids


def _id_of(path: PurePosixPath, shared: Set[str]) -> str:
    if path.stem not in shared:
        return path.stem
    return "__".join(part for part in path.parts if part not in ("/", "..", "s3:"))


def fetch_uris(uris: list[str], s3: S3Config, data_dir: str | Path, title: str) -> dict[str, PhotoFile]:
    """Fetch single objects by URI, of any buckets; an object that is missing or unavailable is its own error.

    Raises:
        InputError: a bucket cannot be read at all.
    """
    if not uris:
        return {}
    s3 = resolved(s3)
    found: dict[str, PhotoFile] = {}
    files: dict[str, RemoteFile] = {}
    for uri in uris:
        bucket, key = split_uri(uri)
        target = target_of(bucket, key, s3, data_dir)
        if target is None:
            found[uri] = PhotoFile(uri, None, "the key cannot be a path on this machine")
        else:
            files[uri] = RemoteFile(bucket, key, target)
    return found | _download(files, s3, data_dir, title)


def _fetch_tree(location: str, s3: S3Config, data_dir: str | Path) -> PhotoTree:
    bucket, prefix = split_folder(location)
    s3 = resolved(s3)
    refused: list[PhotoFile] = []
    not_taken: list[str] = []
    files: dict[str, RemoteFile] = {}
    for entry in S3Connection(s3).list_objects(bucket, prefix, recursive=True):
        name = entry.key[len(prefix) + 1 :] if prefix else entry.key
        if not is_photo(name) or not set(SYSTEM_FOLDERS).isdisjoint(name.split("/")):
            not_taken += [name] * is_other_picture(name)
            continue
        target = target_of(bucket, entry.key, s3, data_dir)
        if target is None:
            refused.append(PhotoFile(name, None, "the key cannot be a path on this machine"))
        else:
            files[name] = RemoteFile(bucket, entry.key, target, entry)
    return PhotoTree(refused + list(_download(files, s3, data_dir, location).values()), not_taken)


def _download(files: dict[str, RemoteFile], s3: S3Config, data_dir: str | Path, title: str) -> dict[str, PhotoFile]:
    if not files:
        return {}
    outcome = download(list(files.values()), s3, data_dir, title)
    photos: dict[str, PhotoFile] = {}
    for name, file in files.items():
        missing = "no such object" if file.target in outcome.missing else None
        error = outcome.failed.get(file.target, missing)
        photos[name] = PhotoFile(name, None if error else file.target, f"{file.uri}: {error}" if error else None)
    return photos


def _walk(root: Path) -> PhotoTree:
    def refuse(error: OSError) -> None:
        raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error

    found = PhotoTree([], [])
    seen: set[str] = set()
    # without onerror a folder that is closed to us would be left out in silence
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:  # a link to a folder above it would never end
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in SYSTEM_FOLDERS)
        for name in sorted(names):
            path = Path(folder, name)
            if is_photo(name):
                found.photos.append(PhotoFile(path.relative_to(root).as_posix(), path))
            elif looks_like_photo(path):
                found.not_taken.append(path.relative_to(root).as_posix())
    return found
