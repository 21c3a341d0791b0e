"""Files that anybody may have put there, read no further than they may reach."""

from __future__ import annotations

import os
import stat
from pathlib import Path

MAX_PHOTO_BYTES = 64 * 2**20
MAX_LIST_BYTES = 512 * 2**20  # of a file list or table; the public bucket's half a million bins take 20 MB


class UnreadableError(Exception):
    """A file that cannot be read. Its message goes after what the file is, as in "photo is not a regular file"."""


def stamp_of(status: os.stat_result) -> tuple[int, int]:
    """Return size in bytes and time of the last change, in 63 bits: a file may claim a year that has no nanoseconds."""
    return status.st_size, status.st_mtime_ns % 2**63


def read_head(path: Path, num_bytes: int) -> bytes:
    """Return the first bytes of a regular file; none where there is no such file or it cannot be read."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError):
        return b""
    try:
        return os.read(descriptor, num_bytes) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def read_limited(path: str | Path, max_bytes: int) -> bytes:
    """Read a regular file of at most `max_bytes`.

    Raises:
        UnreadableError: it is missing, closed to us, larger (then nothing is read) or no regular file: a pipe would
            block for ever.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableError("is not a regular file")
            if status.st_size > max_bytes:
                size = f"{status.st_size / 2**20:,.0f} MiB, at most {max_bytes // 2**20} MiB are read"
                raise UnreadableError(f"too large: {size}")
            with open(descriptor, "rb", closefd=False) as file:
                return file.read(min(max_bytes, status.st_size + 1))  # as much memory is taken as is asked for
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UnreadableError(f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a path with a NUL
        raise UnreadableError(f"cannot be read: {error}") from error
