"""What caches of photos and features there are, and removing those that nobody uses."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from binventory.data.cache.pack import FEATURES, JOURNAL, LOCK, META, PHOTOS, Kind, read_meta
from binventory.errors import ConfigError


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


def list_caches(cache_dir: Path) -> list[Cached]:
    """Return the caches of photos and features under `paths.cache_dir`, the one used last first."""
    kinds = (PHOTOS, FEATURES)
    found = [_look_at(path.parent, kind) for kind in kinds for path in cache_dir.glob(f"{kind.folder}/*/{kind.file}")]
    return sorted(found, key=lambda cached: cached.last_used, reverse=True)


def prune_caches(cache_dir: Path, unused_days: float) -> tuple[list[Cached], list[Cached]]:
    """Remove the caches that no run opened for so many days.

    A run that reads one keeps its rows: the disk gets their room back when it ends.

    Returns:
        What was removed, and what would have been but is being built at this moment.

    Raises:
        ConfigError: a folder cannot be removed.
    """
    from filelock import FileLock, Timeout

    latest = datetime.now(UTC) - timedelta(days=unused_days)
    removed, busy = [], []
    for cached in list_caches(cache_dir):
        if cached.last_used > latest:
            continue
        try:
            with FileLock(cached.folder / LOCK, timeout=0):
                (cached.folder / META).unlink(missing_ok=True)  # first: what is left of it is not taken for whole
                shutil.rmtree(cached.folder)
        except Timeout:
            busy.append(cached)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigError(f"paths.cache_dir: {cached.folder} cannot be removed ({reason}); remove it") from error
        else:
            removed.append(cached)
    return removed, busy


def _look_at(folder: Path, kind: Kind) -> Cached:
    files = [path.stat() for name in (kind.file, META, JOURNAL, LOCK) if (path := folder / name).exists()]
    meta = read_meta(folder)
    what, num_photos = "unfinished", None
    if meta is not None:
        what, num_photos = _in_words(kind, meta["facts"]), meta["num_photos"]
    last_used = datetime.fromtimestamp(max(status.st_mtime for status in files), UTC)
    return Cached(folder, what, num_photos, sum(512 * status.st_blocks for status in files), last_used)


def _in_words(kind: Kind, facts: dict[str, Any]) -> str:
    if kind == FEATURES:
        return f"features of {facts['model']}, {facts['precision']}"
    return f"{facts['image_size']} {facts['resize']} {facts['interpolation']}"
