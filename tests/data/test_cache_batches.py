"""Batches from the photo cache are those of the decoding loader."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from binventory.config.compose import compose_checked
from binventory.data.cache.batches import PackedBatches
from binventory.data.cache.photos import PackedPhotos, open_photos
from binventory.data.cache.residence import place_rows
from binventory.data.datamodule import BinDataModule, make_preprocessing
from binventory.data.loader import PADDING, Batch, BatchLoader, BatchSampler, BinDataset, decoded_batches
from binventory.data.prepare import PreparedBins, prepare_bins
from binventory.errors import ConfigError, InputError
from tests.running import TINY, run_here

CPU = torch.device("cpu")
RESIDENCES = ("disk", "memory", "device")


class Source:
    """A folder of bins in the public bucket's layout, prepared and packed as a run does it."""

    def __init__(self, folder: Path, source: Path, *overrides: str) -> None:
        places = [f"data.source={source}", f"paths.cache_dir={folder}/cache", f"paths.output_dir={folder}"]
        given = ["data=abid", *places, "data.image_size=32", "data.batch_size=8", "data.max_bad_fraction=1", *overrides]
        self.config: Any = compose_checked("train", given)[0]
        self.prepared: PreparedBins = prepare_bins(self.config.data, self.config.s3, self.config.paths)
        self.preprocessing = make_preprocessing(self.config.data, self.prepared)

    def pack(self) -> PackedPhotos:
        return open_photos(self.config.data, self.config.paths, self.prepared, self.preprocessing)

    def module(self, photos: PackedPhotos | None) -> BinDataModule:
        return BinDataModule(self.config.data, self.prepared, self.preprocessing, seed=3, photos=photos)


@pytest.fixture
def folder(tmp_path: Path, write_bin: Any) -> Path:
    """Sixty bins; two of their photos are the same file under two ids."""
    for number in range(60):
        write_bin(tmp_path / "source", f"{number:05d}", number % 5 + 1)
    same = [tmp_path / "source" / "bin-images" / f"{number:05d}.jpg" for number in (7, 12)]
    same[1].write_bytes(same[0].read_bytes())
    return tmp_path


def check_equal(found: Iterator[Batch], wanted: Iterator[Batch]) -> int:
    """Fail unless two loaders give the same batches; return how many."""
    pairs = list(zip(found, wanted, strict=True))
    for mine, other in pairs:
        for name, one, two in zip(Batch._fields, mine, other, strict=True):
            assert one.dtype == two.dtype
            assert torch.equal(one, two), name
    return len(pairs)


@pytest.mark.parametrize("residence", RESIDENCES)
def test_every_split_equals_the_decoding_loader(residence: str, folder: Path) -> None:
    source = Source(folder, folder / "source", f"data.residence={residence}", "data.val_fraction=0.2")
    photos = source.pack()
    assert photos.pixels.shape == (59, 32, 32, 3), "equal files are decoded once"
    packed, decoding = source.module(photos), source.module(None)
    for name in ("train", "val", "test"):
        mine, other = (getattr(module, f"{name}_dataloader")() for module in (packed, decoding))
        for epoch in (0, 1):
            for loader in (mine, other):
                loader.sampler.set_epoch(epoch)
            assert check_equal(iter(mine), iter(other)) == len(mine) > 0
        for loader in (mine, other):
            loader.load_state_dict({"batches": 1})
        assert check_equal(iter(mine), iter(other)) == len(mine) - 1, "it goes on behind the first batch"
        assert mine.state_dict() == {"batches": 0}
        iterator = iter(mine)
        next(iterator)
        assert mine.state_dict() == {"batches": 1}


def loaders(
    source: Source, photos: PackedPhotos, residence: str, split: str, *, rank: int
) -> tuple[BatchLoader, BatchLoader]:
    """Return one rank's loader from the cache, and the one that decodes."""
    bins = source.module(None).bins(split)
    samplers = [
        BatchSampler(len(bins.ids), 14, seed=0, shuffle=split == "train", rank=rank, world_size=7) for _ in range(2)
    ]
    pixels = place_rows(photos.pixels, residence, CPU)
    return (
        BatchLoader(
            PackedBatches(pixels, photos.rows[split], bins.targets, photos.bad, samplers[0], CPU),
            samplers[0],
            on_bad="skip",
        ),
        BatchLoader(
            decoded_batches(BinDataset(bins, source.preprocessing), samplers[1], 0), samplers[1], on_bad="skip"
        ),
    )


@pytest.mark.parametrize("residence", RESIDENCES)
def test_padding_of_ranks_and_photos_that_went(residence: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = Source(folder, folder / "source")
    num_padded = num_bad = 0
    for split in ("train", "test"):
        paths = source.module(None).bins(split).paths
        Path(paths[2]).unlink()  # after it was indexed
        Path(paths[-1]).write_bytes(Path(paths[5]).read_bytes() + b"\0")  # whole, but not the labelled one
    photos = source.pack()
    assert len(photos.bad) == 4
    for split in ("train", "test"):
        for rank in range(7):
            mine, other = loaders(source, photos, residence, split, rank=rank)
            check_equal(iter(mine), iter(other))
            assert mine.num_bad == other.num_bad
            num_bad += mine.num_bad
            num_padded += sum(int((batch.position == PADDING).sum()) for batch in mine) if split == "test" else 0
    assert num_bad >= 2, "an epoch of training may leave out some bins"
    assert num_padded > 2, "of ranks too, not only of photos that went"
    reasons = [record.getMessage() for record in caplog.records]
    assert {Path(paths[2]).name, Path(paths[-1]).name} <= {reason.split("/")[-1].split(":")[0] for reason in reasons}


@pytest.mark.parametrize("residence", RESIDENCES)
def test_features_come_as_photos_do(residence: str, folder: Path) -> None:
    source = Source(folder, folder / "source")
    photos = source.pack()
    targets = source.module(None).bins("test").targets
    features = np.random.default_rng(0).normal(size=(len(photos.pixels), 2, 5)).astype(np.float32)
    rows = photos.rows["test"]
    bad = {int(rows[3]): "gone"}
    sampler = BatchSampler(len(rows), 14, seed=0, shuffle=False, rank=6, world_size=7)
    placed = place_rows(features, residence, CPU)
    loader = BatchLoader(PackedBatches(placed, rows, targets, bad, sampler, CPU), sampler, on_bad="skip")
    places = [place for batch in sampler for place in batch]
    inputs = torch.cat([batch.inputs for batch in loader])
    assert inputs.dtype == torch.float32
    for place, found in zip(places, inputs.numpy(), strict=True):
        wanted = features[rows[place]] if place not in (PADDING, 3) else np.zeros((2, 5))
        np.testing.assert_array_equal(found, wanted)
    assert PADDING in places


def test_on_bad_fail_names_the_photo(folder: Path) -> None:
    source = Source(folder, folder / "source", "data.on_bad=fail")
    gone = Path(source.module(None).bins("train").paths[0])
    gone.unlink()
    with pytest.raises(InputError, match=f"{gone.name}.*set data.on_bad=skip"):
        list(source.module(source.pack()).train_dataloader())


def test_a_batch_is_nobody_elses_memory(folder: Path) -> None:
    source = Source(folder, folder / "source")
    for residence in RESIDENCES:
        photos = source.pack()
        source.config.data.residence = residence
        kept = list(source.module(photos).train_dataloader())
        before = [batch.inputs.clone() for batch in kept]
        for batch in source.module(photos).train_dataloader():
            batch.inputs.zero_()
        assert all(torch.equal(batch.inputs, then) for batch, then in zip(kept, before, strict=True))
    assert source.pack().pixels.any(), "nor the cache's"


def test_photos_lie_where_they_are_wanted(folder: Path) -> None:
    pixels = Source(folder, folder / "source").pack().pixels
    assert place_rows(pixels, "auto", CPU) is pixels
    assert place_rows(pixels, "disk", CPU) is pixels
    memory = place_rows(pixels, "memory", CPU)
    assert isinstance(memory, np.ndarray)
    assert not np.shares_memory(memory, pixels)
    assert isinstance(place_rows(pixels, "device", CPU), torch.Tensor)
    assert not pixels.flags.writeable


def test_no_memory_is_one_error() -> None:
    huge = np.broadcast_to(np.zeros(1, np.uint8), (10**9, 1024, 1024, 3))
    for residence in ("memory", "device"):
        with pytest.raises(ConfigError, match=rf"data.residence={residence}: no memory for 3145728.0 GB"):
            place_rows(huge, residence, CPU)


def test_a_photo_that_changes_is_another_cache_and_another_split_is_not(folder: Path, write_bin: Any) -> None:
    source = Source(folder, folder / "source")
    photos = source.pack()
    other_split = Source(folder, folder / "source", "data.split_seed=5", "data.val_fraction=0.3").pack()
    assert other_split.folder == photos.folder
    assert not np.array_equal(other_split.rows["train"], photos.rows["train"])
    write_bin(folder / "source", "90001", 1)
    path = folder / "source" / "bin-images" / "00003.jpg"
    path.write_bytes((folder / "source" / "bin-images" / "90001.jpg").read_bytes())
    (folder / "source" / "bin-images" / "90001.jpg").unlink()
    (folder / "source" / "metadata" / "90001.json").unlink()
    changed = Source(folder, folder / "source")
    assert changed.pack().folder != photos.folder
    packed, decoding = changed.module(changed.pack()), changed.module(None)
    assert check_equal(iter(packed.test_dataloader()), iter(decoding.test_dataloader()))
    assert check_equal(iter(packed.train_dataloader()), iter(decoding.train_dataloader()))


def test_opening_is_using(folder: Path) -> None:
    source = Source(folder, folder / "source")
    meta = source.pack().folder / "meta.json"
    os.utime(meta, (1, 1))
    for path in (folder / "source").rglob("*"):
        assert not path.is_file() or path.unlink() is None
    assert source.pack().pixels.any(), "no photo is read again"
    assert meta.stat().st_mtime > 1e9, "what prune goes by"


def test_a_damaged_cache_is_mended_when_a_run_opens_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Source(folder, folder / "source")
    photos = source.pack()
    wanted = photos.pixels.copy()
    with (photos.folder / "photos.u8").open("rb+") as file:
        file.write(bytes(300))
    capsys.readouterr()
    np.testing.assert_array_equal(source.pack().pixels, wanted)
    assert capsys.readouterr().err.startswith(f"photo cache {photos.folder}: block 1 of 1 has another checksum")


def test_a_residence_without_a_cache_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.residence=memory: .*data\.cache=false"):
        compose_checked("train", ["data.cache=false", "data.residence=memory"])


def test_a_training_gives_the_same_bits_with_and_without(trained: Path, workplace: Path) -> None:
    for overrides in (["data.cache=false"], ["data.residence=device"]):
        other = run_here(workplace, "train", *TINY, *overrides)
        for name in ("predictions.csv", "bundle/weights.safetensors"):
            assert (other / name).read_bytes() == (trained / name).read_bytes(), (overrides, name)


@pytest.mark.abid
def test_real_photos_are_packed_as_predict_sees_them(abid: Path, tmp_path: Path) -> None:
    source = Source(tmp_path, abid / "native", "data.image_size=224", "data.limit=60")
    photos, module = source.pack(), source.module(None)
    for split, rows in photos.rows.items():
        for path, row in zip(module.bins(split).paths, rows, strict=True):
            seen = source.preprocessing.pixels(Path(path).read_bytes(), path)
            np.testing.assert_array_equal(photos.pixels[row], seen.permute(1, 2, 0).numpy())
