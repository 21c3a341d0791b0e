"""How much memory a run takes as its set of photos grows.

`python benchmarks/memory.py` makes tables of 10,000, 100,000 and 500,000 rows, by repeating a few small photos under
many names, and starts two runs on each; measured is the most that the system counted as held by each process
(ru_maxrss):

- prepare: `binventory prepare` with nothing known: list, read, split, write the index and the photo cache
- train: `train.py` on what was prepared, two batches each of training, validation and test

Results are appended to results/memory.csv, with what a set takes above the smallest. All sizes take some fifteen
minutes; `python benchmarks/memory.py 10000 100000` measures these two.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from recording import record

ROOT = Path(__file__).resolve().parent.parent
SIZES = (10_000, 100_000, 500_000)
LINKS = 10_000  # names of one photo: file systems allow some ten thousand


def make_table(folder: Path, num_rows: int) -> Path:
    """Make photos, give each many names, and list these in a table."""
    names = []
    for number in range(num_rows):
        original = folder / f"photo{number // LINKS}.jpg"
        if number % LINKS == 0:
            pixels = np.random.default_rng(number).integers(0, 256, (24, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(original)
        names.append(f"photos/{number // LINKS:03d}/{number:06d}.jpg")
        link = folder / names[-1]
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(original)
    quantities = [1 + number % 5 for number in range(num_rows)]
    parquet.write_table(pa.table({"path": names, "quantity": quantities}), folder / "table.parquet")
    return folder / "table.parquet"


def command_of(task: str, table: Path) -> list[str]:
    """Return the command line of a run."""
    places = [f"paths.cache_dir={table.parent}/cache", f"paths.output_dir={table.parent}/outputs"]
    overrides = ["data=table", f"data.source={table}", "data.image_size=32", *places]
    if task == "prepare":
        return [str(Path(sys.executable).with_name("binventory")), "prepare", *overrides]
    limits = [f"trainer.limit_{split}_batches=2" for split in ("train", "val", "test")]
    return [sys.executable, str(ROOT / "train.py"), *overrides, "model=tiny", "trainer.max_epochs=1", *limits]


def measure(task: str, table: Path) -> tuple[int, float]:
    """Return what a process of its own held at most, in bytes, and how long it took."""
    started = time.monotonic()
    with (table.parent / "said.txt").open("w+") as said:
        process = subprocess.Popen(command_of(task, table), stdout=said, stderr=subprocess.STDOUT)  # noqa: S603  our own
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            sys.exit(said.read())
    return 1024 * usage.ru_maxrss, time.monotonic() - started


def main(sizes: list[int]) -> None:
    """Measure and append."""
    rows: list[dict[str, Any]] = []
    smallest: dict[str, int] = {}
    for num_rows in sizes:
        with tempfile.TemporaryDirectory() as folder:
            table = make_table(Path(folder), num_rows)
            for task in ("prepare", "train"):
                peak, seconds = measure(task, table)
                above = peak - smallest.setdefault(task, peak)
                found = {
                    "num_rows": num_rows,
                    "run": task,
                    "peak_mb": peak // 10**6,
                    "above_smallest_mb": above // 10**6,
                }
                rows.append(found | {"seconds": round(seconds), "pyarrow": pa.__version__})
                print(
                    f"{num_rows:,} rows, {task}: {peak / 1e6:,.0f} MB, {above / 1e6:+,.0f} MB, {seconds:.0f} s",
                    flush=True,
                )
    record("memory", rows)


if __name__ == "__main__":
    main([int(size) for size in sys.argv[1:]] or list(SIZES))
