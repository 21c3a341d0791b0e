"""The order of photos and their augmentation are functions of (seed, epoch, position)."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from binventory.data.augment import random_flip, random_view, uniform
from binventory.data.loader import PADDING, BatchLoader, BatchSampler, BinDataset, Bins, decoded_batches
from binventory.data.preprocess import IMAGENET_MEAN, Normalize, Preprocessing
from binventory.data.reading import stamp_of
from binventory.errors import InputError


def sampler(
    num_bins: int = 103, *, rank: int = 0, world_size: int = 1, shuffle: bool = True, seed: int = 1
) -> BatchSampler:
    return BatchSampler(num_bins, 8, seed=seed, shuffle=shuffle, rank=rank, world_size=world_size)


def test_an_epoch_is_a_permutation_that_seed_and_epoch_decide() -> None:
    epochs = {}
    for epoch in (0, 1):
        one = sampler()
        one.set_epoch(epoch)
        epochs[epoch] = [place for batch in one for place in batch]
        assert sorted(epochs[epoch]) == list(range(103))
        assert len(list(one)) == len(one)
    assert epochs[0] != epochs[1]
    other = sampler()
    other.set_epoch(1)
    assert [place for batch in other for place in batch] == epochs[1]
    assert [place for batch in sampler(seed=2) for place in batch] != epochs[0]


@pytest.mark.parametrize("world_size", [2, 4])
def test_global_batches_are_the_same_whatever_the_number_of_ranks(world_size: int) -> None:
    alone = [sorted(batch) for batch in sampler(96)]
    ranks = [list(sampler(96, rank=rank, world_size=world_size)) for rank in range(world_size)]
    together = [sorted(place for part in parts for place in part) for parts in zip(*ranks, strict=True)]
    assert together == alone


@pytest.mark.parametrize("num_bins", [103, 98, 95, 8, 5])
def test_ranks_take_the_same_number_of_equal_steps(num_bins: int) -> None:
    ranks = [list(sampler(num_bins, rank=rank, world_size=4)) for rank in range(4)]
    assert len({len(batches) for batches in ranks}) == 1
    for parts in zip(*ranks, strict=True):
        assert len({len(part) for part in parts}) == 1
    seen = [place for batches in ranks for batch in batches for place in batch]
    assert len(set(seen)) == len(seen)
    # of 103 and 95 a last batch of one bin for each rank is left out as well
    assert len(seen) == {103: 96, 98: 96, 95: 88, 8: 8, 5: 4}[num_bins]


def test_a_last_batch_of_one_bin_is_left_out() -> None:
    assert [len(batch) for batch in sampler(17)] == [8, 8], "BatchNorm cannot learn from one bin"
    assert [len(batch) for batch in sampler(18)] == [8, 8, 2]
    assert [len(batch) for batch in sampler(1)] == [1]
    assert [len(batch) for batch in sampler(17, shuffle=False)] == [8, 8, 1]


def test_evaluation_sees_every_bin_once_on_any_number_of_ranks() -> None:
    ranks = [list(sampler(10, rank=rank, world_size=4, shuffle=False)) for rank in range(4)]
    seen = [place for batches in ranks for batch in batches for place in batch]
    assert sorted(place for place in seen if place != PADDING) == list(range(10))
    assert len({len(batches) for batches in ranks}) == 1


def test_draws_are_uniform_and_independent_of_batch_and_order() -> None:
    places = torch.arange(20_000)
    drawn = uniform(3, 7, places)
    assert 0 <= drawn.min() < drawn.max() < 1
    histogram = torch.histc(drawn.float(), 10, 0, 1)
    assert histogram.min() > 1_800
    assert histogram.max() < 2_200
    shuffled = torch.randperm(20_000)
    assert torch.equal(uniform(3, 7, places[shuffled]), drawn[shuffled])
    for other in (uniform(3, 8, places), uniform(4, 7, places)):
        assert abs(np.corrcoef(drawn, other)[0, 1]) < 0.03


def test_flip_is_per_photo_and_keeps_pixels() -> None:
    pixels = torch.randint(0, 256, (64, 3, 4, 4), dtype=torch.uint8)
    places = torch.arange(64)
    flipped = random_flip(pixels, places, probability=0.5, seed=0, epoch=0)
    is_flipped = [torch.equal(after, before.flip(2)) for after, before in zip(flipped, pixels, strict=True)]
    is_same = [torch.equal(after, before) for after, before in zip(flipped, pixels, strict=True)]
    assert all(a != b for a, b in zip(is_flipped, is_same, strict=True))
    assert 16 < sum(is_flipped) < 48
    assert random_flip(pixels, places, probability=0.0, seed=0, epoch=0) is pixels
    assert torch.equal(random_flip(pixels, places, probability=1.0, seed=0, epoch=0), pixels.flip(3))


def photo(width: int = 40, height: int = 20) -> bytes:
    image = Image.new("RGB", (width, height), (200, 30, 30))
    image.paste((20, 20, 220), (0, 0, width // 2, height))
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize("resize", ["squash", "letterbox", "crop"])
def test_photo_becomes_a_square(resize: str) -> None:
    pixels = Preprocessing(32, resize=resize).pixels(photo(), "a.jpg")
    assert pixels.shape == (3, 32, 32)
    assert pixels.dtype == torch.uint8
    assert pixels[2, 16, 4] > 150, "the left half is blue"
    assert pixels[0, 16, 28] > 150, "the right half is red"
    corner = pixels[:, 0, 0].float() / 255
    is_padded = torch.allclose(corner, torch.tensor(IMAGENET_MEAN), atol=0.01)
    assert is_padded == (resize == "letterbox")


def test_preprocessing_survives_json_and_normalizes() -> None:
    preprocessing = Preprocessing(32, "crop", "bicubic", (0.5, 0.4, 0.3), (0.2, 0.1, 0.3))
    assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
    pixels = torch.randint(0, 256, (2, 3, 5, 5), dtype=torch.uint8)
    expected = (pixels.double() / 255 - torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)) / torch.tensor(
        [0.2, 0.1, 0.3]
    ).view(3, 1, 1)
    assert torch.allclose(Normalize(preprocessing)(pixels).double(), expected, atol=1e-5)


def loader(folder: Path, num_workers: int, *, on_bad: str = "skip", shuffle: bool = True) -> BatchLoader:
    paths = sorted(map(str, folder.glob("*.jpg")))
    sizes, times = zip(*(stamp_of(Path(path).stat()) for path in paths), strict=True)
    targets = np.zeros(len(paths), dtype=np.int64)
    dataset = BinDataset(Bins([Path(path).stem for path in paths], paths, targets, sizes, times), Preprocessing(16))
    order = sampler(len(paths), shuffle=shuffle)
    return BatchLoader(decoded_batches(dataset, order, num_workers), order, on_bad=on_bad)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(20):
        (tmp_path / f"{number:02d}.jpg").write_bytes(photo(20 + number, 30))
    return tmp_path


def test_worker_count_changes_nothing(photos: Path) -> None:
    for none, two in zip(loader(photos, 0), loader(photos, 2), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(none, two, strict=True))


def test_photo_that_vanished_is_left_out_or_named(photos: Path, caplog: pytest.LogCaptureFixture) -> None:
    skipping, failing, evaluating = (
        loader(photos, 0),
        loader(photos, 0, on_bad="fail"),
        loader(photos, 0, shuffle=False),
    )
    (photos / "07.jpg").unlink()
    (photos / "08.jpg").write_bytes(photo()[:300])
    (photos / "09.jpg").write_bytes(photo(90, 90))  # a whole one, of which nobody knows the quantity
    seen = torch.cat([batch.position for batch in skipping])
    assert sorted(seen.tolist()) == [place for place in range(20) if place not in (7, 8, 9)]
    assert skipping.num_bad == 3
    assert "07.jpg" in caplog.text
    assert "08.jpg" in caplog.text
    assert "09.jpg: another photo than was indexed" in caplog.text
    with pytest.raises(InputError, match=r"0[789]\.jpg"):
        list(failing)
    places = torch.cat([batch.position for batch in evaluating])
    assert len(places) == 20
    assert (places == PADDING).sum() == 3


@pytest.mark.parametrize("probability", [0.0, 0.5, 1.0])
def test_the_view_of_a_photo_is_that_of_its_flip(probability: float) -> None:
    pixels = torch.arange(40 * 3 * 2 * 5, dtype=torch.uint8).view(40, 3, 2, 5)
    features = torch.stack([pixels[..., 0].float().flatten(1), pixels.flip(3)[..., 0].float().flatten(1)], dim=1)
    position = torch.randperm(40)
    for epoch in (0, 1):
        draw = {"probability": probability, "seed": 3, "epoch": epoch}
        flipped = random_flip(pixels, position, **draw)[..., 0].float().flatten(1)
        assert torch.equal(random_view(features, position, **draw), flipped)
