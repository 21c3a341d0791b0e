"""What is said on stderr while many files are worked through."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import TypeVar

T = TypeVar("T")

PATIENCE_S = 3.0  # shorter work says nothing
LINE_EVERY_S = 10.0


def track(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """Pass items on and show how many are done, the rate and the time left.

    A bar on a terminal, else a plain line every ten seconds; nothing at all when the work takes under three seconds.
    """
    start = time.monotonic()
    with ExitStack() as stack:
        display: _Bar | _Lines | None = None
        for done, item in enumerate(items, start=1):
            yield item
            elapsed_s = time.monotonic() - start
            if display is None and elapsed_s > PATIENCE_S:
                display = _Bar(stack, total, label) if sys.stderr.isatty() else _Lines(total, label)
            if display is not None:
                display.show(done, elapsed_s)


class _Lines:
    def __init__(self, total: int, label: str) -> None:
        self.total = total
        self.label = label
        self.next_s = 0.0

    def show(self, done: int, elapsed_s: float) -> None:
        if elapsed_s < self.next_s:
            return
        self.next_s = elapsed_s + LINE_EVERY_S
        rate = done / elapsed_s
        left_s = round((self.total - done) / rate)
        line = f"{self.label}: {done:,} of {self.total:,}, {rate:,.0f}/s, {left_s // 60}:{left_s % 60:02d} left"
        print(line, file=sys.stderr, flush=True)


class _Bar:
    def __init__(self, stack: ExitStack, total: int, label: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]:,.0f}/s"), TimeRemainingColumn())
        self.bar = stack.enter_context(Progress(TextColumn(label), *columns, console=Console(stderr=True)))
        self.task = self.bar.add_task(label, total=total, rate=0.0)

    def show(self, done: int, elapsed_s: float) -> None:
        self.bar.update(self.task, completed=done, rate=done / elapsed_s)
