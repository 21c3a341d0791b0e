"""Columns of large tables as Python values, of which only those at hand are in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, ClassVar, Generic, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

T = TypeVar("T")
Packed = TypeVar("Packed", bound="PackedRows[Any]")

ROW_GROUP = 16_384  # rows of a Parquet file that are encoded, and so in memory a second time, at once
BATCH = 2048  # rows that are Python objects at a time: as such a row takes ten times the memory


def release_memory() -> None:
    """Give back to the system what is free: what was read of a large set would stay with the process, in pieces."""
    pa.default_memory_pool().release_unused()


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


class PackedRows(ABC, Sequence[T]):
    """Rows that are packed into columns, each of which is made when it is asked for.

    Half a million file names in objects of their own take some hundred MB for each time that they are named.
    """

    # Texts are kept as bytes: names of files, and what was made of them, may be no UTF-8.
    SCHEMA: ClassVar[pa.Schema]

    def __init__(self, rows: Iterable[T]) -> None:
        left = iter(rows)
        parts = []
        while some := list(islice(left, BATCH)):
            columns = zip(*map(self._values, some), strict=True)
            arrays = [_packed(values, field.type) for values, field in zip(columns, self.SCHEMA, strict=True)]
            parts.append(pa.table(arrays, schema=self.SCHEMA))
        self.table: pa.Table = pa.concat_tables(parts) if parts else self.SCHEMA.empty_table()

    def _values(self, row: T) -> Sequence[Any]:
        """Return what stands in the columns of a row, its attributes of these names: a text or a path as such."""
        return [getattr(row, name) for name in self.SCHEMA.names]

    @abstractmethod
    def _row(self, *values: Any) -> T:
        """Return the row of these values: texts as str."""

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, place: int) -> T: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[T]: ...
    def __getitem__(self, place: int | slice) -> T | Sequence[T]:
        """Return one row, or those of a slice as a list."""
        if isinstance(place, slice):
            places = range(*place.indices(len(self)))
            if places.step != 1:
                return list(self.at(np.array(places, dtype=np.int64)))
            return list(self._rows(self.table.slice(places.start, len(places))))
        return next(self._rows(self.table.slice(range(len(self))[place], 1)))

    def __iter__(self) -> Iterator[T]:
        return self._rows(self.table)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and bool(self.table.equals(other.table))

    __hash__ = None  # type: ignore[assignment]

    def at(self: Packed, places: npt.NDArray[np.int64]) -> Packed:
        """Return the rows of some places, in their order."""
        chosen = type(self)(())
        chosen.table = self.table.take(places)
        return chosen

    def _rows(self, table: pa.Table) -> Iterator[T]:
        for batch in table.to_batches(BATCH):
            yield from map(self._row, *(_unpacked(column) for column in batch.columns))


class Texts(PackedRows[T]):
    """Texts: `Texts[str]`, or `Texts[str | None]` where some are missing."""

    SCHEMA = pa.schema([("text", pa.binary())])

    def _values(self, row: T) -> Sequence[Any]:
        return (row,)

    def _row(self, *values: Any) -> T:
        text: T = values[0]
        return text

    def shared(self) -> set[T]:
        """Return the texts that stand more than once, missing ones left out."""
        return {text for text, number in Counter(text for _, text in self._candidates()).items() if number > 1}

    def repeated(self) -> tuple[int, int] | None:
        """Return the first place whose text stood before, after that earlier place; None where no text stands twice."""
        first: dict[T, int] = {}
        for place, text in self._candidates():
            if text in first:
                return first[text], place
            first[text] = place
        return None

    def _candidates(self) -> Iterator[tuple[int, T]]:
        """Give the places and texts whose hash stands more than once: few, where a set of all takes 100 bytes each."""
        hashes = np.fromiter(map(hash, self), dtype=np.int64, count=len(self))
        values, counts = np.unique(hashes, return_counts=True)
        for place in np.flatnonzero(np.isin(hashes, values[counts > 1])).tolist():
            if (text := self[place]) is not None:
                yield place, text


def _packed(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
    if pa.types.is_binary(type_):
        values = [None if value is None else str(value).encode("utf-8", "surrogatepass") for value in values]
    return pa.array(values, type_)


def _unpacked(column: pa.Array) -> list[Any]:
    values: list[Any] = column.to_pylist()
    if pa.types.is_binary(column.type):
        return [None if value is None else value.decode("utf-8", "surrogatepass") for value in values]
    return values
