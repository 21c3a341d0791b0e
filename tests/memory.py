"""How much memory something takes at most, seen from outside: what C libraries allocate counts too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_growth_bytes(work: Callable[[], T]) -> tuple[T, int]:
    """Return what `work` returns, and how far this process grew beyond its size before."""
    CLEAR.write_text("5")  # the peak is from now on
    before = _peak_bytes()
    result = work()
    return result, _peak_bytes() - before


def _peak_bytes() -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024
