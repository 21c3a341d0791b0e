"""Which predictions to look at first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]  # of predictions.csv, without an error


def certainty(row: Row, counts: Sequence[int]) -> float:
    """Return the probability of the likeliest count."""
    return max(float(row[f"p_{count}"]) for count in counts)


def least_certain(rows: Sequence[Row], counts: Sequence[int], number: int) -> list[int]:
    """Return the positions of at most so many rows, the least certain first."""
    return sorted(range(len(rows)), key=lambda place: certainty(rows[place], counts))[:number]


def most_wrong(rows: Sequence[Row], counts: Sequence[int], number: int) -> list[int]:
    """Return the positions of at most so many wrong rows, those that gave the recorded quantity least first."""
    known = set(counts)
    wrong = [place for place, row in enumerate(rows) if row["quantity"] in known - {row["predicted"]}]
    return sorted(wrong, key=lambda place: float(rows[place][f"p_{rows[place]['quantity']}"]))[:number]
