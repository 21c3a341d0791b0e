"""What SageMaker carries between S3 and an instance: channels, checkpoints, archives."""

from __future__ import annotations

import os
import tarfile
import tempfile
import threading
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

Order = Callable[[Sequence[Path]], Sequence[Path]]

# In which order changed checkpoint files are uploaded; AWS promises none.
ORDERS: dict[str, Order] = {
    "name": sorted,
    "reversed": lambda paths: sorted(paths, reverse=True),
    "oldest": lambda paths: sorted(paths, key=_modified_ns),
    "newest": lambda paths: sorted(paths, key=_modified_ns, reverse=True),
    "small": lambda paths: sorted(paths, key=_size_bytes),
    "large": lambda paths: sorted(paths, key=_size_bytes, reverse=True),
}


def _modified_ns(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def _size_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class DownloadError(Exception):
    """Data that the job needs cannot be brought to it; the message becomes the FailureReason."""


def split_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/some/key` -> ("bucket", "some/key")."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def list_keys(s3: Any, bucket: str, prefix: str) -> list[str]:
    """Keys with a prefix, in S3's order, without those that stand for folders."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return [item["Key"] for page in pages for item in page.get("Contents", []) if not item["Key"].endswith("/")]


def relative_name(key: str, prefix: str) -> str:
    """Where an object lies in its channel: below the prefix where that is a folder, else below the prefix's folder."""
    folder = prefix if prefix.endswith("/") or not prefix else f"{prefix}/"
    if not key.startswith(folder):
        folder = prefix[: prefix.rfind("/") + 1]
    return key[len(folder) :]


def download(s3: Any, uri: str, target: Path, *, shard: tuple[int, int] = (0, 1)) -> list[str]:
    """Download every object of a prefix into a folder; of `shard` (i, n), the i-th of n parts. Returns relative names.

    Raises:
        DownloadError: a key would leave the folder, or is both a file and a folder.
    """
    bucket, prefix = split_uri(uri)
    names = []
    for key in list_keys(s3, bucket, prefix)[shard[0] :: shard[1]]:
        name = relative_name(key, prefix)
        if not name or ".." in PurePosixPath(name).parts or name.startswith("/"):
            raise DownloadError(
                f"ClientError: Data download failed: key {key!r} of {uri} cannot be a file below a channel"
            )
        path = target / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(bucket, key, str(path))
        except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
            raise DownloadError(f"ClientError: Data download failed: key {key!r} is a file and a folder") from error
        names.append(name)
    return names


def upload_archive(s3: Any, folders: Sequence[Path], uri: str) -> None:
    """Put the files of all hosts' folders into S3 as one tar.gz; where two have one name, the first host's counts.

    Nothing is uploaded when there is no file.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            found.setdefault(path.relative_to(folder).as_posix(), path)
    if not found:
        return
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, path in found.items():
                archive.add(path, arcname=name, recursive=False)
        file.seek(0)
        bucket, key = split_uri(uri)
        s3.upload_fileobj(file, bucket, key)


class CheckpointSync:
    """Keeps a checkpoint directory and its S3 prefix alike: down before the start, up while the job runs.

    As on AWS, a file is uploaded as it is at that moment, and one that is deleted here stays in S3.

    Attributes:
        uploaded: relative names, in the order in which they arrived.
    """

    def __init__(self, s3: Any, folder: Path, uri: str, order: Order) -> None:
        self.uploaded: list[str] = []
        self._s3, self._folder, self._order = s3, folder, order
        self._bucket, prefix = split_uri(uri)
        self._prefix = prefix.rstrip("/") + "/" if prefix else ""
        self._known: dict[Path, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def pull(self) -> None:
        """Bring down what is in S3."""
        download(self._s3, f"s3://{self._bucket}/{self._prefix}", self._folder)
        self._known = {path: state for path in self._files() if (state := _state(path))}

    def push(self, limit: int | None = None) -> None:
        """Upload the files that changed since the last time, at most `limit` of them."""
        with self._lock:
            changed = [path for path in self._files() if _state(path) not in (None, self._known.get(path))]
            for path in list(self._order(changed))[:limit]:
                state = _state(path)
                try:
                    content = path.read_bytes()
                except FileNotFoundError:  # renamed or removed meanwhile
                    continue
                name = path.relative_to(self._folder).as_posix()
                self._s3.put_object(Bucket=self._bucket, Key=self._prefix + name, Body=content)
                self.uploaded.append(name)
                if state:
                    self._known[path] = state

    def has(self, pattern: str) -> bool:
        """Whether a file matching a glob is in the directory."""
        return next(self._folder.glob(pattern), None) is not None

    def _files(self) -> list[Path]:
        # os.walk passes over folders that vanish meanwhile
        found = [Path(folder, name) for folder, _, names in os.walk(self._folder) for name in names]
        return [path for path in found if path.is_file() and not path.is_symlink()]


def _state(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size
