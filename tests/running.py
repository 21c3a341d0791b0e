"""Start tasks as a user does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from binventory.launch.entry import main

ROOT = Path(__file__).resolve().parent.parent

# Small enough for a second of training, large enough for every count in every split.
TINY = [
    "data.reader.num_bins=240",
    "data.reader.photo_size=48",
    "data.image_size=32",
    "data.batch_size=32",
    "data.num_workers=0",
    "trainer.max_epochs=2",
]

Run = Callable[..., Path]


def run_here(folder: Path, task: str, *overrides: str) -> Path:
    """Run a task in this process, as its command line would in `folder`, and return its run folder.

    A process that imports the whole stack costs seconds, so only tests of the process itself start one.
    """
    before = Path.cwd()
    known = set(folder.glob(f"outputs/{task}/*"))
    os.chdir(folder)
    try:
        main(task, list(overrides))
    finally:
        os.chdir(before)
    made = set(folder.glob(f"outputs/{task}/*")) - known
    assert len(made) == 1, made
    return made.pop()


def latest(folder: Path, task: str) -> Path:
    """Return the run folder that was written to last; names tell only seconds."""
    return max(folder.glob(f"outputs/{task}/*"), key=lambda run: run.stat().st_mtime_ns)
