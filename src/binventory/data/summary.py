"""What became of every bin of a source, for people to read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from binventory.data.columns import rows_of
from binventory.data.splits import SPLITS

NUM_EXAMPLES = 3
NUM_REASONS = 10


@dataclass(frozen=True)
class Summary:
    """Numbers of bins; each is in exactly one of `splits`, `bad`, `unlabelled`, `other_quantities` and `unlisted`.

    Attributes:
        source: `data.source`.
        total: bins of which any file is here.
        absent: bins that were asked for and of which nothing is here; not part of `total`.
        splits: train, val, test -> quantity -> bins.
        bad: reason -> ids of bins that cannot be used.
        unlabelled: good photos without a quantity.
        other_quantities: quantity outside `data.counts` -> bins.
        unlisted: bins that the list split by `data.split=report` does not name.
        noted: id -> what is odd about a bin that is used all the same.
        warnings: what the split could not keep.
    """

    source: str
    total: int
    absent: int
    splits: Mapping[str, Mapping[int, int]]
    bad: Mapping[str, list[str]]
    unlabelled: int
    other_quantities: Mapping[int, int]
    unlisted: int
    noted: Mapping[str, str]
    warnings: tuple[str, ...] = ()

    @property
    def num_bad(self) -> int:
        """Number of bins that cannot be used."""
        return sum(map(len, self.bad.values()))

    def lines(self) -> list[str]:
        """Return the summary as lines of text."""
        absent = f", {self.absent:,} listed ones are absent" if self.absent else ""
        lines = [f"{self.source}: {self.total:,} bins{absent}", *self._split_lines()]
        for number, what in (
            (self.num_bad, "bad"),
            (self.unlabelled, "unlabelled"),
            (
                sum(self.other_quantities.values()),
                f"of a quantity outside data.counts ({_pairs(self.other_quantities)})",
            ),
            (self.unlisted, "not in the split list"),
        ):
            if number:
                lines.append(f"left out: {number:,} {what}")
        return [*lines, *self.bad_lines(), *self._noted_lines(), *(f"warning: {text}" for text in self.warnings)]

    def bad_lines(self) -> list[str]:
        """Return one line for each reason why bins cannot be used, the most frequent first, at most ten."""
        return [f"bad: {line}" for line in reason_lines(self.bad)]

    def _split_lines(self) -> list[str]:
        counts = sorted({count for sizes in self.splits.values() for count in sizes})
        header = f"{'count':<6}" + "".join(f"{count:>8}" for count in [*counts, "all"])
        lines = [header] if self.splits else []
        for split in SPLITS:
            if sizes := self.splits.get(split):
                numbers = [*(sizes.get(count, 0) for count in counts), sum(sizes.values())]
                lines.append(f"{split:<6}" + "".join(f"{number:>8,}" for number in numbers))
        return lines

    def _noted_lines(self) -> list[str]:
        if not self.noted:
            return []
        examples = "; ".join(f"{bin_id} ({note})" for bin_id, note in list(self.noted.items())[:NUM_EXAMPLES])
        return [f"noted: {len(self.noted):,} used all the same, e.g. {examples}"]


def summarize(
    index: pa.Table, *, source: str, absent: int, counts: list[int], warnings: tuple[str, ...] = ()
) -> Summary:
    """Count the bins of an index (`INDEX_SCHEMA`), split or not."""
    columns = index.select(["id", "quantity", "split", "problem", "note"])
    splits: dict[str, Counter[int]] = defaultdict(Counter)
    bad: dict[str, list[str]] = defaultdict(list)
    others: Counter[int] = Counter()
    unlabelled, unlisted = 0, 0
    noted = {}
    for bin_id, quantity, split, problem, note in rows_of(columns):
        if problem is not None:
            bad[reason_of(problem)].append(bin_id)
            continue
        if quantity is None:
            unlabelled += 1
        elif quantity not in counts:
            others[quantity] += 1
        elif split is None:
            unlisted += 1
        else:
            splits[split][quantity] += 1
        if note is not None:
            noted[bin_id] = note
    return Summary(
        source=source,
        total=index.num_rows,
        absent=absent,
        splits={name: dict(sorted(splits[name].items())) for name in SPLITS if name in splits},
        bad=dict(bad),
        unlabelled=unlabelled,
        other_quantities=dict(sorted(others.items())),
        unlisted=unlisted,
        noted=noted,
        warnings=warnings,
    )


def reason_lines(ids_of: Mapping[str, list[str]]) -> list[str]:
    """Return one line for each reason: how many ids, the reason, some ids; the most frequent first, at most ten."""
    reasons = sorted(ids_of.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    lines = [f"{len(ids):,} x {reason}, e.g. {', '.join(ids[:NUM_EXAMPLES])}" for reason, ids in reasons[:NUM_REASONS]]
    if rest := reasons[NUM_REASONS:]:
        lines.append(f"{sum(len(ids) for _, ids in rest):,} for {len(rest):,} other reasons")
    return lines


def reason_of(problem: str) -> str:
    """Return the part of a "reason: detail" that bins share; in "s3://BUCKET/KEY: reason" the place comes first."""
    head, _, rest = problem.partition(": ")
    return reason_of(rest) if head.startswith("s3://") and rest else head


def _pairs(numbers: Mapping[Any, int]) -> str:
    return ", ".join(f"{key}: {number:,}" for key, number in numbers.items())
