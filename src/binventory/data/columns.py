"""Columns of large tables as Python values, of which only those at hand are in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import pyarrow as pa

T = TypeVar("T")

BATCH = 2048  # rows that are Python objects at a time: as such a row takes ten times the memory


def rows_of(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Give the rows of a table as tuples."""
    for batch in table.to_batches(BATCH):
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


class Column(Sequence[T], Generic[T]):
    """One column as a sequence: eight bytes and the text a row, where a list of strings takes ten times that."""

    def __init__(self, values: pa.ChunkedArray) -> None:
        self.values = values.combine_chunks()

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...
    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        """Return the value of a place, or those of a slice as a list."""
        found = self.values[place]
        value: T | list[T] = found.to_pylist() if isinstance(place, slice) else found.as_py()
        return value

    def __iter__(self) -> Iterator[T]:
        for start in range(0, len(self.values), BATCH):
            yield from self.values.slice(start, BATCH).to_pylist()
