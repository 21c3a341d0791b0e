"""Preparing: a source becomes an index on disk, with every bin accounted for."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from binventory.config.schema import DataConfig, PathsConfig, PrepareConfig, S3Config
from binventory.data.index import INDEX_SCHEMA, ITEMS_SCHEMA
from binventory.data.prepare import PreparedBins, prepare_bins
from binventory.errors import ConfigError, InputError
from binventory.tasks import prepare
from tests.running import ROOT

Prepare = Callable[..., PreparedBins]

DATA = {
    "reader": {"_target_": "binventory.data.sources.bucket.BucketSource"},
    **{"file_list": None, "limit": None, "split": "grouped", "split_list": None, "split_seed": 0},
    **{"val_fraction": 0.2, "test_fraction": 0.2, "counts": [1, 2], "on_bad": "skip", "max_bad_fraction": 0.5},
    "num_workers": None,
}
S3 = {
    "anonymous": True,
    "endpoint_url": None,
    "region": None,
    "max_concurrency": 2,
    "max_attempts": 1,
    "timeout_s": 1.0,
}


def config(root: Path, source: Path, **data: Any) -> tuple[DataConfig, S3Config, PathsConfig]:
    paths = {"output_dir": str(root / "outputs"), "data_dir": str(root / "data"), "cache_dir": str(root / "cache")}
    merged = DATA | {"source": str(source)} | data
    return tuple(  # type: ignore[return-value]
        OmegaConf.merge(OmegaConf.structured(schema), values)
        for schema, values in ((DataConfig, merged), (S3Config, S3), (PathsConfig, paths))
    )


@pytest.fixture
def folder(tmp_path: Path, write_bin: Callable[..., None]) -> Path:
    """40 bins of quantity 1 and 2, the ids 00000 and 00001, 00004 and 00005, … showing one bin each."""
    for number in range(40):
        write_bin(
            tmp_path / "bins", f"{number * 2 - number % 2:05d}", 1 + number % 2, {f"A{number // 2}": 1 + number % 2}
        )
    return tmp_path / "bins"


@pytest.fixture
def prepare_folder(tmp_path: Path, folder: Path) -> Prepare:
    return lambda **data: prepare_bins(*config(tmp_path, folder, **data))


def splits_of(bins: PreparedBins) -> dict[str, str | None]:
    return dict(zip(bins.index["id"].to_pylist(), bins.index["split"].to_pylist(), strict=True))


def damage(folder: Path, bin_id: str) -> None:
    (folder / "bin-images" / f"{bin_id}.jpg").write_bytes(b"no photo")


def test_what_is_written_is_what_is_returned(prepare_folder: Prepare) -> None:
    bins = prepare_folder()
    assert pq.read_table(bins.index_path).equals(bins.index)
    assert pq.read_table(bins.items_path).equals(bins.items)
    assert bins.index.schema.equals(INDEX_SCHEMA)
    assert bins.items.schema.equals(ITEMS_SCHEMA)
    assert (bins.index_path.name, bins.items_path.name) == ("index.parquet", "items.parquet")
    assert Counter(splits_of(bins).values()) == {"train": 26, "val": 6, "test": 8}


def test_siblings_stay_together(prepare_folder: Prepare) -> None:
    rows = prepare_folder().index.to_pylist()
    assert len({row["group"] for row in rows}) == 20
    assert len({(row["group"], row["split"]) for row in rows}) == 20


def test_grouped_split_ignores_the_order_and_the_file_list(prepare_folder: Prepare, folder: Path) -> None:
    expected = splits_of(prepare_folder())
    ids = sorted(expected, reverse=True)
    lists = {"2": [f"data/metadata/{i}.json" for i in ids[:20]], "1": [f"data/metadata/{i}.json" for i in ids[20:]]}
    (folder / "file_list.json").write_text(json.dumps(lists))
    assert splits_of(prepare_folder()) == expected


@pytest.mark.parametrize("split", ["grouped", "report"])
def test_a_broken_photo_moves_no_other_bin(prepare_folder: Prepare, folder: Path, split: str) -> None:
    before = splits_of(prepare_folder(split=split))
    damage(folder, "00004")
    after = splits_of(prepare_folder(split=split))
    assert before["00004"] is not None
    assert after == before | {"00004": None}


@pytest.mark.parametrize("split", ["grouped", "report"])
def test_val_fraction_zero_leaves_no_val(prepare_folder: Prepare, split: str) -> None:
    with_val = splits_of(prepare_folder(split=split))
    without = splits_of(prepare_folder(split=split, val_fraction=0.0))
    assert set(without.values()) == {"train", "test"}
    assert [i for i, s in with_val.items() if s == "test"] == [i for i, s in without.items() if s == "test"]


def test_report_split_goes_by_the_split_list(prepare_folder: Prepare, folder: Path, tmp_path: Path) -> None:
    ids = sorted(path.stem for path in (folder / "bin-images").iterdir())
    elsewhere = [f"9{n:05d}" for n in range(60)]  # listed, but not in this source
    listed = {"1": ids[:20:2] + elsewhere[:30], "2": elsewhere[30:] + ids[1:20:2]}
    split_list = tmp_path / "list.json"
    split_list.write_text(
        json.dumps({c: [f"data/metadata/{i}.json" for i in entries] for c, entries in listed.items()})
    )
    bins = prepare_folder(split="report", split_list=str(split_list))
    from sklearn.model_selection import train_test_split

    order = listed["1"] + listed["2"]
    _, test = train_test_split(order, test_size=0.2, stratify=[1] * 40 + [2] * 40, random_state=0)
    assert {i for i, s in splits_of(bins).items() if s == "test"} == set(test) & set(ids)
    assert bins.summary.unlisted == 20
    assert "left out: 20 not in the split list" in bins.summary.lines()


def test_absent_ids_are_counted_and_not_bad(prepare_folder: Prepare, folder: Path) -> None:
    ids = sorted(path.stem for path in (folder / "bin-images").iterdir())
    (folder / "file_list.json").write_text(
        json.dumps({"1": [f"data/metadata/{i}.json" for i in [*ids, "70000", "70001"]]})
    )
    bins = prepare_folder(on_bad="fail")
    assert (bins.summary.total, bins.summary.absent, bins.summary.num_bad) == (40, 2, 0)
    assert bins.summary.lines()[0].endswith(": 40 bins, 2 listed ones are absent")


def test_every_bin_is_accounted_for(
    prepare_folder: Prepare, folder: Path, write_bin: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    write_bin(folder, "80000", 0)
    write_bin(folder, "80010", 7)
    write_bin(folder, "80020", 7)
    write_bin(folder, "80030", 1, {"A": 3})
    damage(folder, "00000")
    damage(folder, "00004")
    (folder / "metadata" / "00008.json").unlink()
    capsys.readouterr()
    bins = prepare_folder()
    summary = bins.summary
    assert summary.bad == {
        "neither JPEG nor PNG, WebP, BMP or TIFF": ["00000", "00004"],
        "metadata is missing": ["00008"],
    }
    assert summary.other_quantities == {0: 1, 7: 2}
    assert summary.noted == {"80030": "item quantities sum to 3, EXPECTED_QUANTITY is 1"}
    split = sum(sum(sizes.values()) for sizes in summary.splits.values())
    assert (summary.total, split) == (44, 38)
    assert split + summary.num_bad + summary.unlabelled + sum(summary.other_quantities.values()) == summary.total
    text = "\n".join(summary.lines())
    for line in (
        "left out: 3 bad",
        "left out: 3 of a quantity outside data.counts (0: 1, 7: 2)",
        "bad: 2 x neither JPEG nor PNG, WebP, BMP or TIFF, e.g. 00000, 00004",
        "noted: 1 used all the same, e.g. 80030 (item quantities sum to 3, EXPECTED_QUANTITY is 1)",
    ):
        assert line in text.splitlines()
    spoken = capsys.readouterr().err
    assert "warning: 3 of 44 bins of data.source=" in spoken
    assert "bad: 1 x metadata is missing, e.g. 00008" in spoken
    rows = {row["id"]: row for row in bins.index.to_pylist()}
    assert rows["80010"]["split"] is None  # left out, not clipped to 2
    assert rows["80010"]["quantity"] == 7


def test_unlabelled_bins_are_left_out(tmp_path: Path, folder: Path) -> None:
    table = tmp_path / "table.csv"
    photos = sorted((folder / "bin-images").iterdir())
    rows = [f"{photo},{'' if n == 0 else 1 + n % 2}" for n, photo in enumerate(photos)]
    table.write_text("path,quantity\n" + "\n".join(rows) + "\n")
    reader = {"_target_": "binventory.data.sources.table.TableSource"}
    bins = prepare_bins(*config(tmp_path, table, reader=reader))
    assert (bins.summary.unlabelled, bins.summary.num_bad) == (1, 0)
    assert bins.index["quantity"].null_count == 1
    assert bins.index["split"].null_count == 1


def test_on_bad_fail_names_the_first_of_each_reason(prepare_folder: Prepare, folder: Path) -> None:
    for bin_id in ("00000", "00004", "00008", "00012"):
        damage(folder, bin_id)
    (folder / "bin-images/00016.jpg").write_bytes(b"")
    pattern = (
        r"data\.on_bad=fail: 5 of 40 bins of data\.source=.* first "
        r"00000, 00004, 00008, … \(neither JPEG nor PNG, WebP, BMP or TIFF\); 00016 \(empty file\); mend"
    )
    with pytest.raises(InputError, match=pattern):
        prepare_folder(on_bad="fail")


def test_too_many_bad_bins_end_with_the_worst_reasons(prepare_folder: Prepare, folder: Path) -> None:
    damage(folder, "00000")
    damage(folder, "00004")
    prepare_folder(max_bad_fraction=0.05)  # 2 of 40 are not more than that
    (folder / "metadata" / "00008.json").write_text("{}")
    pattern = (
        r"data\.max_bad_fraction=0\.05: 3 of 40 .* share of 0\.075: 2 x neither JPEG nor PNG.*; 1 x metadata has no EXP"
    )
    with pytest.raises(InputError, match=pattern):
        prepare_folder(max_bad_fraction=0.05)


def test_nothing_usable_is_an_error(prepare_folder: Prepare, folder: Path) -> None:
    for photo in (folder / "bin-images").iterdir():
        photo.write_bytes(b"")
    with pytest.raises(InputError, match=r"40 of 40 bins .* cannot be used: 40 x empty file"):
        prepare_folder(max_bad_fraction=1.0)


def test_no_bin_of_the_counts_is_an_error(prepare_folder: Prepare) -> None:
    with pytest.raises(InputError, match=r"no bin has a quantity of data\.counts=\[8, 9\]"):
        prepare_folder(counts=[8, 9])


def test_a_count_without_test_bins_is_refused(
    prepare_folder: Prepare, folder: Path, write_bin: Callable[..., None]
) -> None:
    write_bin(folder, "80000", 3)
    with pytest.raises(ConfigError, match=r"data\.counts=\[1, 2, 3\]: no bin with quantity 3 in val and test"):
        prepare_folder(counts=[1, 2, 3])
    prepare_folder(counts=[1, 2])


def test_few_groups_are_warned_about(prepare_folder: Prepare, folder: Path, write_bin: Callable[..., None]) -> None:
    assert prepare_folder().summary.warnings == ()
    for number in range(0, 240, 2):  # one chain of siblings that holds most of quantity 1
        write_bin(folder, f"{90000 + number}", 1, {"A": 1})
    assert any("in test is 37.5 points off" in warning for warning in prepare_folder().summary.warnings)


def test_fingerprint_follows_the_data_and_the_split_only(
    prepare_folder: Prepare, folder: Path, tmp_path: Path, write_bin: Callable[..., None]
) -> None:
    first = prepare_folder()
    assert re.fullmatch("[0-9a-f]{64}", first.fingerprint)
    moved = tmp_path / "moved"
    folder.rename(moved)
    second = prepare_bins(*config(tmp_path, moved))
    assert second.fingerprint == first.fingerprint
    assert second.index_path != first.index_path
    third = prepare_bins(*config(tmp_path, moved, split_seed=1))
    assert third.fingerprint != first.fingerprint
    assert third.index_path.parent.parent == second.index_path.parent.parent  # photos are read once for both
    photo = moved / "bin-images" / "00004.jpg"
    photo.write_bytes((moved / "bin-images" / "00005.jpg").read_bytes())
    assert prepare_bins(*config(tmp_path, moved)).fingerprint != first.fingerprint


def test_pixel_statistics_are_those_of_train(prepare_folder: Prepare) -> None:
    bins = prepare_folder()
    train = [row for row in bins.index.to_pylist() if row["split"] == "train"]
    mean, std = bins.pixel_statistics()
    assert mean == pytest.approx([sum(row[f"mean_{c}"] for row in train) / len(train) for c in "rgb"])
    assert std == pytest.approx([sum(row[f"std_{c}"] for row in train) / len(train) for c in "rgb"])
    everything = [sum(bins.index[f"mean_{c}"].to_pylist()) / 40 for c in "rgb"]
    assert mean != pytest.approx(everything, rel=1e-9)


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "cache").write_text("a file stands where the folder should be")
    with pytest.raises(ConfigError, match=r"paths\.cache_dir: .*cache/index/.* cannot be written to"):
        prepare_bins(*config(tmp_path, folder))


TWICE = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from tests.data.test_prepare import config, prepare_bins
print(prepare_bins(*config(Path(sys.argv[1]), Path(sys.argv[2]))).fingerprint)
"""


def test_two_processes_may_prepare_at_once(tmp_path: Path, folder: Path) -> None:
    command = [sys.executable, "-c", TWICE, str(tmp_path), str(folder), str(ROOT)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    fingerprints = {process.communicate(timeout=60)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert fingerprints == {prepare_bins(*config(tmp_path, folder)).fingerprint + "\n"}
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_task_prints_what_became_of_the_bins(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, s3, paths = config(tmp_path, folder, cache=False)
    prepare.run(PrepareConfig(paths=paths, s3=s3, data=data, layout="imagefolder", output=None), tmp_path)
    bins = prepare_bins(data, s3, paths)
    lines = capsys.readouterr().out.splitlines()
    output = tmp_path / "data" / "imagefolder" / bins.fingerprint[:16]
    assert lines[:5] == [
        f"{folder}: 40 bins",
        "count        1       2     all",
        "train       13      13      26",
        "val          3       3       6",
        "test         4       4       8",
    ]
    assert lines[-2:] == [f"index: {bins.index_path}", f"imagefolder: {output}"]
    assert len(list(output.glob("*/*/*.jpg"))) == 40
    assert json.loads((tmp_path / "summary.json").read_text())["splits"]["test"] == {"1": 4, "2": 4}


@pytest.fixture(scope="module")
def real(abid: Path, tmp_path_factory: pytest.TempPathFactory) -> Prepare:
    root = tmp_path_factory.mktemp("real")
    fractions = {"val_fraction": 0.1, "counts": [1, 2, 3, 4, 5], "max_bad_fraction": 0.0}
    return lambda **data: prepare_bins(*config(root, abid / "udacity224", **(fractions | data)))


@pytest.mark.abid
def test_report_split_of_real_photos(real: Prepare, abid: Path) -> None:
    bins = real(split="report", split_list=str(abid / "file_list.json"))
    sizes = {split: sum(numbers.values()) for split, numbers in bins.summary.splits.items()}
    assert sizes["train"] + sizes["val"] == 4807
    assert sizes["test"] == 1212
    assert bins.summary.num_bad == 0
    mean, std = bins.pixel_statistics()
    assert mean == pytest.approx((0.5234, 0.4421, 0.3528), abs=0.002)
    assert std == pytest.approx((0.1367, 0.1214, 0.0937), abs=0.002)


@pytest.mark.abid
def test_grouped_split_of_real_photos(real: Prepare) -> None:
    bins = real()
    rows: list[dict[str, Any]] = bins.index.to_pylist()
    assert len({(row["group"], row["split"]) for row in rows}) == len({row["group"] for row in rows})
    assert bins.summary.warnings == ()
    assert isinstance(bins.items, pa.Table)
    assert bins.summary.splits["test"] != {}
