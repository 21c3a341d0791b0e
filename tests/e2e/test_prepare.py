"""`binventory prepare`, through the command line: from a bucket to an index."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.running import Run, run_here
from tests.s3 import FaultProxy, upload

BINVENTORY = str(Path(sys.executable).parent / "binventory")
NUM_BINS = 120


@pytest.fixture(scope="module")
def native_bucket(s3_server: str, abid: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Some of the untouched originals on a real S3 server, in the public bucket's layout."""
    folder = tmp_path_factory.mktemp("native")
    for name, suffix in (("bin-images", ".jpg"), ("metadata", ".json")):
        (folder / name).mkdir()
        for photo in sorted((abid / "native" / "bin-images").iterdir())[:NUM_BINS]:
            (folder / name / f"{photo.stem}{suffix}").symlink_to(abid / "native" / name / f"{photo.stem}{suffix}")
    upload(s3_server, "native-bins", folder)
    return "s3://native-bins"


def photos_of(folder: Path) -> set[Path]:
    return set(folder.glob(".cache/data/s3/*/native-bins/bin-images/*.jpg"))


@pytest.mark.abid
def test_download_survives_sigkill_and_goes_on_where_it_was(
    native_bucket: str, s3_faults: FaultProxy, abid: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [
        "data=abid",
        f"data.source={native_bucket}",
        f"s3.endpoint_url={s3_faults.url}",
        "s3.max_concurrency=4",
    ]
    command = [BINVENTORY, "prepare", *overrides]
    held = sorted((abid / "native" / "bin-images").iterdir())[NUM_BINS - 1].name
    s3_faults.faults[f"/native-bins/bin-images/{held}"] = ["hang"]  # so that it is not over before it is killed
    killed = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(photos_of(tmp_path)) < 30:
        assert time.monotonic() < deadline
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    s3_faults.release.set()
    whole = photos_of(tmp_path)
    assert 30 <= len(whole) < NUM_BINS, "the test is only one if the download was in the middle"
    before = {path: path.stat().st_mtime_ns for path in whole}

    done = run_here(tmp_path, "prepare", *overrides)
    assert len(photos_of(tmp_path)) == NUM_BINS
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items()), (
        "what was whole is not fetched again"
    )
    for path in photos_of(tmp_path):
        assert path.read_bytes() == (abid / "native" / "bin-images" / path.name).read_bytes()
    assert f"{native_bucket}: {NUM_BINS} bins" in capsys.readouterr().out
    assert json.loads((done / "summary.json").read_text())["total"] == NUM_BINS
    assert not list(tmp_path.rglob("*.part"))


def test_imagefolder_layout(run: Run, trained: Path, workplace: Path, tmp_path: Path) -> None:
    """The layout is itself a source: trained on, it gives as many photos as were written."""
    overrides = [
        "data.reader.num_bins=240",
        "data.reader.photo_size=48",
        "layout=imagefolder",
        f"output={tmp_path / 'tree'}",
    ]
    run("prepare", *overrides)
    for split in ("train", "test"):
        with (tmp_path / "tree" / f"{split}_meta.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        photos = {path.stem: int(path.parent.name) for path in (tmp_path / "tree" / split).glob("*/*.jpg")}
        assert photos == {row["id"]: int(row["quantity"]) for row in rows}
    run("prepare", "data=imagefolder", f"data.source={tmp_path / 'tree' / 'train'}")
    indexes = sorted(workplace.glob(".cache/index/*/*/index.parquet"), key=lambda path: path.stat().st_mtime)
    index = pq.read_table(indexes[-1])
    assert index.num_rows == len(list((tmp_path / "tree" / "train").glob("*/*.jpg")))
    assert set(index["split"].to_pylist()) == {"train", "val", "test"}
    splits: dict[str, set[str]] = {}
    for row in index.select(["group", "split"]).to_pylist():
        splits.setdefault(row["group"], set()).add(row["split"])
    assert len(splits) < index.num_rows, "siblings are known as such from the tables that were exported"
    assert all(len(found) == 1 for found in splits.values())


def test_source_whose_siblings_cannot_be_told_warns(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(60):
        photo = tmp_path / str(number % 2 + 1) / f"{number}.jpg"
        photo.parent.mkdir(exist_ok=True)
        Image.new("RGB", (20, 20), (number, 0, 0)).save(photo)
    run("prepare", "data=imagefolder", f"data.source={tmp_path}", "data.counts=[1,2]")
    assert "warning: no groups and no ASINs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data=abid", "data.source=nowhere"], ["data.source", "nowhere", "no such file or folder"]),
        (["data=abid", "data.source={broken}"], ["data.max_bad_fraction=0.05", "4 of 24"]),
        (["data=abid", "data.source={broken}", "data.on_bad=fail"], ["data.on_bad=fail", "100000"]),
        (["data=abid", "data.source={broken}", "data.max_bad_fraction=0.5", "data.counts=[1,2,9]"], ["data.counts=[1, 2, 9]", "quantity 9"]),
        (["data=abid", "data.source=s3://no-such-bucket", "s3.endpoint_url={s3}"], ["data.source", "no such bucket"]),
        (["data=imagefolder", "data.source={broken}"], ["data.source", "bin-images", "named by quantity"]),
        (["data=table", "data.source={broken}"], ["data.source"]),
    ],
    ids=lambda part: " ".join(part),
)  # fmt: skip
def test_bad_input_is_one_line(
    overrides: list[str],
    said: list[str],
    broken_source: Path,
    s3_server: str,
    run: Run,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run("prepare", *[text.format(broken=broken_source, s3=s3_server) for text in overrides])
    assert exit_.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    for part in said:
        assert part in error, error


def test_train_obeys_the_same_policy(broken_source: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        run("train", "data=abid", f"data.source={broken_source}", "debug=fast")
    assert exit_.value.code == 2
    assert "data.max_bad_fraction=0.05" in capsys.readouterr().err


@pytest.fixture
def broken_source(tmp_path: Path) -> Path:
    """Twenty-four bins of counts 1 and 2, four of which cannot be used, each for another reason."""
    from tests.s3 import draw_bins

    folder = tmp_path / "broken"
    draw_bins(folder, {f"{100_000 + 10 * number}": number % 2 + 1 for number in range(24)})
    (folder / "bin-images" / "100000.jpg").write_bytes(b"")
    photo = folder / "bin-images" / "100010.jpg"
    photo.write_bytes(photo.read_bytes()[:-40])
    (folder / "bin-images" / "100020.jpg").unlink()
    (folder / "metadata" / "100030.json").write_text("{")
    return folder
