"""predictions.csv: one row per photo, the same columns wherever it is written."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from binventory.data.loader import Bins
from binventory.data.text import utf8
from binventory.files import write_text

NOT_FINITE = "the model's outputs are not finite numbers"


def answer(probabilities: Sequence[float]) -> tuple[Sequence[float] | None, str | None]:
    """Return (probabilities (C,), None), or (None, the reason) where they are not finite and so no answer."""
    return (probabilities, None) if all(map(math.isfinite, probabilities)) else (None, NOT_FINITE)


def none_answered(errors: Sequence[str | None]) -> str:
    """Return that no photo has an answer and the first reason, for one line; `errors` has one entry per photo."""
    verb = "predicted" if errors[0] == NOT_FINITE else "read"
    return f"none of {len(errors)} photos could be {verb}, first: {errors[0]}"


def failures(errors: Iterable[str | None]) -> str:
    """Return how many photos have no answer and why, for one line; empty: all have one."""
    found = [error for error in errors if error is not None]
    not_finite = found.count(NOT_FINITE)
    kinds = ((len(found) - not_finite, "could not be read"), (not_finite, "without finite outputs of the model"))
    return ", ".join(f"{number} {kind}" for number, kind in kinds if number)


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


def agreement(rows: Sequence[Mapping[str, Any]], counts: Sequence[int]) -> str | None:
    """Return how many recorded quantities were predicted, of those that the model can name; None without any.

    Args:
        rows: of predictions.csv; those with an error are left out.
        counts: all that the model can name.
    """
    labelled = [row for row in rows if row["error"] is None and row["quantity"] is not None]
    named = [row for row in labelled if row["quantity"] in counts]
    if not labelled:
        return None
    said = f"{sum(row['predicted'] == row['quantity'] for row in named)} of {len(named)} recorded quantities agree"
    others = len(labelled) - len(named)
    return (
        f"{said}; {others} more {'is' if others == 1 else 'are'} outside the model's counts {counts}"
        if others
        else said
    )


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
        probabilities: (C,) by position in the split; a bin without any, or without finite ones, gets a row with an
            error.
        counts: the quantities that are classes.
    """
    rows = []
    for place, (bin_id, path, target) in enumerate(zip(bins.ids, bins.paths, bins.targets, strict=True)):
        found, error = answer(probabilities[place]) if place in probabilities else (None, "not evaluated")
        rows.append(prediction_row(bin_id, path, counts[target], found, counts, error))
    write_csv(run_dir / "predictions.csv", rows, counts)
    return rows
