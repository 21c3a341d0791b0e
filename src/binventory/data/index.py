"""The index: one row a bin, and one row an item. Everything after it reads these tables and lists no folder again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from binventory.data.cache.staging import StagedPhotos
from binventory.data.columns import BATCH, Texts
from binventory.data.scan import ITEM_FIELDS, STATISTICS, Row, scan_bins
from binventory.data.sources.base import BinFiles, Listing
from binventory.data.splits import sibling_groups
from binventory.data.text import cell_text, printable, utf8
from binventory.errors import InputError

INDEX_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),
        ("quantity", pa.int32()),  # null: unlabelled
        ("width", pa.int32()),  # of the upright photo, in pixels
        ("height", pa.int32()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("item_count", pa.int64()),  # sum of the item quantities, each of which may be a million
        ("distinct_asins", pa.int32()),
        ("group", pa.string()),  # bins of one group are never parted by split=grouped
        ("split", pa.string()),  # train, val, test; null: in none
        ("problem", pa.string()),  # "reason" or "reason: detail"; null: the bin can be used
        ("note", pa.string()),  # what is odd about a bin that can be used all the same
        ("mtime_ns", pa.int64()),
        *((name, pa.float64()) for name in STATISTICS),  # over the photo squashed to 224 pixels, in 0..1
    ]
)
ITEMS_SCHEMA = pa.schema([("bin_id", pa.string()), *ITEM_FIELDS])


# Columns of the index that are the scan's, under another name or the same, and those that are made for it.
SCANNED = {"path": "photo", "bytes": "photo_bytes", "mtime_ns": "photo_mtime_ns"}
SCANNED |= {name: name for name in ("width", "height", "sha256", *STATISTICS)}
OF_ITEMS = ("item_count", "distinct_asins")
OWN_FIELDS = [field for field in INDEX_SCHEMA if field.name not in {*SCANNED, *OF_ITEMS, "group", "split"}]
JUDGED = ("quantity", "photo_problem", "metadata_problem", "flags")  # what `_index_row` reads of a scan


def build_index(
    listing: Listing, cache: Path, staged: StagedPhotos | None = None, num_workers: int | None = None
) -> tuple[pa.Table, pa.Table]:
    """Read all bins of a listing.

    Args:
        listing: what the source has.
        cache: Parquet file by which unchanged files are not read again.
        staged: takes the photos that are read, by their rows of the index.
        num_workers: threads that read; None: one per core; 0: one.

    Returns:
        The index (`INDEX_SCHEMA`, in listing order, `split` all null) and the items (`ITEMS_SCHEMA`).

    Raises:
        InputError: two bins have one id.
    """
    _check_unique(listing.bins)
    scanned = scan_bins(listing.bins, cache, staged, num_workers)
    listed = listing.split_list or {}
    columns: dict[str, list[pa.Array]] = {field.name: [] for field in OWN_FIELDS}
    for start in range(0, len(listing.bins), BATCH):
        bins, read = listing.bins[start : start + BATCH], scanned.select(JUDGED).slice(start, BATCH).to_pylist()
        rows = [_index_row(files, row, listed) for files, row in zip(bins, read, strict=True)]
        for field in OWN_FIELDS:
            columns[field.name].append(pa.array([row[field.name] for row in rows], field.type))
    index = {name: pa.chunked_array(parts, INDEX_SCHEMA.field(name).type) for name, parts in columns.items()}
    index |= {name: scanned[column] for name, column in SCANNED.items()}
    items, facts, asins = _items(index["id"], scanned["items"])
    index |= facts
    groups = sibling_groups(index["id"].to_pylist(), asins, [files.group for files in listing.bins])
    some = (groups[start : start + BATCH] for start in range(0, len(groups), BATCH))
    index["group"] = pa.chunked_array([pa.array([utf8(group) for group in part]) for part in some], pa.string())
    index["split"] = pa.chunked_array([pa.nulls(len(groups), pa.string())])
    return pa.table({name: index[name] for name in INDEX_SCHEMA.names}, schema=INDEX_SCHEMA), items


def _items(ids: pa.ChunkedArray, scanned: pa.ChunkedArray) -> tuple[pa.Table, dict[str, pa.Array], list[Sequence[str]]]:
    """Return the items of all bins, two columns of the index, and the distinct ASINs of each bin.

    No item becomes a Python object: ten thousand bins would take seconds.
    """
    lists = scanned.combine_chunks()
    bin_of, flat = pc.list_parent_indices(lists).to_numpy(), lists.flatten()
    fields = {name: flat.field(place) for place, (name, _) in enumerate(ITEM_FIELDS)}
    items = pa.table({"bin_id": ids.take(bin_of), **fields}, schema=ITEMS_SCHEMA)

    counts = np.zeros(len(lists), dtype=np.int64)
    np.add.at(counts, bin_of, pc.fill_null(fields["quantity"], 0).to_numpy())
    asin = fields["asin"].dictionary_encode(null_encoding="encode")
    pairs = np.unique(np.stack([bin_of, asin.indices.to_numpy()], axis=1), axis=0)
    names: list[str] = asin.dictionary.to_pylist()
    is_known = [cell_text(name) is not None for name in names]  # bins that lack an ASIN do not share one
    asins: list[Sequence[str]] = [()] * len(lists)
    for bin_number, of_bin in groupby(pairs.tolist(), key=itemgetter(0)):
        asins[bin_number] = [names[code] for _, code in of_bin if is_known[code]]
    is_unknown = pc.is_null(lists).to_numpy(zero_copy_only=False)
    facts = {
        "item_count": pa.array(counts, pa.int64(), mask=is_unknown),
        "distinct_asins": pa.array(np.bincount(pairs[:, 0], minlength=len(lists)), pa.int32(), mask=is_unknown),
    }
    return items, facts, asins


def _check_unique(bins: Sequence[BinFiles]) -> None:
    if twice := Texts[str](files.id for files in bins).repeated():
        photos = " and ".join(str(bins[place].photo) for place in twice)
        raise InputError(f"data.source: bin id {bins[twice[0]].id} stands twice: {photos}; rename one")


def _index_row(files: BinFiles, scanned: Row, listed: Mapping[str, int]) -> Row:
    quantity = scanned["quantity"] if files.quantity is None else files.quantity
    return {
        "id": utf8(files.id),
        "quantity": quantity,
        "problem": _problem(files, scanned),
        "note": "; ".join(_notes(files, scanned, listed)) or None,
    }


def _problem(files: BinFiles, scanned: Row) -> str | None:
    problem: str | None = scanned["photo_problem"]
    if files.problem is not None:
        return printable(files.problem)
    if files.photo is None:
        return "photo is missing"
    if utf8(str(files.photo)) != str(files.photo):
        return "file name is not UTF-8"
    if problem is None and files.quantity is None:  # else the source gives the label, metadata only adds items
        missing = files.metadata is None and files.needs_metadata
        problem = "metadata is missing" if missing else scanned["metadata_problem"]
    return problem


def _notes(files: BinFiles, scanned: Row, listed: Mapping[str, int]) -> list[str]:
    notes = [*(scanned["flags"] or ()), *([] if files.note is None else [printable(files.note)])]
    if files.quantity is not None:
        if scanned["metadata_problem"]:
            notes.append(scanned["metadata_problem"])
        elif scanned["quantity"] not in {None, files.quantity}:
            notes.append(f"the source says quantity {files.quantity}, EXPECTED_QUANTITY is {scanned['quantity']}")
    elif scanned["quantity"] is not None and listed.get(files.id, scanned["quantity"]) != scanned["quantity"]:
        notes.append(f"the file list says {listed[files.id]}, EXPECTED_QUANTITY is {scanned['quantity']}")
    return notes
