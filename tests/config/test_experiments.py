"""The experiments of the source report and the public benchmark: every value that they fix, and each of them started."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from binventory.callbacks.checkpoint_file import BEST, LAST, read_checkpoint
from binventory.config.capture import leaves, to_plain
from binventory.config.compose import CONFIG_DIR, compose_checked
from binventory.serving.bundle import load_bundle
from tests.running import ROOT, run_here
from tests.s3 import draw_bins

# As the report prints them. name: (network, epochs, batch, image size, learning rate, momentum), (accuracy, minutes)
REPORT = {
    "exp1": (("resnet18", 10, 64, 224, 0.01, 0.5), ("0.300144", "24")),
    "exp2": (("resnet50", 10, 64, 224, 0.01, 0.5), ("0.316419", "25")),
    "exp3": (("resnet101", 10, 64, 224, 0.01, 0.5), ("0.308760", "27")),
    "exp4_hpo": (("resnet50", 5, 128, 224, 0.04215797346056457, 0.6621556854645394), ("0.275251", "10")),
    "exp5_hpo": (("resnet50", 5, 64, 256, 0.032824686350117864, 0.8612426863599609), ("0.299665", "11")),
    "exp6_hpo": (("resnet50", 5, 512, 256, 0.0024232552494701924, 0.8006698202730027), ("0.280517", "11")),
    "exp7_hpo": (("resnet50", 5, 512, 224, 0.001676763425190747, 0.5549096783618431), ("0.259454", "13")),
    "exp8_hpo": (("resnet50", 5, 128, 256, 0.004656335826920995, 0.6998010571771176), ("0.308281", "15")),
    "exp9_best": (("resnet50", 40, 128, 256, 0.004656335826920995, 0.6998010571771176), ("0.314026", "40")),
}
PRESETS = [*REPORT, "benchmark"]

SHARED = {
    "data.reader._target_": "binventory.data.sources.bucket.BucketSource",
    "data.source": "s3://aft-vbi-pds",
    "data.file_list": "report",
    "data.limit": None,
    "data.split": "report",
    "data.split_list": None,
    "data.split_seed": 0,
    "data.val_fraction": 0.0,
    "data.test_fraction": 0.2,
    "data.counts": [1, 2, 3, 4, 5],
    "data.resize": "squash",
    "data.interpolation": "bilinear",
    "data.hflip": 0.5,
    "objective": {"_target_": "binventory.objectives.classification.Classification", "label_smoothing": 0.0},
    "objective_metric": None,
    "optimizer._target_": "torch.optim.SGD",
    "optimizer.nesterov": False,
    "trainer.accumulate_grad_batches": 1,
    "trainer.gradient_clip_val": None,
    "trainer.limit_train_batches": None,
    "trainer.limit_test_batches": None,
    "trainer.overfit_batches": None,
    "callbacks.ema.decay": None,
    "callbacks.early_stopping.patience_epochs": None,
    "init_from": None,
}
CONSTANT = {"_target_": "binventory.models.schedules.constant", "_partial_": True}
STEP = {"_target_": "binventory.models.schedules.step", "_partial_": True, "step_size_epochs": 10, "gamma": 0.1}


def expected(preset: str) -> dict[str, Any]:
    if preset == "benchmark":
        own = ("resnet34", 40, 128, 224, 0.1, 0.9)
        kind = {"data.normalize": "imagenet", "model.weights": "none", "model.finetune": "full"}
        kind |= {"optimizer.weight_decay": 0.0001, "scheduler": STEP}
    else:
        own = REPORT[preset][0]
        kind = {"data.normalize": "dataset", "model.weights": f"{own[0]}.tv_in1k", "model.finetune": "head"}
        kind |= {"optimizer.weight_decay": 0.0, "scheduler": CONSTANT}
    names = ("model.name", "trainer.max_epochs", "data.batch_size", "data.image_size", "optimizer.lr")
    return SHARED | kind | dict(zip((*names, "optimizer.momentum"), own, strict=True))


@cache
def composed(preset: str, *overrides: str) -> dict[str, Any]:
    return to_plain(compose_checked("train", [f"experiment={preset}", *overrides])[0])


def changed(preset: str, *overrides: str) -> dict[str, Any]:
    """What overrides do to a preset, as flat values."""
    before, after = dict(leaves(composed(preset))), dict(leaves(composed(preset, *overrides)))
    assert before.keys() == after.keys()
    return {key: value for key, value in after.items() if value != before[key]}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_value(preset: str) -> None:
    config = OmegaConf.create(composed(preset))
    wanted = expected(preset)
    assert {key: OmegaConf.select(config, key, throw_on_missing=True) for key in wanted} == wanted


@pytest.mark.parametrize("preset", PRESETS)
def test_one_override_brings_an_honest_validation_back(preset: str) -> None:
    assert changed(preset, "data.val_fraction=0.1") == {"data.val_fraction": 0.1, "objective_metric": "val/accuracy"}


@pytest.mark.parametrize("preset", PRESETS)
def test_debug_fast_wins_and_changes_nothing_else(preset: str) -> None:
    limits = {f"trainer.limit_{split}_batches": 1.0 for split in ("train", "val", "test")}
    wanted = {"data.batch_size": 4, "data.image_size": 64, "trainer.max_epochs": 1, **limits}
    assert changed(preset, "debug=fast") == wanted


@pytest.fixture(scope="module")
def bins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder laid out like the public bucket: eight bins of each count."""
    folder = tmp_path_factory.mktemp("bucket")
    draw_bins(folder, {f"{number:05d}": number % 5 + 1 for number in range(40)})
    return folder


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A folder to run in. It is emptied at once: a run of ResNet-101 writes half a gigabyte."""
    yield tmp_path
    shutil.rmtree(tmp_path / "outputs")


def figures(run: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    return read


@pytest.mark.parametrize("preset", PRESETS)
def test_starts(preset: str, bins: Path, place: Path) -> None:
    """Only where the photos come from, and the weights, which would be downloaded, are other than the preset says."""
    given = [f"data.source={bins}", "data.file_list=null", "model.weights=none"]
    run = run_here(place, "train", f"experiment={preset}", "debug=fast", *given)
    wanted = dict(leaves(composed(preset, "debug=fast", *given)))
    assert dict(leaves(to_plain(OmegaConf.load(run / "config.yaml")))) == wanted  # type: ignore[arg-type]
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    written = figures(run)
    assert (written["val"], written["epochs"], written["best_epoch"]) == (None, 1, 1)
    assert written["test"]["num_images"] == 4


SMALL = ["model=tiny", "data.image_size=32", "data.batch_size=8", "trainer.max_epochs=3"]


def bundle_is(run: Path, checkpoint: str) -> bool:
    shipped = load_bundle(run / "bundle").network.state_dict()
    saved = read_checkpoint(run / "checkpoints" / checkpoint)["state_dict"]
    return all(torch.equal(value, saved[f"network.{name}"]) for name, value in shipped.items())


def test_without_validation_the_last_epoch_is_tested(bins: Path, place: Path) -> None:
    run = run_here(place, "train", "experiment=exp1", f"data.source={bins}", "data.file_list=null", *SMALL)
    written = figures(run)
    assert (written["val"], written["epochs"], written["best_epoch"]) == (None, 3, 3)
    assert written["test"]["num_images"] == 8
    assert not (run / "checkpoints" / BEST).exists()
    assert bundle_is(run, LAST)
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    assert not any(name.startswith("val/") for name in rows[0])


def test_with_validation_the_best_epoch_is_tested(bins: Path, place: Path) -> None:
    given = [f"data.source={bins}", "data.file_list=null", "data.val_fraction=0.25"]
    run = run_here(place, "train", "experiment=exp1", *given, *SMALL)
    written = figures(run)
    assert written["val"]["num_images"] == 8
    with (run / "metrics.csv").open() as file:
        accuracies = [float(row["val/accuracy"]) for row in csv.DictReader(file)]
    assert written["best_epoch"] == accuracies.index(max(accuracies)) + 1
    assert bundle_is(run, BEST)


def published() -> list[dict[str, str]]:
    with (CONFIG_DIR / "experiment" / "published_results.csv").open() as file:
        return list(csv.DictReader(file))


def test_published_results() -> None:
    rows = {row["preset"]: row for row in published() if row["preset"]}
    assert list(rows) == PRESETS
    wanted = {name: figures for name, (_, figures) in REPORT.items()} | {"benchmark": ("0.384", "40")}
    assert {name: (row["accuracy"], row["minutes"]) for name, row in rows.items()} == wanted
    assert {row["instance"] for row in rows.values()} == {"ml.g4dn.xlarge"}
    record = [(row["accuracy"], row["rmse"]) for row in published() if not row["preset"]]
    assert record == [("0.5567", "0.930"), ("0.587", "0.80")]


def test_the_table_of_the_docs_says_what_the_presets_do() -> None:
    text = (ROOT / "docs" / "experiments.md").read_text()
    rows = {first: line.split(" | ") for first, line in re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE)}
    assert list(rows) == PRESETS
    for preset, result in {row["preset"]: row for row in published() if row["preset"]}.items():
        wanted = expected(preset)
        keys = ("model.name", "trainer.max_epochs", "data.batch_size", "data.image_size", "optimizer.lr")
        cells = [str(wanted[key]) for key in (*keys, "optimizer.momentum")]
        assert rows[preset] == [*cells, f"{float(result['accuracy']):.3f}", result["minutes"]]


def commands() -> list[str]:
    text = (ROOT / "docs" / "experiments.md").read_text()
    return re.findall(r"^python train\.py (.*?)(?:  #.*)?$", text, re.MULTILINE)


@pytest.mark.parametrize("line", commands())
def test_commands_of_the_docs_compose(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "file_list.json").write_text("{}")
    overrides = [*line.removeprefix("-m ").split(), "trainer.accelerator=auto"]
    assert compose_checked("train", overrides, multirun=line.startswith("-m "))
