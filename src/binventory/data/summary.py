"""What became of every bin of a source, for people to read."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from binventory.data.columns import rows_of
from binventory.data.splits import SPLITS
from binventory.data.text import printable

NUM_EXAMPLES = 3
NUM_REASONS = 10
READ_SUFFIXES = ".jpg, .png, .webp, .bmp or .tif"


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
        not_taken: names of files that look like photos and are not read; no bins.
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
    not_taken: tuple[str, ...] = ()
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
        lines += [f"left out: {line}" for line in not_taken_lines(self.not_taken)]
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
        return [f"noted: {len(self.noted):,} used all the same, e.g. {examples_of(self.noted.items())}"]


def summarize(
    index: pa.Table,
    *,
    source: str,
    absent: int,
    counts: list[int],
    not_taken: tuple[str, ...] = (),
    warnings: tuple[str, ...] = (),
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
        not_taken=not_taken,
        warnings=warnings,
    )


def not_taken_lines(names: Sequence[str]) -> list[str]:
    """Return a line that counts and names files that look like photos and are not read; none where there are none."""
    if not names:
        return []
    kinds = Counter(PurePosixPath(name).suffix.lower() or "without an ending" for name in names)
    most = sorted(kinds.items(), key=lambda entry: (-entry[1], entry[0]))[:NUM_REASONS]
    shown = ", ".join(f"{number:,} {printable(kind, 20)}" for kind, number in most)
    examples = ", ".join(printable(name, 100) for name in sorted(names)[:NUM_EXAMPLES])
    what = "file that looks like a photo is" if len(names) == 1 else "files that look like photos are"
    return [f"{len(names):,} {what} not read ({shown}), e.g. {examples}; save as or name {READ_SUFFIXES}"]


def examples_of(problems: Iterable[tuple[str, str]]) -> str:
    """Return the first reasons with some ids each, as "1, 2, 3, … (reason: detail of the first); 4 (reason)"."""
    ids: dict[str, list[str]] = defaultdict(list)
    first: dict[str, str] = {}
    for bin_id, problem in problems:
        reason = reason_of(problem)
        ids[reason].append(bin_id)
        first.setdefault(reason, problem)
    parts = []
    for reason in list(ids)[:NUM_EXAMPLES]:
        more = ", …" if len(ids[reason]) > NUM_EXAMPLES else ""
        parts.append(f"{', '.join(ids[reason][:NUM_EXAMPLES])}{more} ({first[reason]})")
    return "; ".join(parts)


def reason_lines(ids_of: Mapping[str, list[str]]) -> list[str]:
    """Return one line for each reason: how many ids, the reason, some ids; the most frequent first, at most ten."""
    reasons = sorted(ids_of.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    lines = [f"{len(ids):,} x {reason}, e.g. {', '.join(ids[:NUM_EXAMPLES])}" for reason, ids in reasons[:NUM_REASONS]]
    if rest := reasons[NUM_REASONS:]:
        lines.append(f"{sum(len(ids) for _, ids in rest):,} for {len(rest):,} other reasons")
    return lines


def reason_of(problem: str) -> str:
    """Return the part of a "reason: detail" that bins share; in "s3://BUCKET/KEY: reason" the place comes first.

    Of several such, for a bin's photo and metadata, it is the first one's.
    """
    head, _, rest = problem.partition(": ")
    return reason_of(rest).partition("; s3://")[0] if head.startswith("s3://") and rest else head


def _pairs(numbers: Mapping[Any, int]) -> str:
    return ", ".join(f"{key}: {number:,}" for key, number in numbers.items())
