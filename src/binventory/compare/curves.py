"""Learning curves: what metrics.csv says of each epoch."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from binventory.compare.run import Run
from binventory.data.text import printable
from binventory.errors import InputError
from binventory.files import UnreadableError, read_limited

MAX_BYTES = 64 * 2**20
MAX_POINTS = 300  # of a curve; of a longer one so many epochs are taken, the first and the last among them
MAX_METRICS = 50
NOT_CURVES = ("epoch", "step", "seconds")


@dataclass(frozen=True)
class Curves:
    """What a run logged by epoch.

    Attributes:
        run: position in the list of runs.
        epochs: E of them, ascending as they were written.
        values: by logged name (`val/loss`), E of them; None where there is no finite number.
        num_epochs: before any were left out.
        problem: why there are none though there is a metrics.csv.
    """

    run: int
    epochs: tuple[int, ...] = ()
    values: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    num_epochs: int = 0
    problem: str | None = None


def read_curves(runs: Sequence[Run]) -> list[Curves]:
    """Read metrics.csv of each run that has one."""
    found = []
    for place, run in enumerate(runs):
        path = run.path / "metrics.csv"
        if not path.exists():
            continue
        try:
            found.append(_read(place, path))
        except InputError as error:
            found.append(Curves(place, problem=str(error)))
    return found


def _read(place: int, path: Path) -> Curves:
    try:
        header, *rows = csv.reader(io.StringIO(read_limited(path, MAX_BYTES).decode(), newline=""))
        column = header.index("epoch")
        kept = _evenly(len(rows))
        epochs = tuple(int(rows[row][column]) for row in kept)
        names = {name: number for number, name in enumerate(header) if name not in NOT_CURVES}
        values = {
            printable(name, 60): tuple(_number(rows[row][number]) for row in kept)
            for name, number in list(names.items())[:MAX_METRICS]
        }
    except UnreadableError as error:
        raise InputError(f"{path.name}: {error}") from error
    except (ValueError, IndexError, csv.Error) as error:
        raise InputError(f"{path.name}: cannot be read ({printable(str(error), 100)})") from error
    return Curves(place, epochs, values, len(rows))


def _evenly(length: int) -> list[int]:
    """Return at most MAX_POINTS positions spread evenly from the first to the last."""
    if length <= MAX_POINTS:
        return list(range(length))
    return [round(point * (length - 1) / (MAX_POINTS - 1)) for point in range(MAX_POINTS)]


def _number(cell: str) -> float | None:
    value = float(cell) if cell else math.nan
    return value if math.isfinite(value) else None
