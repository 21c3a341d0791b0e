"""Files: written whole or not at all and through no link, read as regular files and no further than a bound."""

from __future__ import annotations

import errno
import json
import os
import secrets
import stat
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from binventory.errors import InputError

if TYPE_CHECKING:
    from filelock import BaseFileLock

MAX_FILE_BYTES = 64 * 2**20  # of a JSON, YAML or text file of ours; the largest, metrics.csv of 10,000 epochs, has 3 MB
MAX_WEIGHTS_BYTES = 2**36

# W&B's client puts links to its newest files there, and puts others in their place without following them.
CLIENT_LOG = "wandb/*run-*/logs/debug-core.log"  # a link to the log of the client's process
LINK_FOLDER = "wandb"
# Checkpoints are replaced, never changed: another name for one keeps its content.
HARD_LINK_FOLDER = "checkpoints"
# Hidden folders that something of ours is written to. Others (.git, .venv) are there where a run folder is a project.
HIDDEN_FOLDERS = (".hydra", ".fetched")


class UnreadableError(OSError):
    """A file that cannot be read. Its message goes after what the file is, as in "photo is not a regular file"."""


class MissingError(UnreadableError, FileNotFoundError):
    """There is no such file."""


@contextmanager
def open_limited(path: str | Path, max_bytes: int) -> Iterator[BufferedReader]:
    """Open a regular file of at most `max_bytes` to read it; judged by what was opened, not by its name.

    Raises:
        UnreadableError: it is larger, or no regular file: a pipe would block for ever.
        OSError: it is missing or closed to us.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnreadableError("is not a regular file")
        if status.st_size > max_bytes:
            size = f"{status.st_size / 2**20:,.0f} MiB, at most {max_bytes // 2**20} MiB are read"
            raise UnreadableError(f"too large: {size}")
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    finally:
        os.close(descriptor)


def read_limited(path: str | Path, max_bytes: int = MAX_FILE_BYTES) -> bytes:
    """Read a regular file of at most `max_bytes`.

    Raises:
        UnreadableError: it is missing, closed to us, larger (then nothing is read) or no regular file: a pipe would
            block for ever.
    """
    try:
        with open_limited(path, max_bytes) as file:
            return file.read(min(max_bytes, os.fstat(file.fileno()).st_size + 1))  # as much memory as is needed
    except UnreadableError:
        raise
    except OSError as error:
        kind = MissingError if isinstance(error, FileNotFoundError) else UnreadableError
        raise kind(f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a path with a NUL
        raise UnreadableError(f"cannot be read: {error}") from error


def open_own(path: Path, flags: int) -> int:
    """Open a file of a run, sweep or cache folder to write in place, and return its descriptor; never through a link.

    Raises:
        OSError: it is a link, another name of a file elsewhere, or no regular file.
    """
    descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o644)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(descriptor)
        raise OSError(errno.EMLINK, "not a regular file with one name", str(path))
    return descriptor


def refuse_links(folder: Path) -> None:
    """Refuse a folder in which something that is written would end up elsewhere: it may have come from anybody.

    Raises:
        InputError: in it or below is a link, a file with another name outside, a pipe or a device; names it.
    """
    names: Counter[tuple[int, int]] = Counter()
    linked: dict[tuple[int, int], tuple[str, int]] = {}
    waiting = [folder]
    while waiting:
        for path, status in _entries(waiting.pop()):
            if stat.S_ISDIR(status.st_mode):
                if not path.name.startswith(".") or path.name in HIDDEN_FOLDERS:
                    waiting.append(path)
            elif stat.S_ISLNK(status.st_mode):
                is_of_client = path.match(CLIENT_LOG)  # of an attempt before: W&B's client writes it to a new folder
                if not is_of_client and (path.parent.name != LINK_FOLDER or not is_below(path, path.parent)):
                    raise _refusal(path, "a symbolic link")
            elif not stat.S_ISREG(status.st_mode):
                raise _refusal(path, "no regular file")
            elif status.st_nlink > 1 and path.parent.name != HARD_LINK_FOLDER:
                names[status.st_dev, status.st_ino] += 1
                linked[status.st_dev, status.st_ino] = str(path), status.st_nlink
    for key, (name, num_names) in linked.items():
        if num_names > names[key]:
            raise _refusal(Path(name), "a hard link to a file elsewhere")


def refuse_linked(path: Path, top: Path) -> None:
    """Refuse a path that a link below `top` leads elsewhere.

    Raises:
        InputError: names the link.
    """
    for part in (path, *path.parents):
        if part == top:
            return
        if part.is_symlink():
            raise _refusal(part, "a symbolic link")


def _entries(folder: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield what is in a folder; what vanishes meanwhile, another process's temporary file say, is left out."""
    try:
        with os.scandir(folder) as found:
            entries = list(found)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{folder}: cannot be read ({error.strerror}); mend that or name another folder") from error
    for entry in entries:
        try:
            yield Path(entry.path), entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue


def _refusal(path: Path, kind: str) -> InputError:
    return InputError(f"{path}: is {kind}, through which nothing is written; remove it, or put a copy in its place")


def is_below(path: Path, folder: Path) -> bool:
    """Whether a path, links followed, is inside of a folder and not the folder itself."""
    try:
        found, top = path.resolve(), folder.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a name that is too long or holds a NUL
        return False
    return top in found.parents


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
