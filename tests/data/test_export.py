"""The exported tree holds the same photos and the same split."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from binventory.data.export import export_imagefolder
from binventory.data.prepare import PreparedBins, prepare_bins
from binventory.errors import ConfigError, InputError
from tests.data.test_prepare import config


@pytest.fixture
def folder(tmp_path: Path, write_bin: Callable[..., None]) -> Path:
    for number in range(40):
        write_bin(tmp_path / "bins", f"{number * 10:05d}", 1 + number % 2)
    write_bin(tmp_path / "bins", "90000", 7)
    return tmp_path / "bins"


@pytest.fixture
def bins(tmp_path: Path, folder: Path) -> PreparedBins:
    return prepare_bins(*config(tmp_path, folder))


def read_meta(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_tree_and_tables_hold_every_split_bin_once(bins: PreparedBins, folder: Path, tmp_path: Path) -> None:
    output = export_imagefolder(bins, tmp_path / "tree")
    expected = {row["id"]: row for row in bins.index.to_pylist() if row["split"] is not None}
    photos = {path.stem: path for path in output.glob("*/*/*")}
    assert set(photos) == set(expected)
    assert "90000" not in photos
    for part in ("train", "test"):
        for row in read_meta(output / f"{part}_meta.csv"):
            truth = expected.pop(row["id"])
            assert row["path"] == f"{part}/{truth['quantity']}/{row['id']}.jpg"
            assert photos[row["id"]] == output / row["path"]
            assert photos[row["id"]].read_bytes() == (folder / "bin-images" / f"{row['id']}.jpg").read_bytes()
            assert row["split"] == truth["split"]
            assert (row["split"] == "test") == (part == "test")
            assert row["sha256"] == truth["sha256"]
    assert expected == {}


def test_an_interrupted_export_goes_on_where_it_was(bins: PreparedBins, tmp_path: Path) -> None:
    output = export_imagefolder(bins, tmp_path / "tree")
    photos = sorted(output.glob("*/*/*"))
    (output / "test_meta.csv").unlink()
    photos[0].unlink()
    kept = {path: path.stat().st_ctime_ns for path in photos[1:]}
    export_imagefolder(bins, output)
    assert photos[0].exists()
    assert (output / "test_meta.csv").exists()
    assert {path: path.stat().st_ctime_ns for path in photos[1:]} == kept


def test_another_split_is_never_mixed_in(bins: PreparedBins, folder: Path, tmp_path: Path) -> None:
    output = export_imagefolder(bins, tmp_path / "tree")
    before = sorted(output.rglob("*"))
    other = prepare_bins(*config(tmp_path, folder, split_seed=1))
    with pytest.raises(ConfigError, match=r"output=.*tree: holds an export of other bins or another split"):
        export_imagefolder(other, output)
    assert sorted(output.rglob("*")) == before


def test_a_folder_with_other_things_is_refused(bins: PreparedBins, tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "thesis.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"output=.*tree: not empty and no export of ours"):
        export_imagefolder(bins, tmp_path / "tree")
    with pytest.raises(ConfigError, match=r"output=.*thesis.txt: cannot be written to"):
        export_imagefolder(bins, tmp_path / "tree" / "thesis.txt")


def test_a_photo_that_changed_since_is_refused(bins: PreparedBins, folder: Path, tmp_path: Path) -> None:
    (folder / "bin-images" / "00010.jpg").write_bytes(b"other")
    with pytest.raises(InputError, match=r"00010\.jpg: changed since it was read; prepare again"):
        export_imagefolder(bins, tmp_path / "tree")
    (folder / "bin-images" / "00010.jpg").unlink()
    with pytest.raises(InputError, match=r"00010\.jpg: No such file or directory; the source changed"):
        export_imagefolder(bins, tmp_path / "tree")
    assert not (tmp_path / "tree" / "train_meta.csv").exists()
