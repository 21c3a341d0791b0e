"""A data set as objects of a bucket: which keys, which bytes, and the hash that names them all."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from binventory.data.formats import exported_suffix
from binventory.data.prepare import IndexedBins, PreparedBins
from binventory.data.progress import track
from binventory.data.reading import MAX_PHOTO_BYTES
from binventory.data.sources.base import BinFiles
from binventory.data.sources.bucket import METADATA, METADATA_SUFFIX, PHOTO_SUFFIX, PHOTOS
from binventory.data.sources.file_list import FILE_LIST_NAME
from binventory.data.text import MADE_ID, cell_text
from binventory.errors import InputError
from binventory.files import UnreadableError, read_limited

TABLE = "table.csv"
HASH_CHARS = 32
CHANGED = "changed since it was read; upload again"


@dataclass(frozen=True, slots=True)
class DatasetObject:
    """An object: its key below the data set's prefix, its size and SHA-256, and where its bytes are."""

    key: str
    size_bytes: int
    sha256: str
    origin: Path | bytes

    def read(self) -> bytes:
        """Return its bytes. Raises InputError when the file is no longer the one that was hashed."""
        if isinstance(self.origin, bytes):
            return self.origin
        try:
            content = read_limited(self.origin, MAX_PHOTO_BYTES)
        except UnreadableError as error:
            raise InputError(f"{self.origin}: {error}; {CHANGED}") from error
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise InputError(f"{self.origin}: {CHANGED}")
        return content


@dataclass(frozen=True)
class Dataset:
    """What is uploaded.

    Attributes:
        layout: the `data=` choice that reads it: abid (bucket layout), imagefolder or table.
        source: what `data.source` names below the prefix; empty for the prefix itself.
        has_file_list: whether `data.file_list` must name the uploaded list, which this layout doesn't find by itself.
        content_hash: of all keys and bytes but the index's, in hexadecimal.
        objects: photos, metadata, lists.
        index: index.parquet and items.parquet, below `index/<fingerprint>/`.
        skipped: ids of bins of which nothing can be sent, since their name can be no id or their files cannot be read.
    """

    layout: str
    source: str
    has_file_list: bool
    content_hash: str
    objects: tuple[DatasetObject, ...]
    index: tuple[DatasetObject, ...]
    skipped: tuple[str, ...]


def make_dataset(found: IndexedBins, prepared: PreparedBins) -> Dataset:
    """Lay the files of a source out so that its upload gives the same bins, read-only on the source.

    Bins with metadata keep the public bucket's layout, labelled photos become an ImageFolder tree, and a table is
    written where bins have groups or no label: a tree of folders has no place for them.

    Raises:
        InputError: no file can be sent.
    """
    bins = found.listing.bins
    layout = _layout(bins)
    known = {
        row["path"]: (row["bytes"], row["sha256"])
        for row in found.index.select(["path", "bytes", "sha256"]).to_pylist()
        if row["sha256"] is not None
    }
    objects: dict[str, DatasetObject] = {}
    skipped: list[str] = []
    for files in track(bins, len(bins), "hashing files"):
        of_bin = list(_objects(files, layout, known))
        if not of_bin and (files.photo is not None or files.metadata is not None):
            skipped.append(files.id)
        objects |= {entry.key: entry for entry in of_bin}
    if not objects:
        raise InputError("data.source: holds no file that can be uploaded")
    if layout == "table":
        objects[TABLE] = _of_bytes(TABLE, _table(bins, objects))
    if found.listing.split_list is not None:
        objects[FILE_LIST_NAME] = _of_bytes(FILE_LIST_NAME, _file_list(found.listing.split_list))
    ordered = tuple(sorted(objects.values(), key=lambda entry: entry.key))
    lines = "".join(f"{entry.sha256} {entry.key}\n" for entry in ordered)
    return Dataset(
        layout=layout,
        source=TABLE if layout == "table" else "",
        has_file_list=layout != "abid" and found.listing.split_list is not None,
        content_hash=hashlib.sha256(lines.encode()).hexdigest()[:HASH_CHARS],
        objects=ordered,
        index=tuple(_index_objects(prepared, objects)),
        skipped=tuple(skipped),
    )


def _layout(bins: Sequence[BinFiles]) -> str:
    if any(files.needs_metadata for files in bins):
        return "abid"
    if any(files.group is not None or files.quantity is None for files in bins):
        return "table"
    return "imagefolder"


def _photo_key(files: BinFiles, layout: str) -> str:
    if layout == "abid":
        return f"{PHOTOS}/{files.id}{PHOTO_SUFFIX}"
    suffix = exported_suffix(files.photo) if files.photo is not None else ""
    return f"{'photos' if layout == 'table' else files.quantity}/{files.id}{suffix}"


def _objects(files: BinFiles, layout: str, known: Mapping[str, tuple[int, str]]) -> Iterator[DatasetObject]:
    """The photo and metadata of one bin, as far as they can be read."""
    # its file's name cannot be an id: on S3 it would get yet another one; in a table `NA` would be none
    if files.id.startswith(MADE_ID) or (layout == "table" and cell_text(files.id) is None):
        return
    parts = [(_photo_key(files, layout), files.photo)]
    if layout == "abid":
        parts.append((f"{METADATA}/{files.id}{METADATA_SUFFIX}", files.metadata))
    for key, path in parts:
        if path is None:
            continue
        if str(path) in known:
            yield DatasetObject(key, *known[str(path)], path)
            continue
        try:
            content = read_limited(path, MAX_PHOTO_BYTES)
        except UnreadableError:
            continue  # the bin is bad here, and there, where the file is missing
        yield DatasetObject(key, len(content), hashlib.sha256(content).hexdigest(), path)


def _table(bins: Sequence[BinFiles], objects: Mapping[str, DatasetObject]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "path", "quantity", "group", "problem"])
    for files in bins:
        if cell_text(files.id) is None:
            continue
        key = _photo_key(files, "table")
        problem = files.problem or ("" if key in objects else "photo cannot be read")
        writer.writerow([files.id, key if key in objects else "", files.quantity, files.group, problem])
    return text.getvalue().encode()


def _file_list(split_list: Mapping[str, int]) -> bytes:
    """The list in file order, by which `data.split=report` splits; it also names bins that are not there."""
    by_count: dict[str, list[str]] = {}
    for bin_id, count in split_list.items():
        by_count.setdefault(str(count), []).append(f"data/metadata/{bin_id}.json")
    return json.dumps(by_count).encode()


def _index_objects(prepared: PreparedBins, objects: Mapping[str, DatasetObject]) -> Iterator[DatasetObject]:
    """The index with keys instead of this machine's paths and times; each split of the same bins has its own."""
    keys = {str(entry.origin): entry.key for entry in objects.values() if isinstance(entry.origin, Path)}
    index = prepared.index
    paths = [keys.get(path) for path in index["path"].to_pylist()]
    for name, values in (("path", pa.array(paths, pa.string())), ("mtime_ns", pa.nulls(index.num_rows, pa.int64()))):
        position = index.schema.get_field_index(name)
        index = index.set_column(position, index.schema.field(position), values)
    for name, table in (("index", index), ("items", prepared.items)):
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer)
        content = buffer.getvalue().to_pybytes()
        yield _of_bytes(f"index/{prepared.fingerprint[:HASH_CHARS]}/{name}.parquet", content)


def _of_bytes(key: str, content: bytes) -> DatasetObject:
    return DatasetObject(key, len(content), hashlib.sha256(content).hexdigest(), content)
