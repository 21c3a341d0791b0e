"""What photo caches there are, and removing those that nobody uses."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from binventory.data.cache.pack import JOURNAL, LOCK, META, PHOTOS, read_meta
from binventory.errors import ConfigError


@dataclass(frozen=True)
class CachedPhotos:
    """One folder of decoded photos.

    Attributes:
        folder: where.
        kind: size, resize mode and interpolation, in words; "unfinished" where it was not built to its end.
        num_photos: rows; None: unfinished.
        size_bytes: on disk.
        last_used: when a run last opened it, or a build last wrote to it.
    """

    folder: Path
    kind: str
    num_photos: int | None
    size_bytes: int
    last_used: datetime


def list_photos(cache_dir: Path) -> list[CachedPhotos]:
    """Return the photo caches under `paths.cache_dir`, the one used last first."""
    found = [_look_at(path.parent) for path in cache_dir.glob(f"photos/*/{PHOTOS}")]
    return sorted(found, key=lambda cached: cached.last_used, reverse=True)


def prune_photos(cache_dir: Path, unused_days: float) -> tuple[list[CachedPhotos], list[CachedPhotos]]:
    """Remove the photo caches that no run opened for so many days.

    A run that reads one keeps its photos: the disk gets their room back when it ends.

    Returns:
        What was removed, and what would have been but is being built at this moment.

    Raises:
        ConfigError: a folder cannot be removed.
    """
    from filelock import FileLock, Timeout

    latest = datetime.now(UTC) - timedelta(days=unused_days)
    removed, busy = [], []
    for cached in list_photos(cache_dir):
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


def _look_at(folder: Path) -> CachedPhotos:
    files = [path.stat() for name in (PHOTOS, META, JOURNAL, LOCK) if (path := folder / name).exists()]
    meta = read_meta(folder)
    kind, num_photos = "unfinished", None
    if meta is not None:
        facts = meta["facts"]
        kind, num_photos = f"{facts['image_size']} {facts['resize']} {facts['interpolation']}", meta["num_photos"]
    last_used = datetime.fromtimestamp(max(status.st_mtime for status in files), UTC)
    return CachedPhotos(folder, kind, num_photos, sum(512 * status.st_blocks for status in files), last_used)
