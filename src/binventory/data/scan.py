"""Reading the files of all bins, in parallel, and only those that changed since the last time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from binventory.data.decode import PhotoError, decode_rgb, read_photo
from binventory.data.metadata import MetadataError, read_metadata
from binventory.data.progress import track
from binventory.data.reading import stamp_of
from binventory.data.sources.base import BinFiles
from binventory.data.text import utf8
from binventory.files import atomic_path

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
# Of metadata also the time that no program can set back: a 2 put for a 1 keeps the size, and archives restore times.
STAMP = (
    *("photo", "photo_bytes", "photo_mtime_ns"),
    *("metadata", "metadata_bytes", "metadata_mtime_ns", "metadata_ctime_ns"),
)
BATCH = 2048  # bins handed to the threads at a time: half a million futures would take more memory than the rows


def scan_bins(bins: Sequence[BinFiles], cache: Path) -> list[Row]:
    """Read photos and metadata of all bins.

    Args:
        bins: which files to read.
        cache: Parquet file in which the result is kept; what it knows of unchanged files is not read again. A damaged
            one is noticed by the checksum beside it and made anew.

    Returns:
        One row a bin with the fields of `SCAN_SCHEMA`, in the order of `bins`.
    """
    known = {_stamp_of(row): row for row in load_scan(cache)}
    rows = [_stamp_row(files) for files in bins]
    rows = [known.get(_stamp_of(row), row) for row in rows]
    # a file that failed is tried again: what hindered it (a permission, a disk) need not have changed its time
    stale = [i for i, row in enumerate(rows) if "sha256" not in row or row["photo_problem"] or row["metadata_problem"]]
    for i, row in zip(stale, track(_read_all([bins[i] for i in stale]), len(stale), "reading photos"), strict=True):
        rows[i] = row
    if stale or len(known) != len(rows):
        store_scan(cache, rows)
    return rows


def load_scan(cache: Path) -> list[Row]:
    """Return the rows of an earlier scan; none when there is no whole file of this version's columns."""
    try:
        data = cache.read_bytes()
        checksum = _checksum_path(cache).read_text().strip()
    except (OSError, UnicodeDecodeError):
        return []
    if hashlib.sha256(data).hexdigest() != checksum:
        return []
    try:
        table = pq.read_table(pa.BufferReader(data))
        table.validate(full=True)
    except (pa.ArrowException, OSError):  # put there together with its checksum
        return []
    return table.to_pylist() if table.schema.equals(SCAN_SCHEMA) else []


def store_scan(cache: Path, rows: Sequence[Row]) -> None:
    """Write the rows and, beside them, the checksum."""
    with atomic_path(cache) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), SCAN_SCHEMA), temporary)
        checksum = hashlib.sha256(temporary.read_bytes()).hexdigest()
    with atomic_path(_checksum_path(cache)) as temporary:
        temporary.write_text(checksum + "\n")


def channel_statistics(image: Image.Image) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation (n-1) of each channel of an RGB image, in 0..1: two (3,) float64 arrays."""
    histogram = np.array(image.histogram(), dtype=np.float64).reshape(3, 256)  # exact, and faster than over the pixels
    levels = np.arange(256) / 255
    num_pixels = image.width * image.height
    mean = histogram @ levels / num_pixels
    squares = (histogram * (levels - mean[:, None]) ** 2).sum(axis=1)
    return mean, np.sqrt(squares / max(num_pixels - 1, 1))


def _read_all(bins: Sequence[BinFiles]) -> Iterator[Row]:
    with ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="scan") as threads:
        for start in range(0, len(bins), BATCH):
            yield from threads.map(_read_bin, bins[start : start + BATCH])


def _read_bin(files: BinFiles) -> Row:
    # the stamp is taken first: a file that changes while it is read is then read again the next time
    row = dict.fromkeys(SCAN_SCHEMA.names) | _stamp_row(files)
    if files.photo is not None:
        row |= _photo_facts(files.photo)
    if files.metadata is not None:
        row |= _metadata_facts(files.metadata)
    return row


def _photo_facts(path: Path) -> Row:
    try:
        data = read_photo(path)
        image = decode_rgb(data, path.name)
    except PhotoError as error:
        return {"photo_problem": error.reason}
    mean, std = channel_statistics(image)
    facts = {"width": image.width, "height": image.height, "sha256": hashlib.sha256(data).hexdigest()}
    return facts | dict(zip(STATISTICS, [*mean.tolist(), *std.tolist()], strict=True))


def _metadata_facts(path: Path) -> Row:
    try:
        metadata = read_metadata(path)
    except MetadataError as error:
        return {"metadata_problem": error.reason}
    return {
        "quantity": metadata.quantity,
        "items": [asdict(item) for item in metadata.items],
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
