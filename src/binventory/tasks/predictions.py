"""predictions.csv: one row per photo, the same columns wherever it is written."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from binventory.data.loader import Bins
from binventory.data.text import utf8
from binventory.files import write_text


def columns(counts: Sequence[int]) -> list[str]:
    """Return the columns of predictions.csv."""
    return ["id", "path", "quantity", "predicted", "expected", *(f"p_{count}" for count in counts), "error"]


def prediction_row(
    bin_id: str,
    path: str,
    quantity: int | None,
    probabilities: Sequence[float] | None,
    counts: Sequence[int],
    error: str | None = None,
) -> dict[str, Any]:
    """Return one row; without probabilities it holds only what is known and the error.

    Args:
        bin_id: the bin's id.
        path: its photo.
        quantity: its recorded quantity; None when unknown.
        probabilities: (C,) over `counts`.
        counts: what the probabilities stand for.
        error: why there are none.
    """
    said = None if error is None else utf8(error)
    row: dict[str, Any] = {"id": utf8(bin_id), "path": utf8(path), "quantity": quantity, "error": said}
    if probabilities is None:
        return {**row, "predicted": None, "expected": None, **{f"p_{count}": None for count in counts}}
    likeliest = max(range(len(counts)), key=lambda place: probabilities[place])
    expected = sum(count * share for count, share in zip(counts, probabilities, strict=True))
    shares = {f"p_{count}": share for count, share in zip(counts, probabilities, strict=True)}
    return {**row, "predicted": counts[likeliest], "expected": expected, **shares}


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]], counts: Sequence[int]) -> None:
    """Write rows as CSV, atomically; floats in their shortest exact form."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(counts), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def write_predictions(
    run_dir: Path, bins: Bins, probabilities: Mapping[int, Sequence[float]], counts: list[int]
) -> list[dict[str, Any]]:
    """Write the test set's predictions.csv and return its rows.

    Args:
        run_dir: the run folder.
        bins: the test split.
        probabilities: (C,) by position in the split; a bin without any gets a row with an error.
        counts: the quantities that are classes.
    """
    rows = []
    for place, (bin_id, path, target) in enumerate(zip(bins.ids, bins.paths, bins.targets, strict=True)):
        found = probabilities.get(place)
        error = None if found is not None else "not evaluated"
        rows.append(prediction_row(bin_id, path, counts[target], found, counts, error))
    write_csv(run_dir / "predictions.csv", rows, counts)
    return rows
