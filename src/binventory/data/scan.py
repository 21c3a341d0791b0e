"""Reading the files of all bins, in parallel, and only those that changed since the last time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from torch import Tensor

from binventory.cores import num_threads
from binventory.data.cache.staging import StagedPhotos
from binventory.data.columns import BATCH, ROW_GROUP, rows_of
from binventory.data.decode import Photo, PhotoError, decode_photo, read_photo, reduction
from binventory.data.metadata import MetadataError, read_metadata
from binventory.data.preprocess import Preprocessing
from binventory.data.progress import track
from binventory.data.reading import stamp_of
from binventory.data.sources.base import BinFiles
from binventory.data.text import utf8
from binventory.files import atomic_path, open_limited, read_limited

Row = dict[str, Any]

STATISTICS = ("mean_r", "mean_g", "mean_b", "std_r", "std_g", "std_b")
MEASURES = ("height_in", "length_in", "width_in", "weight_lb")
ITEM_FIELDS = [
    ("asin", pa.string()),
    ("name", pa.string()),
    ("quantity", pa.int32()),
    *((measure, pa.float64()) for measure in MEASURES),
]
# What the files of one bin say, and the size and time by which a change of them is noticed.
SCAN_SCHEMA = pa.schema(
    [
        ("photo", pa.string()),
        ("photo_bytes", pa.int64()),
        ("photo_mtime_ns", pa.int64()),
        ("photo_problem", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        *((name, pa.float64()) for name in STATISTICS),
        ("metadata", pa.string()),
        ("metadata_bytes", pa.int64()),
        ("metadata_mtime_ns", pa.int64()),
        ("metadata_ctime_ns", pa.int64()),
        ("metadata_problem", pa.string()),
        ("quantity", pa.int32()),
        ("items", pa.list_(pa.struct(ITEM_FIELDS))),
        ("flags", pa.list_(pa.string())),
    ]
)
NOTHING: Row = dict.fromkeys(SCAN_SCHEMA.names)
# Of metadata also the time that no program can set back: a 2 put for a 1 keeps the size, and archives restore times.
STAMP = (
    *("photo", "photo_bytes", "photo_mtime_ns"),
    *("metadata", "metadata_bytes", "metadata_mtime_ns", "metadata_ctime_ns"),
)
MEASURED = Preprocessing(224)  # photos whose statistics are those of the index: as the source report saw them
MAX_SCAN_BYTES = 2**36
CHUNK = 16  # bins that a thread reads in one go


def scan_bins(
    bins: Sequence[BinFiles], cache: Path, staged: StagedPhotos | None = None, num_workers: int | None = None
) -> pa.Table:
    """Read photos and metadata of all bins.

    Args:
        bins: which files to read.
        cache: Parquet file in which the result is kept; what it knows of unchanged files is not read again. A damaged
            one is noticed by the checksum beside it and made anew.
        staged: takes the photos that are read, by their places in `bins`.
        num_workers: threads that read; None: one per core; 0: one.

    Returns:
        One row a bin (`SCAN_SCHEMA`), in the order of `bins`.
    """
    known = _Known(load_scan(cache))
    if staged is not None:
        staged.begin(len(bins))
    parts: list[pa.Table] = []

    def scanned() -> Iterator[bool]:
        with ThreadPoolExecutor(num_threads(num_workers), thread_name_prefix="scan") as threads:
            for start in range(0, len(bins), BATCH):
                parts.append((yield from _scan_some(bins[start : start + BATCH], start, known, staged, threads)))

    num_read = sum(track(scanned(), len(bins), "reading photos"))
    table = pa.concat_tables(parts) if parts else SCAN_SCHEMA.empty_table()
    if num_read or len(known.table) != len(table):
        store_scan(cache, table)
    return table


def load_scan(cache: Path) -> pa.Table:
    """Return what an earlier scan found; no rows when there is no whole file of this version's columns."""
    nothing = SCAN_SCHEMA.empty_table()
    try:
        with open_limited(cache, MAX_SCAN_BYTES) as file:
            if hashlib.file_digest(file, "sha256").hexdigest().encode() != read_limited(_checksum_path(cache)).strip():
                return nothing
            file.seek(0)
            # by one thread, and not all of the file at once: either takes as much memory again, and keeps it
            table = pq.read_table(file, use_threads=False, pre_buffer=False)
        table.validate(full=True)
    except (OSError, UnicodeDecodeError, pa.ArrowException):  # the last: put there together with its checksum
        return nothing
    return table if table.schema.equals(SCAN_SCHEMA) else nothing


def store_scan(cache: Path, table: pa.Table) -> None:
    """Write the table and, beside it, the checksum."""
    with atomic_path(cache) as temporary:
        pq.write_table(table, temporary, row_group_size=ROW_GROUP)
        with temporary.open("rb") as file:
            checksum = hashlib.file_digest(file, "sha256").hexdigest()
    with atomic_path(_checksum_path(cache)) as temporary:
        temporary.write_text(checksum + "\n")


class _Known:
    """An earlier scan in which rows are found by their stamps: 16 bytes a row, where a dict of rows takes kilobytes."""

    def __init__(self, table: pa.Table) -> None:
        self.table = table
        hashes = np.fromiter(map(hash, rows_of(table.select(STAMP))), dtype=np.int64, count=len(table))
        self._order = np.argsort(hashes)
        self._hashes = hashes[self._order]

    def unchanged(self, rows: Sequence[Row]) -> tuple[pa.Table, npt.NDArray[np.int64]]:
        """Return what is known of files that are as they were, and the places among `rows` of these."""
        found = self._find(rows)
        places = np.flatnonzero(found >= 0)
        is_run = len(places) == len(rows) and bool((np.diff(found) == 1).all())
        part = self.table.slice(found[0], len(rows)) if is_run else self.table.take(found[places])
        stamps = [_stamp_of(rows[place]) for place in places.tolist()]
        is_same = np.array(
            [before == now for before, now in zip(rows_of(part.select(STAMP)), stamps, strict=True)], bool
        )
        # a file that failed is tried again: what hindered it (a permission, a disk) need not have changed its time
        for problem in ("photo_problem", "metadata_problem"):
            is_same &= pc.is_null(part[problem]).to_numpy()
        return (part if is_same.all() else part.filter(pa.array(is_same))), places[is_same]

    def _find(self, rows: Sequence[Row]) -> npt.NDArray[np.int64]:
        """Return where the table has a row that may be of the same stamp, for each of some rows; -1: nowhere."""
        hashes = np.array([hash(_stamp_of(row)) for row in rows], dtype=np.int64)
        places = np.searchsorted(self._hashes, hashes)
        is_there = places < len(self._hashes)
        is_there[is_there] = self._hashes[places[is_there]] == hashes[is_there]
        found = np.full(len(rows), -1)
        found[is_there] = self._order[places[is_there]]
        return found


def _scan_some(
    bins: Sequence[BinFiles], first: int, known: _Known, staged: StagedPhotos | None, threads: ThreadPoolExecutor
) -> Generator[bool, None, pa.Table]:
    """Return rows for some bins, the first of which has the place `first`; say of each whether it had to be read."""
    rows = [_stamp_row(files) for files in bins]
    kept, places = known.unchanged(rows)
    stale = np.setdiff1d(np.arange(len(bins)), places).tolist()
    yield from (False for _ in places)
    if not stale:
        return kept
    chunks = [stale[start : start + CHUNK] for start in range(0, len(stale), CHUNK)]
    read: list[Row] = []
    for some in threads.map(lambda chunk: [_read_bin(bins[place], first + place, staged) for place in chunk], chunks):
        read += some
        yield from (True for _ in some)
    fresh = pa.Table.from_pylist(read, SCAN_SCHEMA)
    order = np.argsort(np.concatenate([places, np.array(stale, dtype=np.int64)]))
    return pa.concat_tables([kept, fresh]).take(order)


def channel_statistics(pixels: Tensor) -> dict[str, float]:
    """Return `STATISTICS` of (3, H, W) uint8, H up to 256: mean and deviation (n-1) of each channel, of 0..1."""
    rows = pixels.permute(1, 2, 0).numpy().reshape(pixels.shape[1], -1).astype(np.float32)
    sums = rows.sum(axis=0)  # exact: of at most 256 squares below 2^16, and a float32 holds whole numbers to 2^24
    squares = np.square(rows, out=rows).sum(axis=0)
    num_pixels = pixels[0].numel()
    total, total_squares = (part.reshape(-1, 3).sum(axis=0, dtype=np.float64) for part in (sums, squares))
    variance = (total_squares - total**2 / num_pixels) / (num_pixels - 1)
    values = [*total / num_pixels, *np.sqrt(np.maximum(variance, 0))]
    return {name: float(value) / 255 for name, value in zip(STATISTICS, values, strict=True)}


def _read_bin(files: BinFiles, place: int, staged: StagedPhotos | None) -> Row:
    # the stamp is taken first: a file that changes while it is read is then read again the next time
    row = NOTHING | _stamp_row(files)
    if files.metadata is not None:
        row |= _metadata_facts(files.metadata)
    if files.photo is not None:
        quantity = row["quantity"] if files.quantity is None else files.quantity
        is_wanted = staged is not None and quantity in staged.counts
        row |= _photo_facts(files.photo, place, staged if is_wanted else None)
    return row


def _photo_facts(path: Path, place: int, staged: StagedPhotos | None) -> Row:
    try:
        data = read_photo(path)
        photo = decode_photo(data, path.name, MEASURED.resized)
        pixels = MEASURED.square(photo)
        if staged is not None:
            staged.put(place, _pixels(staged.preprocessing, data, path.name, photo, pixels))
    except PhotoError as error:
        return {"photo_problem": error.reason}
    facts = {"width": photo.size[0], "height": photo.size[1], "sha256": hashlib.sha256(data).hexdigest()}
    return facts | channel_statistics(pixels)


def _pixels(preprocessing: Preprocessing, data: bytes, name: str, photo: Photo, measured: Tensor) -> Tensor:
    """Return what `preprocessing.pixels` gives, from what was decoded or resized to be measured where it can be."""
    if preprocessing == MEASURED:
        return measured
    if reduction(photo.size, preprocessing.resized(photo.size)) == reduction(photo.size, MEASURED.resized(photo.size)):
        return preprocessing.square(photo)
    return preprocessing.pixels(data, name)


def _metadata_facts(path: Path) -> Row:
    try:
        metadata = read_metadata(path)
    except MetadataError as error:
        return {"metadata_problem": error.reason}
    return {
        "quantity": metadata.quantity,
        "items": [vars(item) for item in metadata.items],
        "flags": list(metadata.flags),
    }


def _stamp_row(files: BinFiles) -> Row:
    row: Row = {}
    for kind, path in (("photo", files.photo), ("metadata", files.metadata)):
        status = _status(path)
        row[kind] = None if path is None else utf8(str(path.absolute()))
        row[f"{kind}_bytes"], row[f"{kind}_mtime_ns"] = (None, None) if status is None else stamp_of(status)
        if kind == "metadata":
            row["metadata_ctime_ns"] = None if status is None else status.st_ctime_ns
    return row


def _status(path: Path | None) -> os.stat_result | None:
    try:
        return None if path is None else path.stat()
    except (OSError, ValueError):  # ValueError: a path with a NUL
        return None


def _stamp_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in STAMP)


def _checksum_path(cache: Path) -> Path:
    return cache.with_name(cache.name + ".sha256")
