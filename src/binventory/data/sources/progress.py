"""What a download says on stderr: a bar on a terminal, else a plain line every few seconds, and a summary."""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.progress import Progress

T = TypeVar("T")

LINE_EVERY_S = 5.0
NUM_NAMED = 3  # reasons, and files of each, that the summary spells out; every failure stands with its bin in the index


def counted(items: Iterator[T], title: str) -> Iterator[T]:
    """Pass items on and say every few seconds how many there were: a bucket of a million keys is listed for minutes."""
    last_line = time.monotonic()
    for number, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last_line >= LINE_EVERY_S:
            last_line = time.monotonic()
            print(f"{title}: {number:,} objects listed so far", file=sys.stderr, flush=True)


class DownloadProgress:
    """Progress of `total` files."""

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._started = self._last_line = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> DownloadProgress:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
            title = TextColumn("{task.description}", markup=False)
            self._bar = Progress(title, *columns, console=Console(stderr=True), transient=True)
            self._bar.add_task(self._title, total=self._total, rate="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close_bar()

    def show(self, num_done: int, size_bytes: int) -> None:
        """Say how far it is; on a plain stream at most once in five seconds."""
        now = time.monotonic()
        elapsed_s = max(now - self._started, 1e-9)
        rate = f"{num_done / elapsed_s:,.0f} files/s {size_bytes / elapsed_s / 1e6:.1f} MB/s"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=num_done, rate=rate)
        elif now - self._last_line >= LINE_EVERY_S:
            self._last_line = now
            left = f"{_duration((self._total - num_done) * elapsed_s / num_done)} left" if num_done else "no file yet"
            self._print(f"{num_done:,} of {self._total:,} files, {rate}, {left}")

    def finish(
        self, downloaded: int, present: int, num_missing: int, failed: Mapping[Path, str], size_bytes: int
    ) -> None:
        """Say what became of all files, in one line; a few reasons why some failed in a line each."""
        self._close_bar()
        names: dict[str, list[str]] = defaultdict(list)
        for target, reason in failed.items():
            names[reason].append(target.name)
        for reason, some in sorted(names.items(), key=lambda entry: -len(entry[1]))[:NUM_NAMED]:
            self._print(f"failed: {', '.join(some[:NUM_NAMED])}{_and_more(len(some))}: {reason}")
        if len(names) > NUM_NAMED:
            self._print(f"failed: {len(names) - NUM_NAMED:,} more reasons")
        self._print(
            f"downloaded {downloaded:,}, already there {present:,}, missing {num_missing:,}, failed {len(failed):,}; "
            f"{size_bytes / 1e6:,.1f} MB in {_duration(time.monotonic() - self._started)}"
        )

    def _close_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _print(self, text: str) -> None:
        print(f"{self._title}: {text}", file=sys.stderr, flush=True)


def _and_more(number: int) -> str:
    return f" and {number - NUM_NAMED:,} more" if number > NUM_NAMED else ""


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
