"""stdin, stdout and stderr of a process that must not end because nobody reads what it prints."""

from __future__ import annotations

import io
import os
import select
import sys
from contextlib import suppress
from typing import Any, TextIO


def keep_streams_open() -> None:
    """Let printing never fail, whatever becomes of the terminal, pipe or disk behind stdout and stderr.

    What cannot be written is dropped: a reader that left (`| head -1`), a full disk, a terminal that vanished, a stream
    that was closed at the start (`>&-`). What the encoding lacks is escaped. Streams that something else has put in
    the way, a test's or a notebook's, stay as they are.
    """
    _fill_closed()
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or (stream is getattr(sys, f"__{name}__") and isinstance(stream, io.TextIOWrapper)):
            setattr(sys, name, _unfailing(stream))
    if sys.stdin is None:
        sys.stdin = open(os.devnull, encoding="utf-8")  # noqa: PTH123, SIM115  for the life of the process


def _fill_closed() -> None:
    """Open what is closed of the descriptors 0 to 2: the next file would get its number, and what is printed on it."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free, so this one


def _unfailing(stream: io.TextIOWrapper | None) -> TextIO:
    if stream is None:
        return open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123  for the life of the process
    with suppress(OSError):
        stream.flush()
    raw = _UnfailingFile(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw),  # the first under `python -u`
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _UnfailingFile(io.FileIO):
    """A file that takes everything."""

    def write(self, data: Any, /) -> int:
        """Write what can be written; say that all was."""
        try:
            while (written := super().write(data)) is None:  # a pipe that does not block, and is full
                select.select([], [self], [])
        except (OSError, ValueError):
            return len(data)
        return written
