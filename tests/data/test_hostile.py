"""A folder full of rotten photos and metadata: each is named and counted, the policy holds, all others are unharmed."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from binventory.data.decode import PhotoError, decode_rgb, read_photo
from binventory.data.index import build_index
from binventory.data.preprocess import Preprocessing
from binventory.data.sources.base import BinFiles, Listing
from binventory.data.sources.imagefolder import ImageFolderSource
from binventory.data.sources.table import read_rows
from binventory.data.summary import reason_lines, reason_of
from binventory.errors import InputError
from binventory.reports.contact_sheet import CELL, GAP, HEADER, save_contact_sheet
from tests.data import hostile
from tests.data.hostile import HEALTHY, encode, photo, truth
from tests.running import run_here
from tests.s3 import s3_config, upload

TOLERANT = ["data.counts=[1,2]", "data.max_bad_fraction=1", "data.val_fraction=0.3"]
UNSPLIT = ("path", "mtime_ns", "split", "group")  # what may differ between two copies of a source

Rows = dict[str, dict[str, Any]]


class Source:
    """The hostile folder in bucket layout, and what is expected of each of its bins."""

    def __init__(self, root: Path) -> None:
        self.healthy, self.folder = root / "healthy", root / "hostile"
        for folder in (self.healthy, self.folder):
            hostile.write_healthy(folder)
        self.expected = dict.fromkeys(HEALTHY) | hostile.write_hostile(self.folder)
        self.bad = {bin_id: reason for bin_id, reason in self.expected.items() if reason is not None}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return Source(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def prepare(folder: Path, *overrides: str) -> tuple[Rows, dict[str, Any]]:
    """Run `binventory prepare` and return the rows of its index, by id, and its summary."""
    done = run_here(folder, "prepare", *TOLERANT, *overrides)
    written = max(folder.glob(".cache/index/*/*/index.parquet"), key=lambda path: path.stat().st_mtime_ns)
    summary: dict[str, Any] = json.loads((done / "summary.json").read_text())
    return {row["id"]: row for row in pq.read_table(written).to_pylist()}, summary


def facts(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in UNSPLIT}


def check_rows(rows: Rows, alone: Rows, source: Source) -> None:
    assert set(rows) == set(source.expected)
    for bin_id, reason in source.expected.items():
        row = rows[bin_id]
        assert row["quantity"] in (None, truth(bin_id)), "never a wrong label"
        if reason is None:
            assert (row["problem"], row["quantity"]) == (None, truth(bin_id)), bin_id
            assert row["split"] in ("train", "val", "test")
        else:
            assert str(row["problem"]).startswith(reason), (bin_id, row["problem"])
            assert row["split"] is None
        for text in (row["problem"], row["note"]):
            assert text is None or (text.isprintable() and len(text) < 1000)
    for bin_id in HEALTHY:
        assert facts(rows[bin_id]) == facts(alone[bin_id]), "the others are unharmed"


@pytest.fixture(scope="module")
def alone(source: Source, folder: Path) -> Rows:
    """The healthy bins' rows in a source of their own."""
    rows, summary = prepare(folder, "data=abid", f"data.source={source.healthy}")
    assert summary["bad"] == {}
    return rows


def test_bucket(source: Source, alone: Rows, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, summary = prepare(folder, "data=abid", f"data.source={source.folder}")
    check_rows(rows, alone, source)
    for bin_id, (_, size) in hostile.odd_photos().items():
        assert (rows[bin_id]["width"], rows[bin_id]["height"]) == size
    for bin_id, (_, note) in hostile.odd_metadata().items():
        assert note in rows[bin_id]["note"]
    assert summary["total"] == len(source.expected)
    assert sorted(bin_id for ids in summary["bad"].values() for bin_id in ids) == sorted(source.bad)
    said = capsys.readouterr()
    assert f"warning: {len(source.bad)} of {len(source.expected)} bins of data.source={source.folder}" in said.err
    assert f"left out: {len(source.bad)} bad" in said.out
    assert "\x1b" not in said.out + said.err
    assert len(said.err.splitlines()) < 20


def test_image_folder(source: Source, alone: Rows, folder: Path, tmp_path: Path) -> None:
    """The label is the folder's name; what metadata could say does not count."""
    tree = tmp_path / "tree"
    for bin_id in source.expected:
        target = tree / str(truth(bin_id)) / f"{bin_id}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.folder / "bin-images" / f"{bin_id}.jpg", target)
    rows, _ = prepare(folder, "data=imagefolder", f"data.source={tree}")
    bad = hostile.bad_photos()
    for bin_id, row in rows.items():
        assert row["quantity"] == truth(bin_id)
        reason = bad[bin_id][1] if bin_id in bad else None
        assert row["problem"] is None if reason is None else row["problem"].startswith(reason)
    for bin_id in HEALTHY:
        assert rows[bin_id]["sha256"] == alone[bin_id]["sha256"]
    assert len(rows) == len(source.expected)


def test_no_picture_of_a_tree_is_left_out_unseen(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = {"jpg": "JPEG", "webp": "WEBP", "BMP": "BMP", "jfif": "JPEG", "Tif": "TIFF"}
    for number in range(40):
        ending = [*kinds][number % 5]
        target = tmp_path / "tree" / str(1 + number // 20) / f"{number}.{ending}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encode(photo(number), kinds[ending]))
    for name in ("1/p.heic", "1/q.gif", "2/r.heic"):
        (tmp_path / "tree" / name).write_bytes(b"a picture")
    (tmp_path / "tree/2/0.png").write_bytes(encode(photo(0), "JPEG"))  # one name in two folders, and another content
    arguments = ("data=imagefolder", f"data.source={tmp_path}/tree", "layout=imagefolder", f"output={tmp_path}/export")
    rows, summary = prepare(folder, *arguments)
    said = capsys.readouterr().out
    assert "41 bins" in said
    assert (
        "left out: 3 files that look like photos are not read (2 .heic, 1 .gif), e.g. 1/p.heic, 1/q.gif, 2/r.heic"
        in said
    )
    assert "noted: 2 used all the same, e.g. 1__0.jpg, 2__0.png (its file name stands more than once" in said
    assert summary["not_taken"] == ["1/p.heic", "1/q.gif", "2/r.heic"]
    assert {(row["problem"], row["width"], row["height"]) for row in rows.values()} == {(None, 48, 32)}
    assert {"1__0.jpg", "2__0.png"} < set(rows)
    again, _ = prepare(
        folder, "data=imagefolder", f"data.source={tmp_path}/export/test"
    )  # with endings that others know
    exported = [path.suffix for path in (tmp_path / "export").glob("t*/*/*")]
    assert set(exported) == {".jpg", ".webp", ".bmp", ".tif", ".png"}
    assert len(exported) == 41
    assert {row["sha256"] for row in again.values()} <= {row["sha256"] for row in rows.values()}


def test_table(source: Source, folder: Path, tmp_path: Path) -> None:
    cells = {"value_00": "-1", "value_01": "99999999999", "value_02": "nan", "value_03": "1.5", "value_04": "one"}
    lines = [f"{source.folder}/bin-images/{name}.jpg,{cells.get(name, truth(name))}" for name in source.expected]
    odd = f'"{tmp_path}/a\nb.jpg",1\n{tmp_path}/../../etc/passwd,1\n/dev/zero,2\n"\x1b[2J{"x" * 300}.jpg",2\n'
    # Arrow reads a megabyte at a time, and must not take a line end in a name for the end of a row
    name = "line end\n" * 200
    long = "".join(f'"{name}{number}.jpg",1\n' for number in range(2000))
    (tmp_path / "long.csv").write_text("path,quantity\n" + long)
    assert len(read_rows(str(tmp_path / "long.csv"), s3_config(""))) == 2000
    (tmp_path / "t.csv").write_text("path,quantity\n" + "\n".join(lines) + "\n" + odd)
    rows, _ = prepare(folder, "data=table", f"data.source={tmp_path}/t.csv")
    bad = hostile.bad_photos()
    assert len(rows) == len(source.expected) + 4
    for bin_id in source.expected:
        row = rows[bin_id]
        assert row["quantity"] == (None if bin_id in cells else truth(bin_id))
        is_bad = bin_id in bad or cells.get(bin_id, "nan") != "nan"
        assert (row["problem"] is not None) == is_bad, (bin_id, row["problem"])
    others = [row for bin_id, row in rows.items() if bin_id not in source.expected]
    assert all(row["problem"] is not None and row["split"] is None for row in others)
    reasons = {"name cannot be a bin id", "no photo at its path", "file is not a regular file"}
    assert {row["problem"].split(":")[0] for row in others} == reasons


def test_s3(source: Source, alone: Rows, folder: Path, s3_server: str) -> None:
    upload(s3_server, "hostile", source.folder)
    rows, _ = prepare(folder, "data=abid", "data.source=s3://hostile", f"s3.endpoint_url={s3_server}")
    check_rows(rows, alone, source)


def test_default_policy_refuses_so_many(source: Source, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for task in ("prepare", "train"):
        with pytest.raises(SystemExit) as exit_:
            run_here(folder, task, "data=abid", f"data.source={source.folder}", "data.counts=[1,2]")
        assert exit_.value.code == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"data.max_bad_fraction=0.05: {len(source.bad)} of {len(source.expected)} bins" in error


def test_on_bad_fail_names_it(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile.write_healthy(tmp_path)
    hostile.write_bucket(tmp_path, "200000", jpeg := encode(photo(1)), hostile.stated(float("nan")))
    hostile.write_bucket(tmp_path, "200010", jpeg[:-100], hostile.stated(1))
    with pytest.raises(SystemExit) as exit_:
        run_here(folder, "prepare", *TOLERANT, "data=abid", f"data.source={tmp_path}", "data.on_bad=fail")
    assert exit_.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "data.on_bad=fail: 2 of 42 bins" in error
    assert "200000 (EXPECTED_QUANTITY is no whole number from 0 to 1000000: nan); 200010 (truncated" in error


def test_train_learns_from_the_others_only(source: Source, folder: Path) -> None:
    done = run_here(
        folder,
        "train",
        *TOLERANT,
        *("data=abid", f"data.source={source.folder}", "data.image_size=32", "data.resize=crop", "model=tiny"),
        *("trainer.max_epochs=1", "data.num_workers=0", "trainer.accelerator=cpu"),
    )
    with (done / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows} <= {bin_id for bin_id, reason in source.expected.items() if reason is None}
    assert all(int(row["quantity"]) == truth(row["id"]) and row["error"] == "" for row in rows)
    assert json.loads((done / "metrics.json").read_text())["test"]["num_images"] == len(rows) > 5


def test_predict(source: Source, trained: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"not\xffutf8.jpg")
    (source.folder / "bin-images" / name).write_bytes(encode(photo(3)))
    found = {}
    try:
        for location in (source.healthy, source.folder):
            done = run_here(folder, "predict", f"run={trained}", f"input={location}", "contact_sheet=200")
            with (done / "predictions.csv").open(newline="") as file:
                found[location] = {row["id"]: row for row in csv.DictReader(file)}
            assert (done / "contact_sheet.png").stat().st_size > 10_000
    finally:
        (source.folder / "bin-images" / name).unlink()
    rows, bad = found[source.folder], hostile.bad_photos()
    odd_name = [bin_id for bin_id in rows if bin_id not in source.expected]
    assert len(odd_name) == 1
    assert rows[odd_name[0]]["error"] == ""
    assert set(rows) - set(odd_name) == set(source.expected)
    for bin_id in source.expected:
        row = rows[bin_id]
        assert row["quantity"] in ("", str(truth(bin_id)))
        assert (row["error"] != "") == (bin_id in bad), (bin_id, row["error"])
        if bin_id in bad:
            assert f"{bin_id}.jpg: {bad[bin_id][1]}" in row["error"]
            assert row["predicted"] == ""
    for bin_id in HEALTHY:
        for column in ("quantity", "predicted"):
            assert rows[bin_id][column] == found[source.healthy][bin_id][column]
    said = capsys.readouterr()
    assert f"{len(rows) - len(bad)} of {len(rows)} photos predicted, {len(bad)} could not be read" in said.out
    assert f"warning: {len(hostile.bad_metadata())} recorded quantities cannot be used" in said.err
    assert "x EXPECTED_QUANTITY is no whole number from 0 to 1000000, e.g. value_00" in said.err


def test_contact_sheet_shows_a_photo_whose_name_is_no_utf8(trained: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"not\xffutf8.jpg")).write_bytes(encode(photo(3)))
    done = run_here(folder, "predict", f"run={trained}", f"input={tmp_path}")
    sheet = decode_rgb((done / "contact_sheet.png").read_bytes(), "contact_sheet.png")
    cell = sheet.crop((GAP, HEADER, GAP + CELL, HEADER + CELL)).convert("L")
    assert np.asarray(cell).std() > 20, "it is noise, not the grey of a photo that is gone"


def test_predict_takes_an_index_that_was_edited_by_hand(
    source: Source, alone: Rows, trained: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [dict(row) for row in alone.values()][:6]
    paths = [row["path"] for row in rows]
    for row, quantity in zip(rows, ("2", "-5", "1e3", "", "99999999999999999999", "2"), strict=True):
        row["quantity"] = quantity
    rows[5]["path"] = str(tmp_path / "..\x1b[2J\n.jpg")
    table = pa.Table.from_pylist([{name: row[name] for name in ("id", "path", "quantity", "note")} for row in rows])
    pq.write_table(table, tmp_path / "index.parquet")
    done = run_here(folder, "predict", f"run={trained}", f"input={tmp_path}/index.parquet")
    with (done / "predictions.csv").open(newline="") as file:
        predicted = list(csv.DictReader(file))
    assert [row["id"] for row in predicted] == [row["id"] for row in rows]
    assert [row["quantity"] for row in predicted] == ["2", "", "", "", "", "2"]
    assert [row["path"] for row in predicted[:5]] == paths[:5]
    assert [row["error"] for row in predicted[:5]] == [""] * 5
    assert predicted[5]["error"].startswith("no photo at its path: ")
    assert predicted[5]["error"].isprintable()
    assert "warning: 3 recorded quantities cannot be used" in capsys.readouterr().err


def test_photo_that_goes_while_it_is_predicted_costs_its_cell_only(
    source: Source, trained: Path, folder: Path, tmp_path: Path
) -> None:
    rows = [{"id": "1", "path": "x", "quantity": 1, "predicted": 2, "p_1": 0.4, "p_2": 0.6}]
    save_contact_sheet(tmp_path / "sheet.png", rows, [tmp_path / "gone.jpg"], [1, 2], 5, Preprocessing(32))
    assert decode_rgb((tmp_path / "sheet.png").read_bytes(), "sheet.png").width > 200


def test_groups_table_that_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    """Passed over, photos of one bin would be parted by the split without a word."""
    (tmp_path / "tree" / "1").mkdir(parents=True)
    (tmp_path / "tree" / "1" / "a.jpg").write_bytes(encode(photo(1)))
    (tmp_path / "tree_meta.csv").write_text("id,group\na," + "x" * 200_000)
    source = ImageFolderSource(str(tmp_path / "tree"), file_list=None, limit=None, s3=s3_config(""), data_dir="unused")
    with pytest.raises(InputError, match=r"data\.source: .*tree_meta\.csv: cannot be read as csv: field larger"):
        source.fetch()


def test_problem_of_a_table_is_shown_without_its_terminal_codes(tmp_path: Path) -> None:
    listing = Listing((BinFiles("1", None, problem="bad\x1b[2J\nand worse"),))
    index, _ = build_index(listing, tmp_path / "scan.parquet")
    assert index["problem"].to_pylist() == ["bad\\x1b[2J\\nand worse"]


def test_reasons_are_what_bins_share_and_few() -> None:
    assert reason_of("s3://bins/a.jpg: gave up after 3 attempts: HTTP 500") == "gave up after 3 attempts"
    both = "s3://bins/a.jpg: access denied (HTTP 403); s3://bins/a.json: access denied (HTTP 403)"
    assert reason_of(both) == "access denied (HTTP 403)"
    assert reason_of("no photo at its path: /a: b.jpg") == "no photo at its path"
    assert reason_of("empty file") == "empty file"
    lines = reason_lines({f"reason {number:02d}": ["1", "2", "3", "4"] for number in range(12)})
    assert lines[0] == "4 x reason 00, e.g. 1, 2, 3"
    assert lines[9:] == ["4 x reason 09, e.g. 1, 2, 3", "8 for 2 other reasons"]


# What is kept between runs


def test_edited_index_is_written_anew(source: Source, alone: Rows, folder: Path) -> None:
    for written in folder.glob(".cache/index/*/*/index.parquet"):
        table = pq.read_table(written)
        swapped = pa.array([3 - (quantity or 0) for quantity in table["quantity"].to_pylist()], pa.int32())
        pq.write_table(table.set_column(2, "quantity", swapped), written)
    rows, _ = prepare(folder, "data=abid", f"data.source={source.healthy}")
    assert {bin_id: facts(row) for bin_id, row in rows.items()} == {bin_id: facts(row) for bin_id, row in alone.items()}


def one_bin(folder: Path, bin_id: str = "1") -> Listing:
    photo_path, metadata = folder / "bin-images" / f"{bin_id}.jpg", folder / "metadata" / f"{bin_id}.json"
    return Listing((BinFiles(bin_id, photo_path, metadata, needs_metadata=True),))


def test_label_that_changed_without_size_or_time_is_noticed(tmp_path: Path) -> None:
    hostile.write_bucket(tmp_path, "1", encode(photo(1)), hostile.stated(1))
    assert build_index(one_bin(tmp_path), tmp_path / "scan.parquet")[0]["quantity"].to_pylist() == [1]
    metadata = tmp_path / "metadata" / "1.json"
    before = metadata.stat()
    metadata.write_bytes(hostile.stated(2))  # as unpacking an archive does, times included
    os.utime(metadata, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert metadata.stat().st_size == before.st_size
    assert build_index(one_bin(tmp_path), tmp_path / "scan.parquet")[0]["quantity"].to_pylist() == [2]


def test_files_from_the_far_future_and_past(tmp_path: Path) -> None:
    hostile.write_bucket(tmp_path, "1", encode(photo(1)), hostile.stated(1))
    for seconds in (10**10, -(2**31)):  # the first is beyond what 63 bits hold in nanoseconds
        os.utime(tmp_path / "bin-images" / "1.jpg", (seconds, seconds))
        os.utime(tmp_path / "metadata" / "1.json", (seconds, seconds))
        for _ in "again":
            index, _ = build_index(one_bin(tmp_path), tmp_path / "scan.parquet")
            assert index.select(["quantity", "problem"]).to_pylist() == [{"quantity": 1, "problem": None}]


def test_scan_cache_of_another_make_is_not_believed(tmp_path: Path) -> None:
    """Also where its checksum is right: somebody may have put both there."""
    hostile.write_bucket(tmp_path, "1", encode(photo(1)), hostile.stated(1))
    cache = tmp_path / "scan.parquet"
    for content in (b"", b"PAR1 and no table PAR1", b"\xff" * 1000):
        cache.write_bytes(content)
        (tmp_path / "scan.parquet.sha256").write_text(hashlib.sha256(content).hexdigest() + "\n")
        assert build_index(one_bin(tmp_path), cache)[0]["quantity"].to_pylist() == [1]


@pytest.mark.abid
def test_real_photos_cut_at_every_kilobyte_are_refused(abid: Path) -> None:
    num_cuts = 0
    for path in sorted((abid / "native" / "bin-images").iterdir())[::40]:
        data = read_photo(path)
        for size in range(0, len(data) - 1, 1024):
            for damaged in (data[:size], data[:size] + bytes(len(data) - size)):
                with pytest.raises(PhotoError):
                    decode_rgb(damaged, path.name)
                num_cuts += 1
    assert num_cuts > 500
