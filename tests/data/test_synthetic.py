"""Drawn bins: the same every time, in the public data set's form, and not to be counted by brightness."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf
from PIL import Image

from binventory.data.metadata import read_metadata
from binventory.data.sources import make_source
from binventory.data.sources.base import Listing
from binventory.data.splits import sibling_groups
from binventory.data.synthetic.bins import COUNT_SHARES, make_bin, plan_bin
from binventory.data.synthetic.folder import BATCH, draw_folder
from binventory.data.synthetic.photo import draw_photo
from binventory.errors import ConfigError, InputError
from binventory.files import locked
from tests.s3 import s3_config

NUM_BINS = 1500
PHOTO_SIZE = 96
NO_S3 = s3_config("http://127.0.0.1:9")


def fetch(data_dir: Path, source: str = "synthetic", limit: int | None = None, **options: int) -> Listing:
    reader = {
        "_target_": "binventory.data.sources.synthetic.SyntheticSource",
        "num_bins": 24,
        "photo_size": 64,
        "seed": 0,
    }
    data = OmegaConf.create({"reader": reader | options, "source": source, "file_list": None, "limit": limit})
    return make_source(data, OmegaConf.structured(NO_S3), data_dir).fetch()


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Listing:
    """Enough bins to learn from, drawn by several processes."""
    return fetch(tmp_path_factory.mktemp("drawn"), num_bins=NUM_BINS, photo_size=PHOTO_SIZE)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def drawn_folder(listing: Listing) -> Path:
    photo = listing.bins[0].photo
    assert photo is not None
    return photo.parent.parent


# Files


def test_same_seed_gives_the_same_bytes_and_more_bins_only_append(tmp_path: Path, drawn: Listing) -> None:
    few = BATCH  # so few that this process draws them itself
    draw_folder(tmp_path / "few", num_bins=few, photo_size=PHOTO_SIZE, seed=0)
    draw_folder(tmp_path / "other", num_bins=few, photo_size=PHOTO_SIZE, seed=1)
    mine, other, many = contents(tmp_path / "few"), contents(tmp_path / "other"), contents(drawn_folder(drawn))
    assert len(mine) == 2 * few + 1
    for name in mine.keys() - {"file_list.json"}:
        assert mine[name] == many[name], name
    assert not set(mine.values()) & set(other.values())


def test_what_is_missing_is_drawn_again_and_nothing_else(tmp_path: Path) -> None:
    folder = drawn_folder(fetch(tmp_path))
    whole = contents(folder)
    lost = [folder / "bin-images" / "01001.jpg", folder / "metadata" / "1001.json", folder / "file_list.json"]
    for path in lost:
        path.unlink()
    kept = folder / "bin-images" / "01003.jpg"
    kept.write_bytes(b"kept")
    fetch(tmp_path)
    assert contents(folder) == whole | {"bin-images/01003.jpg": b"kept"}


def test_a_killed_run_is_gone_on_with_and_leaves_no_process(tmp_path: Path) -> None:
    folder, num_bins = tmp_path / "killed", 10 * BATCH
    script = (
        "from pathlib import Path; from binventory.data.synthetic.folder import draw_folder\n"
        f"if __name__ == '__main__': draw_folder(Path({str(folder)!r}), num_bins={num_bins}, photo_size=64, seed=0)"
    )
    (tmp_path / "draw.py").write_text(script)
    process = subprocess.Popen([sys.executable, tmp_path / "draw.py"], start_new_session=True)
    photos, metadata = folder / "bin-images", folder / "metadata"
    wait_for(lambda: photos.is_dir() and len(list(photos.glob("*.jpg"))) >= 40)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not group_lives(process.pid))

    whole = [path for path in photos.glob("[!.]*.jpg") if (metadata / f"{path.stem}.json").exists()]
    before = {path: path.stat().st_mtime_ns for path in whole}
    assert 20 <= len(before) < num_bins
    assert not (folder / "file_list.json").exists()
    draw_folder(folder, num_bins=num_bins, photo_size=64, seed=0)
    assert {path: path.stat().st_mtime_ns for path in whole} == before
    draw_folder(tmp_path / "fresh", num_bins=num_bins, photo_size=64, seed=0)
    fresh, gone_on = contents(tmp_path / "fresh"), contents(folder)
    assert {name: gone_on[name] for name in fresh} == fresh


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_two_at_once_draw_into_one_folder(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from binventory.data.synthetic.folder import draw_folder\n"
        f"draw_folder(Path({str(tmp_path / 'both')!r}), num_bins=60, photo_size=64, seed=0)"
    )
    both = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    draw_folder(tmp_path / "alone", num_bins=60, photo_size=64, seed=0)
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")


def test_a_program_from_stdin_draws_all_of_it(tmp_path: Path) -> None:
    """Processes that a pool starts could not import it, and the pool would start others for ever."""
    script = (
        "from pathlib import Path; from binventory.data.synthetic.folder import draw_folder\n"
        f"draw_folder(Path({str(tmp_path / 'bins')!r}), num_bins={3 * BATCH}, photo_size=32, seed=0)"
    )
    done = subprocess.run([sys.executable, "-"], input=script, text=True, timeout=120, check=True, capture_output=True)
    assert (len(list((tmp_path / "bins" / "bin-images").iterdir())), done.stderr) == (3 * BATCH, "")


def test_what_another_draws_meanwhile_is_not_drawn_again(tmp_path: Path) -> None:
    """A photo that is replaced is another photo to a run that has indexed it."""
    folder = tmp_path / "bins"
    script = (
        "from pathlib import Path; from binventory.data.synthetic.folder import draw_folder\n"
        f"draw_folder(Path({str(folder)!r}), num_bins=60, photo_size=64, seed=0)"
    )
    folder.mkdir()
    with locked(tmp_path / "bins.lock"):
        other = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)
        assert other.stderr is not None
        assert "waiting for another process" in other.stderr.readline()
        assert not (folder / "bin-images").exists()
        shutil.copytree(draw(tmp_path / "drawn"), folder, dirs_exist_ok=True)
        before = stamps(folder)
    assert other.wait(timeout=60) == 0
    other.stderr.close()
    assert stamps(folder) == before


def draw(folder: Path) -> Path:
    draw_folder(folder, num_bins=60, photo_size=64, seed=0)
    return folder


def stamps(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in folder.glob("bin-images/*")}


# As a source


def test_it_reads_as_a_bucket_does(drawn: Listing, tmp_path: Path) -> None:
    assert len(drawn.bins) == NUM_BINS
    assert drawn.absent == ()
    assert drawn.split_list is not None
    for found in drawn.bins:
        assert found.photo is not None
        assert found.metadata is not None
        metadata = read_metadata(found.metadata)
        assert metadata.flags == ()
        assert metadata.quantity == drawn.split_list[found.id]
        for item in metadata.items:
            sizes = (item.height_in, item.length_in, item.width_in, item.weight_lb)
            assert all(size is not None and 0 < size < 30 for size in sizes), item
            assert item.height_in <= item.width_in <= item.length_in  # type: ignore[operator]
    assert len(fetch(tmp_path, limit=5).bins) == 5


def test_photos_are_of_the_size_asked_for(drawn: Listing) -> None:
    for found in drawn.bins[:20]:
        with Image.open(found.photo) as photo:  # type: ignore[arg-type]
            assert (photo.format, photo.mode, photo.width) == ("JPEG", "RGB", PHOTO_SIZE)
            assert 0.65 * PHOTO_SIZE <= photo.height <= PHOTO_SIZE


@pytest.mark.parametrize("photo_size", [32, 200])
def test_small_and_large_photos_can_be_drawn(photo_size: int) -> None:
    for index in range(24):
        with Image.open(BytesIO(draw_photo(make_bin(3, index), photo_size))) as photo:
            assert photo.width == photo_size


@pytest.mark.abid
def test_metadata_has_the_form_of_the_real_files(drawn: Listing, abid: Path) -> None:
    real = json.loads(next(iter(sorted((abid / "native" / "metadata").glob("0*.json")))).read_text())
    assert drawn.bins[0].metadata is not None
    assert form(json.loads(drawn.bins[0].metadata.read_text())) == form(real)


def form(document: dict[str, Any]) -> dict[str, Any]:
    items = document["BIN_FCSKU_DATA"]
    assert all(asin == item["asin"] and len(asin) == 10 for asin, item in items.items())
    forms = [
        {key: (value["unit"], sorted(value)) if isinstance(value, dict) else type(value) for key, value in item.items()}
        for item in items.values()
    ]
    assert all(each == forms[0] for each in forms)
    return {key: forms[0] if key == "BIN_FCSKU_DATA" else type(value) for key, value in document.items()}


def test_other_photos_are_refused_rather_than_ignored(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.source=/my/photos: .*set data=abid") as caught:
        fetch(tmp_path, source="/my/photos")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"paths\.data_dir=.*file: synthetic bins cannot be written") as caught:
        fetch(tmp_path / "file")
    assert "\n" not in str(caught.value)


# What is in the bins


def test_counts_are_spread_as_in_the_real_list() -> None:
    counts = np.bincount([plan_bin(0, index).quantity for index in range(8000)], minlength=6)
    assert counts[0] == 0
    np.testing.assert_allclose(counts[1:] / counts.sum(), COUNT_SHARES, atol=0.02)


def test_a_quarter_of_the_bins_has_a_sibling_one_item_apart() -> None:
    bins = [make_bin(5, index) for index in range(400)]
    asins = [{unit.product.asin for unit in each.units} for each in bins]
    groups = sibling_groups([each.id for each in bins], asins)
    pairs = [(at, at + 1) for at in range(len(bins) - 1) if groups[at] == groups[at + 1]]
    assert len(pairs) == len(bins) / 8
    assert len(set(groups)) == len(bins) - len(pairs)  # nothing but these pairs shares an ASIN
    for first, second in pairs:
        assert int(bins[second].id) == int(bins[first].id) + 1
        less, more = sorted((bins[first], bins[second]), key=lambda each: each.quantity)
        assert more.quantity == less.quantity + 1
        assert more.pod == less.pod
        assert [unit for unit in more.units if unit in less.units] == list(less.units)
    grew = [bins[second].quantity > bins[first].quantity for first, second in pairs]
    assert 0.2 < np.mean(grew) < 0.8


def test_ids_look_like_real_ones() -> None:
    ids = [plan_bin(0, index).id for index in range(2000)]
    assert len(set(ids)) == len(ids)
    assert all(name.isdigit() and len(name) in (4, 5) for name in ids)
    twins = [name for name in ids if len(name) == 4]
    assert twins
    assert all(f"0{name}" in ids for name in twins)  # two bins whose ids are one number


def test_some_bins_hold_several_units_of_one_product(drawn: Listing) -> None:
    quantities = [item.quantity for found in drawn.bins[:200] for item in read_metadata(found.metadata).items]  # type: ignore[arg-type]
    assert {1, 2} <= set(quantities)


# What it takes to count them


def test_thumbnails_are_not_enough_to_count(drawn: Listing) -> None:
    """Multinomial logistic regression on 16 x 16 thumbnails; blocks of ids stay together, so no sibling leaks."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    assert drawn.split_list is not None
    thumbnails = np.stack([thumbnail(found.photo) for found in drawn.bins])  # type: ignore[arg-type]
    counts = np.array([drawn.split_list[found.id] for found in drawn.bins])
    blocks = np.array([int(found.id) // 240 for found in drawn.bins])
    test = np.isin(blocks, np.random.default_rng(0).permutation(np.unique(blocks))[: len(np.unique(blocks)) // 5])
    model = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, max_iter=1000, tol=1e-3))
    model.fit(thumbnails[~test], counts[~test])
    assert model.score(thumbnails[~test], counts[~test]) > 0.4  # it did fit what it was given
    assert model.score(thumbnails[test], counts[test]) < 0.40


def thumbnail(photo: Path) -> np.ndarray:
    with Image.open(photo) as image:
        return np.asarray(image.resize((16, 16), Image.Resampling.BILINEAR), np.float64).reshape(-1)
