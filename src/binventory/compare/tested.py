"""What runs predicted for the photos of their test sets, and which runs were tested on the same photos."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from binventory.compare.run import Run
from binventory.data.reading import MAX_LIST_BYTES
from binventory.data.text import printable
from binventory.errors import InputError
from binventory.files import UnreadableError, read_limited

COUNT_COLUMN = re.compile(r"p_\d{1,18}", re.ASCII)


@dataclass(frozen=True)
class Predictions:
    """The labelled photos of a predictions.csv that were predicted and that the model can name, sorted by id.

    Attributes:
        ids: N of them, no two alike.
        quantities: (N,) int64, recorded.
        predicted: (N,) int64, the likeliest count.
        num_unnamed: labelled photos left out: their quantity is none of the model's counts, so it cannot agree.
    """

    ids: tuple[str, ...]
    quantities: NDArray[np.int64]
    predicted: NDArray[np.int64]
    num_unnamed: int = 0

    def digest(self) -> str:
        """Return a hash over ids and quantities: the same for the same test set."""
        rows = zip(self.ids, self.quantities.tolist(), strict=True)
        return hashlib.sha256("\n".join(f"{quantity} {name!r}" for name, quantity in rows).encode()).hexdigest()


@dataclass(frozen=True)
class TestSet:
    """Runs that were tested on the same photos.

    Attributes:
        num_images: of the test set.
        fingerprint: of the data that it was split from; None where the runs don't say.
        runs: positions in the list of runs.
    """

    __test__ = False  # for pytest

    num_images: int
    fingerprint: str | None
    runs: tuple[int, ...]


@dataclass(frozen=True)
class Tested:
    """The test sets of some runs and what was predicted for them.

    Attributes:
        sets: that of most runs first.
        predictions: by position of the run; of every run in a set.
        problems: by position, why a finished run that was tested is in no test set.
    """

    sets: tuple[TestSet, ...]
    predictions: Mapping[int, Predictions]
    problems: Mapping[int, str]


def read_tested(runs: Sequence[Run]) -> Tested:
    """Read what the finished runs predicted. Test sets are the same by ids, quantities and the data's fingerprint."""
    problems: dict[int, str] = {}
    predictions: dict[int, Predictions] = {}
    members: dict[tuple[str, str | None], list[int]] = {}
    for place, run in enumerate(runs):
        path = run.path / "predictions.csv"
        if not run.is_done or not (path.exists() or run.num_tested):
            continue
        try:
            read = read_predictions(path)
        except InputError as error:
            problems[place] = str(error)
            continue
        if read.num_unnamed and not read.ids:
            problems[place] = (
                f"predictions.csv: no quantity of {read.num_unnamed} photos is one that the model can name"
            )
        if read.ids:
            predictions[place] = read
            members.setdefault((read.digest(), run.fingerprint), []).append(place)
    by_size = sorted(members.items(), key=lambda item: -len(item[1]))
    sets = tuple(TestSet(len(predictions[places[0]].ids), key[1], tuple(places)) for key, places in by_size)
    return Tested(sets, predictions, problems)


def read_predictions(path: Path) -> Predictions:
    """Read predictions.csv. Rows without a quantity, with an error, or with a quantity without a column are left out.

    Raises:
        InputError: missing, damaged, or an id twice; names the file.
    """
    try:
        rows = csv.reader(io.StringIO(read_limited(path, MAX_LIST_BYTES).decode(), newline=""))
        header = next(rows, [])
        where = [header.index(name) for name in ("id", "quantity", "predicted", "error")]
        cells = list(map(itemgetter(*where), rows))
        labelled = [(name, int(quantity), int(told)) for name, quantity, told, error in cells if quantity and not error]
        counts = {int(name[2:]) for name in header if COUNT_COLUMN.fullmatch(name)}
        kept = sorted(row for row in labelled if not counts or row[1] in counts)
        table = np.array([row[1:] for row in kept], dtype=np.int64).reshape(-1, 2)
    except UnreadableError as error:
        raise InputError(f"{path.name}: {error}" if path.exists() else f"there is no {path.name}") from error
    except (ValueError, IndexError, OverflowError, csv.Error) as error:
        raise InputError(f"{path.name}: cannot be read ({printable(str(error), 100)})") from error
    ids = tuple(row[0] for row in kept)
    if len(set(ids)) != len(ids):
        raise InputError(f"{path.name}: cannot be read (an id is there twice)")
    return Predictions(ids, table[:, 0], table[:, 1], len(labelled) - len(kept))
