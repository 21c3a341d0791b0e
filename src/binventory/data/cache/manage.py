"""What caches of photos and features there are, and removing those that nobody uses."""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from binventory.data.cache.pack import FEATURES, JOURNAL, LOCK, META, PHOTOS, Kind, is_mapped, read_meta
from binventory.data.text import printable
from binventory.files import locked_now

KINDS = (PHOTOS, FEATURES)
SECONDS_PER_DAY = 86_400
_KEY = re.compile(r"[0-9a-f]{16}")
_LEFTOVER = re.compile(r"\.[0-9a-f]{16}\.[0-9a-f]{8}\.pruned")
_NAMES = "|".join(re.escape(name) for name in (META, JOURNAL, LOCK, *(kind.file for kind in KINDS)))
_OWN = re.compile(rf"({_NAMES})|\.({_NAMES})\.\d+\.[0-9a-f]{{8}}\.tmp")  # and what killed writers left


@dataclass(frozen=True)
class Cached:
    """One folder of decoded photos or of frozen features.

    Attributes:
        folder: where.
        what: size, resize mode and interpolation of photos, network and precision of features; "unfinished" where it
            was not built to its end.
        num_photos: how many it is of; None: unfinished.
        size_bytes: on disk.
        last_used: when a run last opened it, or a build last wrote to it.
    """

    folder: Path
    what: str
    num_photos: int | None
    size_bytes: int
    last_used: datetime


@dataclass(frozen=True)
class Pruned:
    """What `prune_caches` did.

    Attributes:
        removed: what is gone.
        kept: what would have been removed, and why it was not: it is in use, or is not the cache's to remove.
        failed: what could not be removed, in lines that say why.
    """

    removed: list[Cached] = field(default_factory=list)
    kept: list[tuple[Cached, str]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def list_caches(cache_dir: Path) -> list[Cached]:
    """Return the caches of photos and features under `paths.cache_dir`, the one used last first.

    A folder that another process removes meanwhile, and what is no folder of a cache, is left out.
    """
    found = [_look_at(folder, kind) for kind in KINDS for folder in _folders(cache_dir / kind.folder, _KEY)]
    return sorted(filter(None, found), key=lambda cached: cached.last_used, reverse=True)


def prune_caches(cache_dir: Path, unused_days: float) -> Pruned:
    """Remove the caches that no run opened for so many days, and what an earlier prune that was killed left.

    One that a run has mapped or that is being built is kept, and so is one that is a link or has other files in it.
    """
    # Nothing was used before 1970, which is as far back as any number of days goes.
    latest = datetime.fromtimestamp(max(0.0, time.time() - SECONDS_PER_DAY * unused_days), UTC)
    done = Pruned()
    for cached in list_caches(cache_dir):
        if cached.last_used > latest:
            continue
        try:
            reason = _remove(cached.folder, latest)
        except FileNotFoundError:  # another prune was first
            continue
        except OSError as error:
            done.failed.append(f"{cached.folder} cannot be removed ({error.strerror or error})")
            continue
        if reason is None:
            done.removed.append(cached)
        elif reason:
            done.kept.append((cached, reason))
    for kind in KINDS:
        for folder in _folders(cache_dir / kind.folder, _LEFTOVER):
            try:
                _empty(folder)
            except OSError as error:
                done.failed.append(f"{folder} cannot be removed ({error.strerror or error})")
    return done


def _remove(folder: Path, latest: datetime) -> str | None:
    """Remove a pack's folder; return why it is kept, or nothing to say of one that was used just now."""
    if folder.is_symlink():
        return "it is a link"
    if other := next((entry.name for entry in os.scandir(folder) if not _is_own(entry)), None):
        return f"it holds {printable(other, 100)}, which is not the cache's"
    with locked_now(folder / LOCK) as is_free:
        if not is_free:
            return "it is being built"
        with _rows(folder) as descriptors:
            if any(is_mapped(descriptor, unknown=False) for descriptor in descriptors):
                return "a run reads it"
            now = _look_at(folder, _kind_of(folder))
            if now is None or (now.size_bytes and now.last_used > latest):
                return ""
            # Moved first: nobody finds a part of it, and who waits for its lock finds another folder, or none.
            leftover = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.pruned")
            folder.rename(leftover)
        _empty(leftover)
    return None


@contextmanager
def _rows(folder: Path) -> Iterator[list[int]]:
    """Open the files of rows in a folder, for leases."""
    with ExitStack() as stack:
        descriptors = []
        for kind in KINDS:
            with suppress(FileNotFoundError):
                descriptors.append(os.open(folder / kind.file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC))
                stack.callback(os.close, descriptors[-1])
        yield descriptors


def _empty(folder: Path) -> None:
    """Remove a folder of files. Another process may do the same."""
    with suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            Path(entry.path).unlink(missing_ok=True)
        folder.rmdir()


def _folders(root: Path, names: re.Pattern[str]) -> list[Path]:
    try:
        with os.scandir(root) as entries:
            return sorted(Path(entry.path) for entry in entries if names.fullmatch(entry.name) and entry.is_dir())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_own(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False) and _OWN.fullmatch(entry.name) is not None


def _kind_of(folder: Path) -> Kind:
    return next(kind for kind in KINDS if kind.folder == folder.parent.name)


def _look_at(folder: Path, kind: Kind) -> Cached | None:
    """Describe a pack; None where it has just been removed."""
    try:
        # Not the lock: a prune that found it in use touched it too.
        there = [path for path in folder.iterdir() if path.name in (kind.file, META, JOURNAL)]
        files = [path.stat() for path in there]
        used = [status.st_mtime for status in files] or [folder.stat().st_mtime]
    except FileNotFoundError:
        return None
    meta = read_meta(folder)
    what, num_photos = "unfinished", None
    if meta is not None:
        what, num_photos = _in_words(kind, meta["facts"]), meta["num_photos"]
    size_bytes = sum(512 * status.st_blocks for status in files)
    return Cached(folder, what, num_photos, size_bytes, datetime.fromtimestamp(max(used), UTC))


def _in_words(kind: Kind, facts: dict[str, Any]) -> str:
    if kind == FEATURES:
        return f"features of {facts['model']}, {facts['precision']}"
    return f"{facts['image_size']} {facts['resize']} {facts['interpolation']}"
