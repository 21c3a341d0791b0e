"""The index says what every bin's files hold, and reads only what changed."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Barrier, Event, current_thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from binventory.data import progress, scan
from binventory.data.index import INDEX_SCHEMA, ITEMS_SCHEMA, build_index
from binventory.data.preprocess import Preprocessing
from binventory.data.scan import channel_statistics
from binventory.data.sources.base import BinFiles, Listing
from binventory.errors import InputError

WriteBin = Callable[..., None]


def files_of(folder: Path, bin_id: str, **facts: object) -> BinFiles:
    photo, metadata = folder / "bin-images" / f"{bin_id}.jpg", folder / "metadata" / f"{bin_id}.json"
    found = {"photo": photo if photo.exists() else None, "metadata": metadata if metadata.exists() else None}
    return BinFiles(bin_id, **(found | {"needs_metadata": True} | facts))  # type: ignore[arg-type]


def by_id(index: pa.Table) -> dict[str, dict[str, object]]:
    return {row["id"]: row for row in index.to_pylist()}


@pytest.fixture
def folder(tmp_path: Path, write_bin: WriteBin) -> Path:
    for number in range(1, 7):
        write_bin(tmp_path / "bins", f"{number:05d}", number, {"A": 1, f"B{number}": number - 1})
    return tmp_path / "bins"


def listing_of(folder: Path, **facts: object) -> Listing:
    ids = sorted({path.stem for path in folder.glob("*/*")})
    return Listing(tuple(files_of(folder, bin_id, **facts) for bin_id in ids))


def test_a_good_bin(folder: Path, tmp_path: Path) -> None:
    index, items = build_index(listing_of(folder), tmp_path / "scan.parquet")
    assert index.schema.equals(INDEX_SCHEMA)
    assert items.schema.equals(ITEMS_SCHEMA)
    assert index.column_names[:12] == [
        *("id", "path", "quantity", "width", "height", "bytes", "sha256"),
        *("item_count", "distinct_asins", "group", "split", "problem"),
    ]
    row = by_id(index)["00003"]
    photo = folder / "bin-images" / "00003.jpg"
    expected = {"path": str(photo), "quantity": 3, "width": 10, "height": 8, "bytes": photo.stat().st_size}
    expected |= {"item_count": 3, "distinct_asins": 2, "group": "00001", "split": None, "problem": None, "note": None}
    assert {name: row[name] for name in expected} == expected
    pixels = Preprocessing(224).pixels(photo.read_bytes(), "3.jpg").numpy().reshape(3, -1) / 255
    assert [row[f"mean_{c}"] for c in "rgb"] == pytest.approx(pixels.mean(axis=1), rel=1e-12)
    assert [row[f"std_{c}"] for c in "rgb"] == pytest.approx(pixels.std(axis=1, ddof=1), rel=1e-12)
    assert [item for item in items.to_pylist() if item["bin_id"] == "00003"][1]["asin"] == "B3"


def test_bins_that_lack_an_asin_do_not_share_one(tmp_path: Path, write_bin: WriteBin) -> None:
    for number, asin in enumerate(["nan", "nan", "", "", "B1", "B1"]):
        write_bin(tmp_path / "bins", f"{number:05d}", 1, {asin: 1})
    index, _ = build_index(listing_of(tmp_path / "bins"), tmp_path / "scan.parquet")
    assert index["group"].to_pylist() == ["00000", "00001", "00002", "00003", "00004", "00004"]


def test_one_colour_has_no_spread() -> None:
    statistics = channel_statistics(torch.tensor([255, 0, 51], dtype=torch.uint8).view(3, 1, 1).expand(3, 224, 224))
    assert list(statistics.values()) == pytest.approx([1, 0, 0.2, 0, 0, 0])


def test_every_kind_of_bad_bin_is_named_and_the_others_stay(folder: Path, tmp_path: Path) -> None:
    (folder / "bin-images" / "00001.jpg").write_bytes(b"")
    photo = folder / "bin-images" / "00002.jpg"
    photo.write_bytes(photo.read_bytes()[:-40])
    (folder / "bin-images" / "00003.jpg").unlink()
    (folder / "metadata" / "00004.json").unlink()
    (folder / "metadata" / "00005.json").write_text("{}")
    failed = BinFiles("00007", None, problem="download failed: HTTP 500")
    listing = Listing((*listing_of(folder).bins, failed))
    rows = by_id(build_index(listing, tmp_path / "scan.parquet")[0])
    reasons = {bin_id: row["problem"] for bin_id, row in rows.items()}
    assert str(reasons.pop("00002")).startswith("truncated or corrupt: ")
    assert reasons == {
        "00001": "empty file",
        "00003": "photo is missing",
        "00004": "metadata is missing",
        "00005": "metadata has no EXPECTED_QUANTITY",
        "00006": None,
        "00007": "download failed: HTTP 500",
    }
    assert rows["00001"]["quantity"] == 1  # the label is known all the same
    assert rows["00004"]["quantity"] is None
    assert rows["00005"]["quantity"] is None


def test_without_metadata_a_bin_is_unlabelled_and_not_bad(folder: Path, tmp_path: Path) -> None:
    listing = listing_of(folder, metadata=None, needs_metadata=False)
    for row in build_index(listing, tmp_path / "scan.parquet")[0].to_pylist():
        assert (row["quantity"], row["problem"], row["item_count"]) == (None, None, None)


def test_the_label_of_the_source_wins_and_disagreement_is_noted(folder: Path, tmp_path: Path) -> None:
    (folder / "metadata" / "00004.json").write_text("{}")
    bins = tuple(files_of(folder, bin_id, quantity=3) for bin_id in ("00003", "00004", "00005"))
    rows = by_id(build_index(Listing(bins), tmp_path / "scan.parquet")[0])
    assert [row["quantity"] for row in rows.values()] == [3, 3, 3]
    assert [row["problem"] for row in rows.values()] == [None, None, None]
    assert [row["note"] for row in rows.values()] == [
        None,
        "metadata has no EXPECTED_QUANTITY",
        "the source says quantity 3, EXPECTED_QUANTITY is 5",
    ]


def test_metadata_wins_over_the_file_list_and_odd_items_are_noted(
    folder: Path, tmp_path: Path, write_bin: WriteBin
) -> None:
    write_bin(folder, "00001", 2, {"A": 3})
    bins = listing_of(folder).bins
    listing = Listing(bins, split_list={"00001": 2, "00002": 5, "00003": 3})
    rows = by_id(build_index(listing, tmp_path / "scan.parquet")[0])
    assert rows["00001"]["note"] == "item quantities sum to 3, EXPECTED_QUANTITY is 2"
    assert rows["00001"]["problem"] is None
    assert (rows["00002"]["quantity"], rows["00002"]["note"]) == (2, "the file list says 5, EXPECTED_QUANTITY is 2")
    assert rows["00003"]["note"] is None


def test_an_id_that_stands_twice_is_refused(folder: Path, tmp_path: Path) -> None:
    bins = listing_of(folder).bins
    with pytest.raises(InputError, match="bin id 00001 stands twice"):
        build_index(Listing((*bins, bins[0])), tmp_path / "scan.parquet")


def test_a_file_name_that_is_no_utf8_is_a_bad_bin(folder: Path, tmp_path: Path) -> None:
    photo = folder / "bin-images" / os.fsdecode(b"0\xe91.jpg")
    (folder / "bin-images" / "00001.jpg").rename(photo)
    index, _ = build_index(Listing((BinFiles(photo.stem, photo),)), tmp_path / "scan.parquet")
    assert index.select(["id", "problem"]).to_pylist() == [{"id": "0?1", "problem": "file name is not UTF-8"}]


def test_order_and_values_do_not_depend_on_threads_or_cache(folder: Path, tmp_path: Path) -> None:
    listing = listing_of(folder)
    fresh = build_index(listing, tmp_path / "scan.parquet")
    again = build_index(listing, tmp_path / "scan.parquet")
    backward = build_index(Listing(tuple(reversed(listing.bins))), tmp_path / "scan.parquet")
    assert fresh[0].equals(again[0])
    assert fresh[1].equals(again[1])
    assert by_id(backward[0]) == by_id(fresh[0])
    assert backward[0]["id"].to_pylist() == list(reversed(fresh[0]["id"].to_pylist()))


class Reads:
    """Names of the files under a folder that this process opens, as the interpreter's audit events report them."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)
        self.names: list[str] = []
        self.active = True
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple[object, ...]) -> None:
        if self.active and event == "open" and str(args[0]).startswith(self.folder):
            self.names.append(Path(str(args[0])).name)

    def take(self) -> set[str]:
        names, self.names = set(self.names), []
        return names


def test_only_what_is_new_or_changed_is_read_again(folder: Path, tmp_path: Path, write_bin: WriteBin) -> None:
    cache = tmp_path / "scan.parquet"
    reads = Reads(folder)
    try:
        build_index(listing_of(folder), cache)
        assert len(reads.take()) == 12
        build_index(listing_of(folder), cache)
        assert reads.take() == set()
        old = folder / "metadata" / "00002.json"
        time_ns = old.stat().st_mtime_ns
        old.write_text(json.dumps({"EXPECTED_QUANTITY": 9}))
        os.utime(old, ns=(time_ns, time_ns))  # only the size tells
        os.utime(folder / "bin-images" / "00004.jpg", ns=(time_ns + 1, time_ns + 1))  # only the time tells
        write_bin(folder, "00009", 1)
        reads.take()
        rows = by_id(build_index(listing_of(folder), cache)[0])
        assert {name[:5] for name in reads.take()} == {"00002", "00004", "00009"}
        assert rows["00002"]["quantity"] == 9
        (folder / "bin-images" / "00009.jpg").write_bytes(b"broken")
        build_index(listing_of(folder), cache)
        reads.take()
        build_index(listing_of(folder), cache)
        assert "00009.jpg" in reads.take()  # what failed is tried again
    finally:
        reads.active = False


@pytest.mark.parametrize("damage", ["truncated", "edited", "no checksum", "other columns"])
def test_a_damaged_cache_is_made_anew(folder: Path, tmp_path: Path, damage: str) -> None:
    cache, checksum = tmp_path / "scan.parquet", tmp_path / "scan.parquet.sha256"
    expected = build_index(listing_of(folder), cache)[0]
    whole = cache.read_bytes()
    if damage == "truncated":
        cache.write_bytes(whole[: len(whole) // 2])
    elif damage == "edited":
        rows = [row | {"quantity": 7} for row in scan.load_scan(cache).to_pylist()]
        pq.write_table(pa.Table.from_pylist(rows, scan.SCAN_SCHEMA), cache)
    elif damage == "no checksum":
        checksum.unlink()
    else:
        renamed = scan.SCAN_SCHEMA.set(4, pa.field("breadth", pa.int32()))
        rows = [
            {("breadth" if k == "width" else k): v for k, v in row.items()} for row in scan.load_scan(cache).to_pylist()
        ]
        pq.write_table(pa.Table.from_pylist(rows, renamed), cache)
        checksum.write_text(hashlib.sha256(cache.read_bytes()).hexdigest())
    index, items = build_index(listing_of(folder), cache)
    assert index.equals(expected)
    assert "B3" in items["asin"].to_pylist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bins", "scan.parquet", "scan.parquet.sha256"]


def test_long_work_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert list(progress.track(range(5), 5, "reading photos")) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "PATIENCE_S", 0.0)
    assert list(progress.track(range(5), 5, "reading photos")) == [0, 1, 2, 3, 4]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1  # not one a photo
    assert lines[0].startswith("reading photos: 1 of 5, ")
    assert lines[0].endswith(" left")


@pytest.fixture(scope="module")
def real_index(abid: Path, tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    listing = listing_of(abid / "udacity224")
    bins = tuple(files for files in listing.bins if files.photo is not None)
    return build_index(Listing(bins), tmp_path_factory.mktemp("cache") / "scan.parquet")[0]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_bins_are_read_by_so_many_threads_and_told_as_they_are_read(
    num_threads: int, folder: Path, tmp_path: Path, write_bin: WriteBin, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(7, 100):
        write_bin(tmp_path / "bins", f"{number:05d}", 1, {"A": 1})
    told, names, read_bin = Event(), set(), scan._read_bin
    at_once = Barrier(num_threads, timeout=10)

    def watched(files: BinFiles, place: int, staged: Any) -> Any:
        names.add(current_thread().name)
        if place % scan.CHUNK == 0 and place < num_threads * scan.CHUNK:
            at_once.wait()
        if place >= 80:
            assert told.wait(10), "nothing was told before nearly all were read"
        return read_bin(files, place, staged)

    def telling(items: Iterator[bool], total: int, label: str) -> Iterator[bool]:
        for item in items:
            told.set()
            yield item

    monkeypatch.setattr(scan, "_read_bin", watched)
    monkeypatch.setattr(scan, "track", telling)
    index, _ = build_index(listing_of(folder), tmp_path / "scan.parquet", num_workers=num_threads)
    assert (len(index), len(names)) == (99, num_threads)


@pytest.mark.abid
def test_real_photos_are_all_good_and_have_the_known_statistics(real_index: pa.Table) -> None:
    assert real_index.num_rows == 6019
    assert real_index["problem"].null_count == 6019
    mean = [np.mean(real_index[f"mean_{c}"].to_numpy()) for c in "rgb"]
    std = [np.mean(real_index[f"std_{c}"].to_numpy()) for c in "rgb"]
    assert mean == pytest.approx([0.5234, 0.4421, 0.3528], abs=0.0005)
    assert std == pytest.approx([0.1367, 0.1214, 0.0937], abs=0.0005)
    quantities = real_index["quantity"].to_pylist()
    assert [quantities.count(count) for count in range(1, 6)] == [669, 1315, 1577, 1383, 1075]
    noted = real_index.filter(pc.is_valid(real_index["note"])).to_pylist()
    assert [(row["id"], row["note"]) for row in noted] == [
        ("01405", "item quantities sum to 4, EXPECTED_QUANTITY is 5")
    ]
