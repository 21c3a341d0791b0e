"""Features of a frozen backbone: what they are, what they hang on, and when there are none."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from timm.models.resnet import BasicBlock
from torch import Tensor, nn
from typer.testing import CliRunner

from binventory.cli import app
from binventory.config.compose import compose_checked
from binventory.data.cache.pack import FEATURES, META
from binventory.data.cache.photos import PackedPhotos
from binventory.data.preprocess import Preprocessing
from binventory.models.backbones import freeze, make_backbone
from binventory.models.features import FrozenFeatures
from binventory.models.network import BinNetwork
from binventory.models.timm_alone import timm
from binventory.tasks.features import make_features

NUM_PHOTOS, SIDE = 70, 32  # two blocks
FLIPPED = np.array([0, 2, 3, 69])


class Counting(BinNetwork):
    """Counts the photos that it makes features of."""

    num_photos = 0

    def features(self, pixels: Tensor) -> Tensor:
        Counting.num_photos += len(pixels)
        return super().features(pixels)


@pytest.fixture(scope="module")
def trainer() -> pl.Trainer:
    return make_trainer("32-true")


def make_trainer(precision: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", precision=precision, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )


@pytest.fixture(autouse=True)
def _count_from_zero() -> Iterator[None]:
    Counting.num_photos = 0
    yield
    Counting.num_photos = 0


def make_network(name: str = "test_resnet", seed: int = 0, backbone: nn.Module | None = None) -> BinNetwork:
    torch.manual_seed(seed)
    backbone = make_backbone(name, "none", 5) if backbone is None else backbone
    freeze(backbone, "head")
    return Counting(backbone, Preprocessing(SIDE), channels_last=True)


def make_photos(folder: Path, key: str = "k", bad: dict[int, str] | None = None) -> PackedPhotos:
    pixels = np.random.default_rng(3).integers(0, 256, (NUM_PHOTOS, SIDE, SIDE, 3), dtype=np.uint8)
    rows = {"train": np.arange(50), "val": np.arange(50, 60), "test": np.arange(60, NUM_PHOTOS)}
    return PackedPhotos(folder / "photos" / key, pixels, rows, bad or {})


def features_in(folder: Path, network: BinNetwork | None = None, **others: Any) -> FrozenFeatures:
    network = make_network() if network is None else network
    known = {"model_name": "net", "preprocessing": Preprocessing(SIDE), "photos": make_photos(folder)}
    return FrozenFeatures(**{"network": network, **known, "flipped": FLIPPED, "cache_dir": folder, **others})


@pytest.mark.parametrize("name", ["test_resnet", "efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224"])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_head_on_them_is_the_network(name: str, precision: str, tmp_path: Path) -> None:
    sizes = {"img_size": SIDE} if name.startswith("vit") else {}
    network = make_network(backbone=timm.create_model(name, num_classes=5, **sizes))
    network.train()  # as Lightning finds it
    before = {key: value.clone() for key, value in network.state_dict().items()}
    of, trainer = features_in(tmp_path, network), make_trainer(precision)
    found = of(trainer)
    assert found is not None
    assert found.dtype == np.float32
    assert found.shape[:2] == (NUM_PHOTOS, 2)
    assert not found.flags.writeable, "mapped, not copied"
    assert all(module.training for module in network.modules())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    network.eval()
    pixels = torch.from_numpy(of.photos.pixels).permute(0, 3, 1, 2)
    tolerance = 1e-5 if precision == "32-true" else 2e-2  # another batch rounds otherwise
    with torch.inference_mode(), trainer.precision_plugin.forward_context():
        for view, rows in ((0, np.arange(NUM_PHOTOS)), (1, FLIPPED)):
            wanted = network.outputs(pixels[rows].flip(3) if view else pixels[rows])
            outputs = network.outputs(torch.from_numpy(np.array(found[rows, view])))
            assert (outputs - wanted).abs().max() < tolerance * wanted.abs().max()
    unwanted = np.setdiff1d(np.arange(NUM_PHOTOS), FLIPPED)
    assert not found[unwanted, 1].any()


def test_they_are_computed_once_for_what_they_depend_on(tmp_path: Path, trainer: pl.Trainer) -> None:
    assert features_in(tmp_path)(trainer) is not None
    per_opening = 8  # the first photos, to check the head
    assert Counting.num_photos == NUM_PHOTOS + len(FLIPPED) + per_opening
    other_head = make_network()
    nn.init.normal_(other_head.backbone.get_submodule("fc").weight)  # type: ignore[arg-type]
    for same in (make_network(), other_head):
        Counting.num_photos = 0
        assert features_in(tmp_path, same)(trainer) is not None
        assert Counting.num_photos == per_opening
    (folder,) = (tmp_path / "features").iterdir()
    other_statistics = make_network()
    other_statistics.backbone.get_submodule("bn1").running_mean += 1  # type: ignore[operator]
    others = [
        features_in(tmp_path, make_network(seed=1)),
        features_in(tmp_path, other_statistics),
        features_in(tmp_path, flipped=FLIPPED[:2]),
        features_in(tmp_path, flipped=FLIPPED[:0]),
        features_in(tmp_path, photos=make_photos(tmp_path, "other")),
        features_in(tmp_path, preprocessing=Preprocessing(SIDE, mean=(0.1, 0.2, 0.3))),
        features_in(tmp_path, model_name="other"),
    ]
    for number, other in enumerate(others):
        found = other(trainer)
        assert found is not None
        assert found.shape[1] == (1 if other.flipped.size == 0 else 2)
        assert len(list((tmp_path / "features").iterdir())) == number + 2
    assert features_in(tmp_path)(make_trainer("bf16-mixed")) is not None
    assert len(list((tmp_path / "features").iterdir())) == len(others) + 2
    assert (folder / META).exists()


def test_other_code_is_another_cache(tmp_path: Path, trainer: pl.Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "own_network.py"
    file.write_text("from timm.models.resnet import ResNet\n\nclass Own(ResNet):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    made = importlib.import_module("own_network").Own(BasicBlock, [1, 1, 1, 1], num_classes=5)
    made.pretrained_cfg = {"classifier": "fc"}
    for number in range(3):
        assert features_in(tmp_path, make_network(backbone=made))(trainer) is not None
        assert len(list((tmp_path / "features").iterdir())) == number + 1
        if number == 0:
            file.write_text(file.read_text() + "# changed\n")
        else:
            monkeypatch.setattr(timm, "__version__", "0")


def test_damage_is_noticed_and_mended(tmp_path: Path, trainer: pl.Trainer, capsys: pytest.CaptureFixture[str]) -> None:
    of = features_in(tmp_path)
    found = of(trainer)
    assert found is not None
    wanted = found.copy()
    (path,) = tmp_path.glob(f"features/*/{FEATURES.file}")
    for size, num_photos in ((path.stat().st_size - 3000, 6 + 1), (0, NUM_PHOTOS + len(FLIPPED))):
        os.truncate(path, size)
        Counting.num_photos = 0
        capsys.readouterr()
        np.testing.assert_allclose(of(trainer), wanted, rtol=1e-5, atol=1e-6)
        assert Counting.num_photos - 8 == num_photos, "only what is damaged is computed again"
        assert capsys.readouterr().err.startswith(f"feature cache {path.parent}: {FEATURES.file} has ")


def test_photos_that_could_not_be_read_are_tried_again(tmp_path: Path, trainer: pl.Trainer) -> None:
    for bad in ({69: "gone"}, {}):
        Counting.num_photos = 0
        assert features_in(tmp_path, photos=make_photos(tmp_path, bad=bad))(trainer) is not None
        (folder,) = (tmp_path / "features").iterdir()
        assert (folder / META).exists() == (not bad)
    assert Counting.num_photos - 8 == 6 + 1, "one block"


class Doubled(nn.Module):
    """A network without timm's methods, as docs/extend.md shows one."""

    def __init__(self) -> None:
        super().__init__()
        self.pretrained_cfg = {"classifier": "fc"}
        self.body = nn.Sequential(nn.Conv2d(3, 4, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(4, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        outputs: Tensor = self.fc(self.body(pixels))
        return outputs


class Scaled(Doubled):
    """One whose outputs are more than its classifier gives."""

    def forward_features(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.body(pixels)
        return features

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        return features

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, pixels: Tensor) -> Tensor:
        return 2 * super().forward(pixels)


def partly_trained() -> BinNetwork:
    network = make_network()
    network.backbone.get_submodule("bn1").weight.requires_grad = True  # type: ignore[union-attr]
    return network


def with_statistics() -> BinNetwork:
    backbone: Any = make_backbone("test_resnet", "none", 5)
    backbone.fc = nn.Sequential(nn.BatchNorm1d(backbone.num_features), backbone.fc)
    return make_network(backbone=backbone)


def test_a_head_that_cannot_be_run_alone_is_said(
    tmp_path: Path, trainer: pl.Trainer, capsys: pytest.CaptureFixture[str]
) -> None:
    dropout = timm.create_model("test_resnet", num_classes=5, drop_rate=0.5)
    zeroed: Any = timm.create_model("test_resnet", num_classes=5, drop_rate=0.5)  # of which nothing can be told
    torch.nn.init.zeros_(zeroed.fc.weight)
    torch.nn.init.zeros_(zeroed.fc.bias)
    for network, reason in (
        (make_network(backbone=Doubled()), "model.name=net: it has no forward_features()"),
        (make_network(backbone=Scaled()), "model.name=net: its classifier alone gives other outputs"),
        (make_network(backbone=dropout), "model.name=net: its classifier alone gives other outputs"),
        (make_network(backbone=zeroed), "model.name=net: its classifier alone gives other outputs"),
        (partly_trained(), "model.name=net: more is trained than its classifier"),
        (with_statistics(), "model.name=net: its classifier keeps statistics"),
    ):
        assert features_in(tmp_path, network)(trainer) is None
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"frozen features are not cached: {reason}")
    assert not (tmp_path / "features").exists()


def test_features_of_other_code_are_not_used(
    tmp_path: Path, trainer: pl.Trainer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert features_in(tmp_path)(trainer) is not None
    network: Any = make_network()
    first = type(network.backbone).forward_features
    monkeypatch.setattr(type(network.backbone), "forward_features", lambda self, x: first(self, x).square())
    assert features_in(tmp_path, network)(trainer) is None
    assert f"those in {next((tmp_path / 'features').iterdir())} are of another network" in capsys.readouterr().err


def test_list_and_prune_know_them(tmp_path: Path, trainer: pl.Trainer) -> None:
    assert features_in(tmp_path)(trainer) is not None
    (folder,) = (tmp_path / "features").iterdir()
    said = CliRunner().invoke(app, ["cache", "list", "--cache-dir", str(tmp_path)]).output
    assert said.startswith(f"{folder}: features of net, 32-true on cpu, 70 photos, 0.")
    CliRunner().invoke(app, ["cache", "prune", "--cache-dir", str(tmp_path), "--unused-days", "0"])
    assert not folder.exists()


def test_which_runs_want_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = make_photos(tmp_path)
    base = ["data.batch_size=20", "trainer.max_epochs=2"]
    head = [*base, "model.finetune=head"]
    composed = compose_checked("train", [])[0]

    def made(*overrides: str) -> FrozenFeatures | None:
        config: Any = deepcopy(composed)
        config.merge_with_dotlist(list(overrides))
        return make_features(config, make_network(), Preprocessing(SIDE), photos if config.data.cache else None)

    found = made(*head)
    assert found is not None
    assert found.flipped.tolist() == list(range(50))
    unflipped = made(*head, "data.hflip=0")
    assert unflipped is not None
    assert unflipped.flipped.size == 0
    for off in (
        base,
        [*base, "model.finetune=last_stage"],
        [*head, "data.cache=false"],
        [*head, "model.cache_features=false"],
    ):
        assert made(*off) is None
    assert capsys.readouterr().err == "", "nothing that was not asked for is spoken of"
    for seldom, num_seen in (
        (["trainer.max_epochs=1"], 70),
        (["trainer.limit_train_batches=1", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"], 70),
        (["trainer.limit_train_batches=0.4"], 70),
        (["trainer.overfit_batches=1"], 90),
    ):
        assert made(*head, *seldom) is None
        said = f"this run looks at {num_seen} photos, and features of 120 would have to be computed first"
        assert capsys.readouterr().err == f"frozen features are not cached: {said}\n"
    assert made(*head, "trainer.overfit_batches=2") is not None
    assert made(*head, "trainer.precision=32-true") is not None
    assert made(*head, "trainer.precision=bf16-mixed") is None
    said = "trainer.precision=bf16-mixed: a CPU trains in bfloat16, validates in float32; take 32-true for features"
    assert capsys.readouterr().err == f"frozen features are not cached: {said}\n"
    assert made(*head, "data.rotation_degrees=5", "data.brightness=0.2") is None
    said = "data.rotation_degrees=5.0, data.brightness=0.2: a photo has no end of augmented forms"
    assert capsys.readouterr().err == f"frozen features are not cached: {said}\n"
