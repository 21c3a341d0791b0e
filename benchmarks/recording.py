"""Where the figures of a benchmark go: a line more in a CSV of results/, with date, hardware, versions and commit."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from binventory.files import write_text
from binventory.tracking.provenance import provenance

RESULTS_VARIABLE = "BINVENTORY_BENCHMARK_RESULTS"  # another folder, on a machine whose checkout is thrown away
RESULTS = Path(os.environ.get(RESULTS_VARIABLE) or Path(__file__).resolve().parent / "results")
FIRST_COLUMN = "date"


def record(name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Append rows to `results/<name>.csv` and print them.

    Lines that are there stay as they are. A column that is new becomes the last one, empty in earlier lines; one that a
    row does not have stays empty in it.

    Raises:
        ValueError: the file that is there is not one of results.
    """
    append(RESULTS / f"{name}.csv", [{**about(), **row} for row in rows])
    for row in rows:
        print("  ".join(f"{column} {value}" for column, value in row.items()))


def append(path: Path, added: Sequence[Mapping[str, Any]]) -> None:
    """Append rows that hold all their columns; as `record`."""
    columns, lines = _read(path)
    columns = list(dict.fromkeys([*columns, *(column for row in added for column in row)]))
    text = StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows([*lines, *added])
    write_text(path, text.getvalue())


def about() -> dict[str, Any]:
    """Return the columns that every line has: date, hardware, versions, commit."""
    facts = provenance((), {})
    hardware, packages, git = facts["hardware"], facts["packages"], facts["git"]
    return {
        FIRST_COLUMN: f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{hardware['processor']}, {hardware['cpu_cores']} cores",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
        "load_average": round(os.getloadavg()[0], 1),  # far above what the benchmark itself makes: others were busy
        "python": facts["python"],
        **{package: packages[package] for package in ("torch", "torchvision", "pytorch-lightning", "pillow")},
        "commit": "" if git is None else git["commit"][:10] + ("+" if git["dirty"] else ""),  # +: with changes
    }


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and the lines of a file of results; none where there is no file."""
    if not path.exists():
        return [], []
    with path.open(newline="") as file:
        reader = csv.DictReader(file, strict=True)
        columns, lines = list(reader.fieldnames or []), list(reader)
    is_whole = all(None not in line and None not in line.values() for line in lines)
    if columns[:1] != [FIRST_COLUMN] or len(set(columns)) < len(columns) or not is_whole:
        raise ValueError(f"{path}: not a file of results: its header or a line of it is wrong; mend it or move it away")
    return columns, lines
