"""The bins of a listing as columns: half a million of them as Python objects take a gigabyte."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from binventory.data.columns import BATCH, rows_of
from binventory.data.sources.base import BinFiles

# Names of files are bytes, and so may be those that stand in other texts.
SCHEMA = pa.schema(
    [
        *((name, pa.binary()) for name in ("id", "photo", "metadata", "group", "problem")),
        ("quantity", pa.int64()),
        ("needs_metadata", pa.bool_()),
    ]
)


class PackedBins(Sequence[BinFiles]):
    """Bins, each of which is made when it is asked for."""

    def __init__(self, bins: Iterable[BinFiles]) -> None:
        left = iter(bins)
        parts = []
        while some := list(islice(left, BATCH)):
            columns = [
                pa.array([_packed(getattr(files, field.name)) for files in some], field.type) for field in SCHEMA
            ]
            parts.append(pa.table(columns, schema=SCHEMA))
        self._table = pa.concat_tables(parts) if parts else SCHEMA.empty_table()

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, place: int) -> BinFiles: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[BinFiles]: ...
    def __getitem__(self, place: int | slice) -> BinFiles | Sequence[BinFiles]:
        """Return one bin, or those of a slice as a list."""
        if isinstance(place, slice):
            first, last, step = place.indices(len(self))
            return list(_unpacked(self._table.slice(first, max(0, last - first))))[::step]
        return next(_unpacked(self._table.slice(range(len(self))[place], 1)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PackedBins) and bool(self._table.equals(other._table))

    __hash__ = None  # type: ignore[assignment]

    def __iter__(self) -> Iterator[BinFiles]:
        return _unpacked(self._table)


def _packed(value: Any) -> Any:
    return os.fsencode(value) if isinstance(value, (str, Path)) else value


def _unpacked(table: pa.Table) -> Iterator[BinFiles]:
    for *texts, quantity, needs_metadata in rows_of(table):
        bin_id, photo, metadata, group, problem = (None if text is None else os.fsdecode(text) for text in texts)
        yield BinFiles(
            bin_id or "",
            None if photo is None else Path(photo),
            None if metadata is None else Path(metadata),
            quantity,
            group,
            needs_metadata,
            problem,
        )
