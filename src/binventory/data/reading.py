"""How large files with photos and lists of them may be, and how a change of one is noticed."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from binventory.files import open_limited

MAX_PHOTO_BYTES = 64 * 2**20
MAX_LIST_BYTES = 512 * 2**20  # of a file list or table; the public bucket's half a million bins take 20 MB


def stamp_of(status: os.stat_result) -> tuple[int, int]:
    """Return size in bytes and time of the last change, in 63 bits: a file may claim a year that has no nanoseconds."""
    return status.st_size, status.st_mtime_ns % 2**63


def read_head(path: Path, num_bytes: int) -> bytes:
    """Return the first bytes of a regular file; none where there is no such file or it cannot be read."""
    try:
        with open_limited(path, sys.maxsize) as file:
            return file.read(num_bytes)
    except (OSError, ValueError):
        return b""
