"""From a source to an index on disk: fetch, read, judge, split, write."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from binventory.config.schema import DataConfig, PathsConfig, S3Config
from binventory.data.cache.staging import StagedPhotos
from binventory.data.columns import BATCH, ROW_GROUP, Column, Texts, release_memory, rows_of
from binventory.data.index import build_index
from binventory.data.listing import PackedBins
from binventory.data.scan import STATISTICS
from binventory.data.sources import make_source
from binventory.data.sources.base import BinFiles, Listing
from binventory.data.sources.file_list import read_file_list
from binventory.data.sources.mirror import distrust, large_downloads
from binventory.data.sources.s3 import is_s3, naming, resolved
from binventory.data.splits import TEST, TRAIN, VAL, check_no_empty_count, grouped_split, report_split, share_deviation
from binventory.data.summary import Summary, examples_of, summarize
from binventory.errors import ConfigError, InputError
from binventory.files import atomic_path, locked, refuse_linked, refuse_links

FORMAT = 2  # part of every cache key: raise it when what is read from a file changes
MAX_SHARE_DEVIATION = 0.02

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class IndexedBins:
    """All bins of a source, read but not split.

    Attributes:
        listing: what the source listed.
        index: one row a bin, `binventory.data.index.INDEX_SCHEMA`; `split` is all null.
        items: one row an item, `binventory.data.index.ITEMS_SCHEMA`.
        folder: where things about this source are kept under `paths.cache_dir`.
        summary: how many bins of what kind.
    """

    listing: Listing
    index: pa.Table
    items: pa.Table
    folder: Path
    summary: Summary


@dataclass(frozen=True)
class PreparedBins:
    """The bins of a source, read, split and written.

    Attributes:
        index: one row a bin, `binventory.data.index.INDEX_SCHEMA`.
        items: one row an item, `binventory.data.index.ITEMS_SCHEMA`.
        index_path: Parquet file of `index`.
        items_path: Parquet file of `items`.
        fingerprint: SHA-256 over id, photo hash, quantity and split of every split bin, in hexadecimal; equal for equal
            data wherever it lies and however it is listed.
        summary: how many bins of what kind.
    """

    index: pa.Table
    items: pa.Table
    index_path: Path
    items_path: Path
    fingerprint: str
    summary: Summary

    def pixel_statistics(self) -> tuple[Triple, Triple]:
        """Return mean and standard deviation of R, G and B over the train photos, in 0..1.

        Both are means over photos of the single photo's value (its standard deviation with n-1), as the source report
        computed them.
        """
        train = self.index.select(STATISTICS).filter(pc.equal(self.index["split"], TRAIN))
        values = [pc.mean(train[name]).as_py() for name in STATISTICS]
        return (values[0], values[1], values[2]), (values[3], values[4], values[5])


def prepare_bins(
    data: DataConfig, s3: S3Config, paths: PathsConfig, staged: StagedPhotos | None = None
) -> PreparedBins:
    """Fetch a source, read what is new of it, split it and write the index.

    It lies in `<paths.cache_dir>/index/<key>/<split key>/`, as index.parquet and items.parquet. What had to be left out
    because it is bad is said on stderr. Two processes may prepare the same bins at once. `staged` takes the photos that
    are read, for `open_photos`.

    Raises:
        InputError: the source cannot be used, no bin of it can, a bin is bad under `data.on_bad=fail`, or more than
            `data.max_bad_fraction` of them are.
        ConfigError: a count of `data.counts` has no bin in train, val or test.
    """
    bins = index_bins(data, s3, paths, staged)
    split_list = split_list_of(bins, data, s3)
    bins = replace(bins, listing=Listing(()))  # of a large set it takes as much memory as half of the index
    release_memory()
    return split_bins(bins, data, split_list)


def split_list_of(bins: IndexedBins, data: DataConfig, s3: S3Config) -> Mapping[str, int] | None:
    """Return the list that `data.split` goes by, for `split_bins`: that of `data.split_list`, else the source's own."""
    if data.split != "report":
        return None
    if data.split_list is None:
        return bins.listing.split_list
    with naming("data.split_list"):
        return read_file_list(data.split_list, s3)


def index_bins(data: DataConfig, s3: S3Config, paths: PathsConfig, staged: StagedPhotos | None = None) -> IndexedBins:
    """Fetch a source and read all of it, without splitting it. Raises as `prepare_bins`."""
    if is_s3(data.source):
        s3 = resolved(s3)
    with large_downloads(data.confirm_download):
        listing = make_source(data, s3, Path(paths.data_dir)).fetch()
    if not isinstance(listing.bins, PackedBins):
        listing = replace(listing, bins=PackedBins(listing.bins))
    if not listing.bins:
        absent = f" ({len(listing.absent)} listed ones are absent)" if listing.absent else ""
        raise InputError(f"data.source={data.source}: no bins found{absent}; check the location and data.file_list")
    release_memory()
    folder = Path(paths.cache_dir) / "index" / _source_key(data, s3.endpoint_url if is_s3(data.source) else None)
    refuse_linked(folder, Path(paths.cache_dir))
    if folder.exists():
        refuse_links(folder)
    with _writing(folder), locked(folder / "lock"):
        index, items = build_index(listing, folder / "scan.parquet", staged, data.num_workers)
    distrust(_files_of_bad_bins(listing.bins, index), paths.data_dir)
    summary = summarize(
        index,
        source=data.source,
        absent=len(listing.absent),
        counts=list(data.counts),
        not_taken=listing.not_taken,
    )
    _judge(index, summary, data)
    return IndexedBins(listing, index, items, folder, summary)


def split_bins(bins: IndexedBins, data: DataConfig, split_list: Mapping[str, int] | None) -> PreparedBins:
    """Split read bins and write the index.

    Args:
        bins: the read bins.
        data: the `data` config node.
        split_list: bin id -> count in file order: what `data.split=report` splits; None: the bins themselves.
    """
    # also bins whose photo is bad: one broken photo must not move the others between train and test
    is_labelled = pc.is_in(bins.index["quantity"], value_set=pa.array(list(data.counts), pa.int32()))
    labelled = bins.index.select(["id", "quantity", "group", "distinct_asins"]).filter(is_labelled)
    if not len(labelled):
        raise InputError(f"data.source={data.source}: no bin has a quantity of data.counts={list(data.counts)}")
    found, warnings = _split(labelled, data, split_list)
    release_memory()
    split = np.full(len(bins.index), None, dtype=object)
    split[is_labelled.to_numpy()] = found
    split[pc.is_valid(bins.index["problem"]).to_numpy()] = None
    position = bins.index.schema.get_field_index("split")
    index = bins.index.set_column(position, bins.index.schema.field(position), pa.array(split, pa.string()))
    before = bins.summary
    summary = summarize(
        index,
        source=before.source,
        absent=before.absent,
        counts=list(data.counts),
        not_taken=before.not_taken,
        warnings=warnings,
    )
    check_no_empty_count(summary.splits, list(data.counts), has_val=data.val_fraction > 0)
    folder = bins.folder / _split_key(data)
    paths = folder / "index.parquet", folder / "items.parquet"
    for path, table in zip(paths, (index, bins.items), strict=True):
        with _writing(folder), atomic_path(path) as temporary:
            pq.write_table(table, temporary, row_group_size=ROW_GROUP)
    fingerprint = _fingerprint(index)
    release_memory()
    return PreparedBins(index, bins.items, *paths, fingerprint, summary)


def _split(
    labelled: pa.Table, data: DataConfig, split_list: Mapping[str, int] | None
) -> tuple[Sequence[str | None], tuple[str, ...]]:
    """Return the split of each labelled bin, None where it is in no list, and warnings."""
    quantities = labelled["quantity"].to_pylist()
    fractions = {"test_fraction": data.test_fraction, "val_fraction": data.val_fraction, "seed": data.split_seed}
    if data.split == "report":
        if split_list is None:
            split_list = dict(zip(labelled["id"].to_pylist(), quantities, strict=True))
        split_of = report_split(split_list, counts=list(data.counts), **fractions)  # type: ignore[arg-type]
        return [split_of.get(bin_id) for bin_id in Column[str](labelled["id"])], ()
    groups = labelled["group"].combine_chunks()
    split = grouped_split(quantities, groups, **fractions)  # type: ignore[arg-type]
    warnings = _deviations(split, quantities)
    if (
        pc.count_distinct(groups).as_py() == len(groups)
        and not pc.any(pc.greater(labelled["distinct_asins"], 0)).as_py()
    ):
        warnings = (
            "no groups and no ASINs: photos of one bin may be parted by the split; name a group column",
            *warnings,
        )
    return split, warnings


def _deviations(splits: Sequence[str], quantities: Sequence[int]) -> tuple[str, ...]:
    warnings = []
    for split in (VAL, TEST):
        if split in splits:
            deviation, count = share_deviation(splits, quantities, split)
            if deviation > MAX_SHARE_DEVIATION:
                points = f"{100 * deviation:.1f} points"
                warnings.append(f"the share of count {count} in {split} is {points} off: too few groups to balance")
    return tuple(warnings)


def _judge(index: pa.Table, summary: Summary, data: DataConfig) -> None:
    """Apply `data.on_bad` and `data.max_bad_fraction`."""
    if not summary.num_bad:
        return
    found = f"{summary.num_bad:,} of {summary.total:,} bins of data.source={data.source} cannot be used"
    if data.on_bad == "fail":
        bad = index.select(["id", "problem"]).filter(pc.is_valid(index["problem"]))
        first = examples_of(rows_of(bad))
        raise InputError(f"data.on_bad=fail: {found}, first {first}; mend or remove them, or set data.on_bad=skip")
    reasons = "; ".join(line.removeprefix("bad: ") for line in summary.bad_lines()[:3])
    share = summary.num_bad / summary.total
    if share > data.max_bad_fraction:
        limit = f"data.max_bad_fraction={data.max_bad_fraction}"
        raise InputError(f"{limit}: {found}, a share of {share:.3f}: {reasons}; mend the source or raise the limit")
    if summary.num_bad == summary.total:
        raise InputError(f"{found}: {reasons}")
    print(f"warning: {found} and are skipped (data.on_bad=skip)", *summary.bad_lines(), sep="\n  ", file=sys.stderr)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Make the folder; that it cannot be made or written to is the user's to mend."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"paths.cache_dir: {folder} cannot be written to ({reason}); name another folder") from error


def _files_of_bad_bins(bins: Sequence[BinFiles], index: pa.Table) -> Iterator[Path]:
    for place in np.flatnonzero(pc.is_valid(index["problem"]).to_numpy()).tolist():
        files = bins[place]
        yield from (path for path in (files.photo, files.metadata) if path is not None)


def _source_key(data: DataConfig, server: str | None) -> str:
    location = str(Path(data.source).resolve()) if Path(data.source).exists() else data.source
    reader = OmegaConf.to_container(data.reader) if OmegaConf.is_config(data.reader) else data.reader
    parts = {"source": location, "reader": reader, "file_list": data.file_list, "limit": data.limit}
    return _key(parts if server is None else parts | {"server": server})  # of AWS's the key is as it was


def _split_key(data: DataConfig) -> str:
    names = ("split", "split_list", "split_seed", "val_fraction", "test_fraction")
    return _key({name: getattr(data, name) for name in names} | {"counts": list(data.counts)})


def _key(parts: dict[str, Any]) -> str:
    text = json.dumps(parts | {"format": FORMAT}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _fingerprint(index: pa.Table) -> str:
    """Hash the lines of all split bins in their order as text, of which only some are in memory at a time."""
    table = index.select(["id", "sha256", "quantity", "split"]).filter(pc.is_valid(index["split"]))
    starts = Texts[str](map(json.dumps, Column[str](table["id"])))  # no two are equal, so the rest orders nothing
    order = pc.sort_indices(starts.table["text"]).to_numpy()
    digest = hashlib.sha256()
    for first in range(0, len(order), BATCH):
        for place, row in enumerate(rows_of(table.take(order[first : first + BATCH])), start=first):
            digest.update(b"\n" * bool(place) + json.dumps(row).encode())
    return digest.hexdigest()
