"""Photos are decoded once for the index and the cache, and the cache is what it is without that."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from binventory.config.schema import PrepareConfig
from binventory.data.cache.photos import PackedPhotos, open_photos
from binventory.data.cache.staging import StagedPhotos
from binventory.data.datamodule import make_preprocessing
from binventory.data.prepare import PreparedBins, prepare_bins
from binventory.errors import ConfigError
from binventory.tasks import prepare
from tests.data.hostile import encode, photo
from tests.data.test_cache import end_of, in_child
from tests.data.test_prepare import config


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, write_bin: Any) -> Path:
    """Bins of many kinds: good ones, two equal photos, a broken one, and some whose quantity is not in data.counts."""
    folder = tmp_path_factory.mktemp("source")
    for number in range(60):
        write_bin(folder, f"{number:05d}", number % 6 + 1)
        if number % 3 == 0:
            image = photo(number, 9, 7).resize((97, 61 + number), Image.Resampling.BICUBIC)
            (folder / "bin-images" / f"{number:05d}.jpg").write_bytes(encode(image))
    photos = [folder / "bin-images" / f"{number:05d}.jpg" for number in (7, 12, 20)]
    photos[1].write_bytes(photos[0].read_bytes())
    photos[2].write_bytes(photos[2].read_bytes()[:-30])
    return folder


def config_of(folder: Path, source: Path, **data: Any) -> Any:
    pixels = {"image_size": 32, "resize": "squash", "interpolation": "bilinear", "normalize": "imagenet"}
    given = pixels | {"num_workers": 2, "counts": [1, 2, 3, 4, 5], "max_bad_fraction": 1.0, "cache": True} | data
    return SimpleNamespace(**dict(zip(("data", "s3", "paths"), config(folder, source, **given), strict=True)))


def prepared_and_packed(config: Any, staged: StagedPhotos | None) -> tuple[PreparedBins, PackedPhotos]:
    prepared = prepare_bins(config.data, config.s3, config.paths, staged)
    preprocessing = make_preprocessing(config.data, prepared)
    return prepared, open_photos(config.data, config.paths, prepared, preprocessing, staged)


class Opened:
    """How often this process opened each photo, as the interpreter's audit events report it."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.is_active = True
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple[object, ...]) -> None:
        if self.is_active and event == "open" and isinstance(args[0], (str, Path)) and str(args[0]).endswith(".jpg"):
            self.names.append(Path(args[0]).name)


def test_preparing_reads_every_photo_once(source: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, source)
    opened = Opened()
    try:
        prepare.run(PrepareConfig(**vars(config), layout="index", output=None), tmp_path)
    finally:
        opened.is_active = False
    assert sorted(opened.names) == sorted(path.name for path in (source / "bin-images").iterdir())


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"image_size": 224},  # what the index is measured on
        {"image_size": 16, "resize": "crop", "interpolation": "bicubic"},
        {"resize": "letterbox"},
        {"resize": "letterbox", "normalize": "dataset"},  # padded with a mean that is known too late
    ],
)
def test_index_and_cache_are_those_of_two_decodings(overrides: dict[str, Any], source: Path, tmp_path: Path) -> None:
    apart, once = (config_of(tmp_path / name, source, **overrides) for name in ("apart", "once"))
    prepared, photos = prepared_and_packed(apart, None)
    staged = StagedPhotos.of(once.data, once.paths)
    prepared_too, photos_too = prepared_and_packed(once, staged)
    assert prepared_too.index.equals(prepared.index)
    assert photos_too.folder.name == photos.folder.name
    np.testing.assert_array_equal(photos_too.pixels, photos.pixels)
    assert staged.get(0) is None, "nothing is kept longer than it is needed"
    assert {path.name for path in (tmp_path / "once" / "cache").iterdir()} == {"index", "photos"}


def test_what_an_earlier_run_indexed_is_decoded_when_it_is_packed(source: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, source)
    prepare_bins(config.data, config.s3, config.paths)
    photos = prepared_and_packed(config, StagedPhotos.of(config.data, config.paths))[1]
    wanted = prepared_and_packed(config_of(tmp_path / "other", source), None)[1]
    np.testing.assert_array_equal(photos.pixels, wanted.pixels)


def test_photos_of_another_preprocessing_are_not_taken(source: Path, tmp_path: Path) -> None:
    config = config_of(tmp_path, source)
    staged = StagedPhotos.of(config.data, config.paths)
    prepared = prepare_bins(config.data, config.s3, config.paths, staged)
    config.data.resize = "crop"
    photos = open_photos(config.data, config.paths, prepared, make_preprocessing(config.data, prepared), staged)
    wanted = prepared_and_packed(config_of(tmp_path / "other", source, resize="crop"), None)[1]
    np.testing.assert_array_equal(photos.pixels, wanted.pixels)


@pytest.mark.parametrize(("size_kb", "said"), [(250, "True"), (120, "no room for 0.1 MB of decoded photos")])
def test_a_disk_needs_room_for_the_cache_alone(size_kb: int, said: str, source: Path, tmp_path: Path) -> None:
    """On a real file system, mounted where only the child sees it: 49 photos take 150 KB as rows of a cache."""
    wanted = prepared_and_packed(config_of(tmp_path / "roomy", source), None)[1].pixels.copy()
    config = config_of(tmp_path, source)
    (tmp_path / "cache").mkdir()

    def on_small_disk() -> str:
        new_mounts = 0x00020000
        if ctypes.CDLL(None, use_errno=True).unshare(new_mounts) != 0:
            return "no root"
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "none", config.paths.cache_dir], check=True)
        try:
            pixels = prepared_and_packed(config, StagedPhotos.of(config.data, config.paths))[1].pixels
        except ConfigError as error:
            return str(error)
        return str(np.array_equal(pixels, wanted))

    _, found = end_of(in_child(on_small_disk))
    if found == "no root":
        pytest.skip("mounting needs root")
    assert said in found
