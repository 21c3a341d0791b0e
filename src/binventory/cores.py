"""How much of the machine this process may use."""

from __future__ import annotations

import os


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux alone has it
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def num_threads(asked: int | None) -> int:
    """Return how many threads read photos: as many as asked for, at least one; None: one per core."""
    return usable_cores() if asked is None else max(1, asked)
