"""Files that are either the old one or the new one, never half of one."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from filelock import BaseFileLock


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give a temporary path in the folder of `path`; what was written there becomes `path` when the block ends well.

    The folder is made if need be. When the block raises, the temporary file is removed and `path` stays as it was.
    What the file system says of the temporary file is said of `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error  # a full disk does not say which file
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Let one process at a time into the block; who has to wait is told so.

    The folder is made if need be. It may be removed by who holds the lock: then the one that is there now is locked.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    timeout_s = 1.0
    while not lock.is_locked:
        _make_folder(path.parent)
        try:
            _lock_folder(lock, path.parent, timeout_s)
        except Timeout:
            print(f"waiting for another process that reads the same photos ({path})", file=sys.stderr, flush=True)
            timeout_s = -1
    try:
        yield
    finally:
        lock.release()


@contextmanager
def locked_now(path: Path) -> Iterator[bool]:
    """Let one process at a time into the block; give False, and do not wait, where another one is in it.

    Raises:
        FileNotFoundError: the folder is not there, or is removed at this moment.
        OSError: it cannot be written to.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        _lock_folder(lock, path.parent, 0)
    except Timeout:
        yield False
        return
    if not lock.is_locked:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path.parent))
    try:
        yield True
    finally:
        lock.release()


def _lock_folder(lock: BaseFileLock, folder: Path, timeout_s: float) -> None:
    """Acquire a lock that lies in a folder, but for one of a folder that was removed meanwhile."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:  # held open, so that no other folder gets its inode
        lock.acquire(timeout=timeout_s)
        if not os.path.samestat(os.fstat(descriptor), folder.stat()):
            lock.release()
    except (FileNotFoundError, FileExistsError):  # the latter of a folder that went while filelock looked for it
        lock.release()
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    """Make a folder that another process may remove at any moment."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        with suppress(FileNotFoundError):
            if not stat.S_ISDIR(folder.stat().st_mode):
                raise


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder and below; for its only writer."""
    for path in folder.rglob(".*.????????.tmp"):
        path.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write plain values as JSON atomically. NaN and infinity are refused: JSON has none."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
