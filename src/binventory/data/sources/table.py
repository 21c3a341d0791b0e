"""Bins listed in a CSV or Parquet table with the columns path, quantity[, group][, id]."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv, parquet

from binventory.config.schema import S3Config
from binventory.data.columns import Column, PackedRows, Texts
from binventory.data.listing import PackedBins
from binventory.data.reading import MAX_LIST_BYTES
from binventory.data.sources.base import BinFiles, Listing
from binventory.data.sources.file_list import check_id, places_of, read_file_list
from binventory.data.sources.photo_tree import PhotoFile, fetch_uris, ids_of
from binventory.data.sources.s3 import SCHEME, is_s3, naming, read_object, split_uri
from binventory.data.text import brief, cell_text, id_of_name, printable
from binventory.errors import InputError
from binventory.files import UnreadableError, read_limited

TABLE_SUFFIXES = (".csv", ".parquet")
COLUMNS = ("path", "quantity", "group", "id", "problem")
WHOLE = re.compile(r"-?[0-9]+\.0+")
MAX_SHOWN_CHARS = 300  # of what a message quotes
MAX_ROWS = 20_000_000  # a Parquet file of a few KB can claim any number of equal rows


@dataclass(frozen=True, slots=True)
class TableRow:
    """One row of a table.

    Attributes:
        id: the column `id`; without that column made of the path, see `ids_of`.
        location: the photo's absolute or S3 location; None in a row that has a problem instead of a path.
        quantity: None when the cell is missing: unlabelled.
        group: the column `group`; None when the cell is missing: a group of its own.
        problem: why the row cannot be used: the column `problem` (an index has it), a bad quantity, or a file name that
            cannot be an id.
    """

    id: str
    location: str | None
    quantity: int | None = None
    group: str | None = None
    problem: str | None = None


class TableRows(PackedRows[TableRow]):
    """Rows of a table."""

    SCHEMA = pa.schema(
        {
            "id": pa.binary(),
            "location": pa.binary(),
            "quantity": pa.int64(),
            "group": pa.binary(),
            "problem": pa.binary(),
        }
    )

    def _row(self, *values: Any) -> TableRow:
        return TableRow(*values)


class TableSource:
    """Reads a table. Paths are relative to the table's own folder, absolute, or S3 URIs, which are fetched.

    A cell that is null, blank or says `nan`, `None`, `NULL`, `NA` or the like is missing, in every column. Without an
    `id` column a bin's id is its photo's file name without the suffix where no other row has the same, else the whole
    path with `__` for '/'. A missing quantity means unlabelled, a missing group a group of its own. Taken are the bins
    of `file_list` where one is given, else all; of these the first `limit` by name. Arguments as in `Source`.
    """

    def __init__(
        self, location: str, *, file_list: str | None, limit: int | None, s3: S3Config, data_dir: str | Path
    ) -> None:
        self.location = location
        self.file_list = file_list
        self.limit = limit
        self.s3 = s3
        self.data_dir = data_dir

    def fetch(self) -> Listing:
        """Read the table and fetch what lies on S3. Raises InputError when the table as a whole cannot be used."""
        with naming("data.file_list"):
            wanted = None if self.file_list is None else read_file_list(self.file_list, self.s3)
        with naming("data.source"):
            rows = read_rows(self.location, self.s3, required=("path", "quantity"))
            places, absent = places_of(rows.table["id"], wanted, self.limit, self.location)
            rows = rows.at(places)
            photos = photos_of(rows, self.s3, self.data_dir, self.location)
        bins = (
            BinFiles(row.id, path, None, row.quantity, row.group, problem=problem)
            for row, (path, problem) in zip(rows, photos, strict=True)
        )
        return Listing(PackedBins(bins), absent, wanted)


def read_rows(location: str, s3: S3Config, required: Iterable[str] = ("path",)) -> TableRows:
    """Read a table's rows, from a local file or S3.

    Raises:
        InputError: it is no CSV or Parquet table, is empty, lacks a column of `required`, or has a row without path and
            id, or an id or path twice.
    """
    table = _read_table(location, s3)
    absent = [name for name in required if name not in table.column_names]
    if absent:
        found = printable(", ".join(table.column_names), MAX_SHOWN_CHARS)
        raise InputError(f"{location}: has no column {absent[0]!r} but {found}; name it so in the first line")
    if table.num_rows == 0:
        raise InputError(f"{location}: has no rows; add one for each photo")
    columns = {name: Column[Any](table[name]) for name in COLUMNS if name in table.column_names}
    nothing = Column[None](pa.chunked_array([pa.nulls(table.num_rows)]))
    paths = Texts[str | None](map(_exact, columns["path"]))
    places = Texts[str | None](None if path is None else _resolve(path, location) for path in paths)
    problems = Texts[str | None](map(cell_text, columns.get("problem", nothing)))
    _check_paths(places, columns["path"], problems, "id" in columns, location)
    if "id" in columns:
        ids = Texts[str](_exact(bin_id) or "" for bin_id in columns["id"])
        _check_ids(ids, columns["id"], location)
        made: Iterable[tuple[str, str | None]] = zip(ids, nothing, strict=True)
    else:
        with naming(location):
            names = Texts[str](_named(path or "", place or "") for path, place in zip(paths, places, strict=True))
            made = map(id_of_name, ids_of(names))
    cells = zip(columns.get("quantity", nothing), _groups(columns.get("group", nothing)), strict=True)
    return TableRows(
        _row(bin_id, place, quantity, group, problem or unusable)
        for (bin_id, unusable), place, (quantity, group), problem in zip(made, places, cells, problems, strict=True)
    )


def photos_of(
    rows: Sequence[TableRow], s3: S3Config, data_dir: str | Path, title: str
) -> Iterator[tuple[Path | None, str | None]]:
    """Give each row's photo on this machine and its problem, S3 ones fetched. Raises InputError as `fetch_uris`.

    A row may have both: a photo whose quantity is no number can still be predicted.
    """
    remote = [row.location for row in rows if row.location is not None and is_s3(row.location)]
    return map(partial(_photo_of, fetched=fetch_uris(remote, s3, data_dir, title)), rows)


def _photo_of(row: TableRow, fetched: Mapping[str, PhotoFile]) -> tuple[Path | None, str | None]:
    if row.location is None:
        return None, row.problem
    if row.location in fetched:
        photo = fetched[row.location]
        return photo.path, row.problem or photo.error
    if _exists(row.location):
        return Path(row.location), row.problem
    written = ", written as on Windows (give / for \\ and no drive)" if "\\" in row.location else ""
    return None, row.problem or f"no photo at its path{written}: {printable(row.location)}"


def _named(path: str, place: str) -> str:
    """Return by what a row's id is made: its path, with '/' where it is one of Windows and not a file's name here."""
    if "\\" not in path or _exists(place):
        return path
    windows = PureWindowsPath(path)
    return windows.relative_to(windows.anchor).as_posix()


def _exists(path: str) -> bool:
    try:
        os.stat(path)  # noqa: PTH116  for pathlib `a.jpg/` is `a.jpg`
    except (OSError, ValueError):  # a cell may hold what can be no path at all
        return False
    return True


def _row(bin_id: str, place: str | None, quantity: object, group: str | None, problem: str | None) -> TableRow:
    try:
        return TableRow(bin_id, place, _quantity(quantity), group, problem)
    except ValueError as error:
        return TableRow(bin_id, place, None, group, problem or str(error))


def _resolve(path: str, table: str) -> str:
    if is_s3(path):
        return path
    if is_s3(table) and not path.startswith("/"):
        return _resolve_key(path, table)
    joined = os.path.join(os.path.dirname(table), path)  # noqa: PTH118, PTH120  for pathlib `a.jpg/` is `a.jpg`
    place = os.path.normpath(joined)
    if ".." in path.split("/") and not _are_same(place, joined):
        return joined  # `link/..` is the folder that holds what the link leads to
    return f"{place}/" if path.endswith(("/", "/.")) else place


def _are_same(path: str, other: str) -> bool:
    """Whether two paths lead to one file, or to none."""
    if _exists(path) and _exists(other):
        return os.path.samefile(path, other)  # noqa: PTH121
    return _exists(path) == _exists(other)


def _resolve_key(path: str, table: str) -> str:
    """Resolve a path beside a table on S3 as one beside a local table; one above the bucket stays as it is, no key."""
    bucket, key = split_uri(table)
    parts = key.split("/")[:-1]
    if "" in path.split("/") or path.endswith("/."):
        return f"{SCHEME}{bucket}/{'/'.join([*parts, path])}"
    for part in path.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part != ".":
            parts.append(part)
    return f"{SCHEME}{bucket}/{'/'.join(parts)}"


def _read_table(location: str, s3: S3Config) -> pa.Table:
    suffix = PurePosixPath(location).suffix.lower()
    if suffix not in TABLE_SUFFIXES:
        raise InputError(f"{location}: is no table; name a .csv or .parquet file")
    data = pa.BufferReader(_read_bytes(location, s3))
    try:
        if suffix == ".parquet":
            file = parquet.ParquetFile(data)
            _check_columns(file.schema_arrow.names, location)
            if file.metadata.num_rows > MAX_ROWS:
                raise InputError(f"{location}: has {file.metadata.num_rows:,} rows, at most {MAX_ROWS:,} are read")
            table = file.read(columns=[name for name in file.schema_arrow.names if name in COLUMNS])
            table = pa.table({name: _as_text(table[name], name) for name in table.column_names})
        else:
            # all columns that are read are text: '01000' is an id, and must not come back as 1000
            convert = csv.ConvertOptions(column_types={name: pa.string() for name in COLUMNS})
            parse = csv.ParseOptions(newlines_in_values=True)  # file names may hold any
            table = csv.read_csv(data, parse_options=parse, convert_options=convert)
            _check_columns(table.column_names, location)
        table.validate(full=True)  # else a text that is no UTF-8 is only noticed cell by cell
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last of a column's name
        reason = printable(" ".join(str(error).split()), MAX_SHOWN_CHARS)
        raise InputError(f"{location}: cannot be read as {suffix[1:]}: {reason}") from error
    return table


def _check_columns(names: list[str], location: str) -> None:
    for name in COLUMNS:
        if names.count(name) > 1:
            raise InputError(f"{location}: has column {name!r} twice; rename one")


def _read_bytes(location: str, s3: S3Config) -> bytes:
    if is_s3(location):
        data = read_object(location, s3)
        if data is None:
            raise InputError(f"{location}: no such object; check the bucket and the key")
        return data
    try:
        return read_limited(location, MAX_LIST_BYTES)
    except UnreadableError as error:
        raise InputError(f"{location}: {error}; check the path") from error


def _exact(value: object) -> str | None:
    """A name as it stands: ` a.jpg` and `a.jpg` are two files."""
    return None if cell_text(value) is None else str(value)


def _quantity(value: object) -> int | None:
    text = cell_text(value)
    if text is None:
        return None
    # "3.0": how a column of whole numbers with gaps is written by many tools
    whole = re.fullmatch(r"([0-9]{1,9})(\.0*)?", text)
    if whole is None:
        raise ValueError(f"quantity is no whole number from 0 up: {brief(text)}")
    return int(whole[1])


def _as_text(column: pa.ChunkedArray, name: str) -> pa.ChunkedArray:
    try:
        return column.cast(pa.string())
    except pa.ArrowNotImplementedError as error:
        raise pa.ArrowInvalid(f"column {name!r} holds {column.type}; write it as text or numbers") from error


def _groups(cells: Column[Any]) -> Iterator[str | None]:
    """Give the groups of all rows. `3` and `3.0` are one group: of joined tables one had gaps, so floats."""
    names = set(map(cell_text, pc.unique(cells.values).to_pylist()))
    whole = {name: name.partition(".")[0] for name in names if name is not None and WHOLE.fullmatch(name)}
    same = {name: number for name, number in whole.items() if number in names}
    return (None if name is None else same.get(name, name) for name in map(cell_text, cells))


def _found(cell: object) -> str:
    return f" but {brief(cell)}, which stands for a missing value" if str(cell or "").strip() else ""


def _check_paths(
    paths: Texts[str | None], cells: Column[Any], problems: Texts[str | None], has_ids: bool, location: str
) -> None:
    for place, (path, problem) in enumerate(zip(paths, problems, strict=True)):
        if path is None and (problem is None or not has_ids):
            what = f"row {place + 1} has no path{_found(cells[place])}"
            raise InputError(f"{location}: {what}; fill it in or remove the row")
    if twice := paths.repeated():
        first, second = (1 + place for place in twice)
        shown = printable(paths[twice[0]] or "", MAX_SHOWN_CHARS)
        raise InputError(f"{location}: rows {first} and {second} have the same path {shown}; remove one")


def _check_ids(ids: Texts[str], cells: Column[Any], location: str) -> None:
    for place, bin_id in enumerate(ids):
        if not bin_id and (found := _found(cells[place])):
            raise InputError(f"{location}: row {place + 1} has no id{found}; write another, or remove the column")
        check_id(bin_id, f"{location}: row {place + 1}")
    if twice := ids.repeated():
        first, second = (1 + place for place in twice)
        raise InputError(f"{location}: rows {first} and {second} have the same id {ids[twice[0]]}; rename one")
