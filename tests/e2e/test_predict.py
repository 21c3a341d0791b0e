"""Predicting and evaluating with a trained run."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image, ImageColor
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from binventory.cli import app
from binventory.reports.contact_sheet import CELL, GAP, HEADER
from binventory.serving.bundle import load_bundle, save_bundle
from tests.running import TINY, Run, latest


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def photos(trained: Path, tmp_path: Path) -> Path:
    """Eight photos of the test set, and files that cannot be read among them."""
    for row in read_csv(trained / "predictions.csv")[:8]:
        shutil.copy(trained.parents[2] / row["path"], tmp_path / Path(row["path"]).name)
    whole = sorted(tmp_path.iterdir())
    (tmp_path / "cut.jpg").write_bytes(whole[0].read_bytes()[:700])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("no photo")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe.jpg")).write_bytes(b"no UTF-8 in its name")
    (tmp_path / "notes.txt").write_text("not an input")
    return tmp_path


def test_predictions_equal_those_of_the_training_run(trained: Path, photos: Path, run: Run) -> None:
    done = run("predict", f"run={trained}", f"input={photos}", "batch_size=3")
    rows = {row["id"]: row for row in read_csv(done / "predictions.csv")}
    assert len(rows) == 12
    at_training = {row["id"]: row for row in read_csv(trained / "predictions.csv")[:8]}
    for bin_id, row in at_training.items():
        assert rows[bin_id]["error"] == ""
        assert rows[bin_id]["predicted"] == row["predicted"]
        for count in range(1, 6):
            assert float(rows[bin_id][f"p_{count}"]) == pytest.approx(float(row[f"p_{count}"]), abs=1e-5)
    for broken in ("cut", "empty", "text"):
        assert f"{broken}.jpg" in rows[broken]["error"]
        assert rows[broken]["predicted"] == rows[broken]["p_1"] == ""


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_they_do_so_in_each_precision_of_training(precision: str, run: Run) -> None:
    trained = run("train", *TINY, "trainer.max_epochs=1", f"trainer.precision={precision}")
    rows = {row["id"]: row for row in read_csv(trained / "predictions.csv")}
    photo_dir = Path(trained.parents[2] / next(iter(rows.values()))["path"]).parent
    done = run("predict", f"run={trained}", f"input={photo_dir}", "batch_size=7")
    found = {row["id"]: row for row in read_csv(done / "predictions.csv")}
    for bin_id, row in rows.items():
        for count in range(1, 6):
            assert float(found[bin_id][f"p_{count}"]) == pytest.approx(float(row[f"p_{count}"]), abs=1e-5)


def test_parquet_and_contact_sheet(trained: Path, photos: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    done = run("predict", f"run={trained}", f"input={photos}", "contact_sheet=5")
    table = pq.read_table(done / "predictions.parquet")
    rows = read_csv(done / "predictions.csv")
    assert table.column_names == list(rows[0])
    assert table["id"].to_pylist() == [row["id"] for row in rows]
    assert table["predicted"].to_pylist() == [int(row["predicted"]) if row["predicted"] else None for row in rows]
    sheet = Image.open(done / "contact_sheet.png")
    assert sheet.width > 5 * 200
    assert 200 < sheet.height < 500
    said = capsys.readouterr().out
    assert "8 of 12 photos predicted, 4 could not be read" in said


@pytest.mark.parametrize(
    ("resize", "shown"),
    [
        # colour at the left edge, left of the middle, right of it, at the right edge of the cell
        ("squash", ["red", "red", "blue", "blue"]),
        ("letterbox", ["red", "red", "blue", "blue"]),
        ("crop", ["grey", "grey", "grey", "grey"]),
    ],
)
def test_the_contact_sheet_shows_what_the_model_saw(
    resize: str, shown: list[str], trained: Path, tmp_path: Path, run: Run
) -> None:
    """Of a photo of two boxes, one at each end; with resize=crop it saw what is between them."""
    bundle, photos = tmp_path / "bundle", tmp_path / "photos"
    shutil.copytree(trained / "bundle", bundle)
    described = json.loads((bundle / "bundle.json").read_text())
    described["preprocessing"]["resize"] = resize
    (bundle / "bundle.json").write_text(json.dumps(described))
    photo = Image.new("RGB", (600, 200), "grey")
    for colour, left in (("red", 0), ("blue", 400)):
        photo.paste(colour, (left, 0, left + 200, 200))
    photos.mkdir()
    photo.save(photos / "two_boxes.png")
    sheet = Image.open(run("predict", f"run={bundle}", f"input={photos}") / "contact_sheet.png")
    found = [sheet.getpixel((GAP + x, HEADER + CELL // 2)) for x in (4, 50, 150, CELL - 5)]
    assert found == [ImageColor.getrgb(name) for name in shown]


def test_quantities_that_the_model_cannot_name_do_not_disagree(
    trained: Path, photos: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    tests = read_csv(trained / "predictions.csv")[:8]
    quantities = [9, 0, *(row["quantity"] for row in tests[2:])]
    lines = [f"{photos / Path(row['path']).name},{quantity}" for row, quantity in zip(tests, quantities, strict=True)]
    (photos / "table.csv").write_text("\n".join(["path,quantity", *lines]) + "\n")
    done = run("predict", f"run={trained}", f"input={photos}/table.csv")
    right = sum(row["predicted"] == row["quantity"] for row in tests[2:])
    said = capsys.readouterr().out
    assert f"{right} of 6 recorded quantities agree; 2 more are outside the model's counts [1, 2, 3, 4, 5]" in said
    result = CliRunner().invoke(app, ["compare", str(done), "--csv", str(photos / "runs.csv")])
    assert "2 photos have a quantity outside its counts" in result.output, result.output


def test_nothing_readable_is_exit_2_and_the_reasons_are_kept(
    trained: Path, tmp_path: Path, workplace: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_text("no photo")
    with pytest.raises(SystemExit) as exit_:
        run("predict", f"run={trained}", f"input={tmp_path}")
    assert exit_.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: input=")
    assert "none of 2 photos could be read" in error
    done = latest(workplace, "predict")
    assert [row["id"] for row in read_csv(done / "predictions.csv")] == ["a", "b"]
    assert json.loads((done / "status.json").read_text())["exit_code"] == 2


def damage(bundle: Path, fault: str) -> None:
    weights, description = bundle / "weights.safetensors", bundle / "bundle.json"
    if fault == "flipped bit":
        content = bytearray(weights.read_bytes())
        content[len(content) // 2] ^= 1
        weights.write_bytes(content)
    elif fault == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif fault == "missing":
        weights.unlink()
    elif fault == "NaN":
        values = load_file(weights)
        values["backbone.fc.bias"][2] = torch.nan
        save_file(values, weights)
        digest = hashlib.sha256(weights.read_bytes()).hexdigest()
        description.write_text(json.dumps({**json.loads(description.read_text()), "weights_sha256": digest}))
    elif fault == "not json":
        description.write_text("{")
    else:
        values: dict[str, Any] = json.loads(description.read_text())
        if fault == "other format":
            values["format"] = 99
        elif fault == "no preprocessing":
            del values["preprocessing"]
        elif fault == "counts are text":
            values["counts"] = "many"
        else:
            values["objective"]["_target_"] = "os.system"
        description.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("flipped bit", "checksum"),
        ("truncated", "checksum"),
        ("missing", "missing"),
        ("NaN", "backbone.fc.bias holds NaN or infinity"),
        ("not json", "cannot read"),
        ("other format", "format"),
        ("foreign objective", "os.system"),
        ("no preprocessing", "not a whole description"),
        ("counts are text", "not a whole description"),
    ],
)
def test_damaged_bundle_is_named(
    trained: Path, photos: Path, tmp_path: Path, fault: str, said: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "copy" / "bundle"
    shutil.copytree(trained / "bundle", bundle)
    damage(bundle, fault)
    with pytest.raises(SystemExit) as exit_:
        run("predict", f"run={bundle.parent}", f"input={photos}")
    assert exit_.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert said in error
    assert str(bundle) in error


def test_evaluate_scores_a_labelled_source(
    trained: Path, workplace: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """All drawn bins as the source: on the test bins among them the predictions are those of the training run."""
    (source,) = (
        path.parent for path in workplace.glob(".cache/data/synthetic/*/bin-images") if len(list(path.iterdir())) == 240
    )
    quoted = workplace / "it's mine"
    if not quoted.exists():
        shutil.copytree(trained / "bundle", quoted)
    command = CliRunner().invoke(app, ["evaluate", str(quoted), f"source={source}", "check=true"])
    assert command.exit_code == 0, command.output
    done = run("evaluate", f"run={trained}", f"source={source}")
    figures = json.loads((done / "metrics.json").read_text())
    rows = {row["id"]: row for row in read_csv(done / "predictions.csv")}
    assert figures["test"]["num_images"] == len(rows) == 240
    assert set(figures) == {"val", "test", "epochs", "best_epoch", "train_seconds", "images_per_second"}
    right = sum(row["predicted"] == row["quantity"] for row in rows.values())
    assert figures["test"]["accuracy"] == pytest.approx(right / 240)
    for row in read_csv(trained / "predictions.csv"):
        assert rows[row["id"]]["predicted"] == row["predicted"]
    assert "run folder: " in capsys.readouterr().out


def overflowing(trained: Path, photos: list[Path], folder: Path) -> Path:
    """Write a bundle whose weights are finite, and whose outputs are too large for a number on one of these photos."""
    bundle = load_bundle(trained)
    pixels = torch.stack([bundle.preprocessing.pixels(path.read_bytes(), path.name) for path in photos])
    with torch.inference_mode():
        features = bundle.network.features(pixels)  # none is negative
        sums = features @ features[0]
        second, first = sums.sort().values[-2:].tolist()
        head = bundle.network.backbone.get_classifier()
        head.weight[0] = features[0] * (torch.finfo(torch.float32).max / (first / 2 + second / 2))
    save_bundle(folder / "bundle", bundle.network, {**bundle.description, "weights_sha256": None})
    return photos[int(sums.argmax())]


def test_a_photo_without_finite_outputs_is_a_row_with_an_error(
    trained: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    for row in read_csv(trained / "predictions.csv")[:8]:
        (tmp_path / "photos" / row["quantity"]).mkdir(parents=True, exist_ok=True)
        shutil.copy(trained.parents[2] / row["path"], tmp_path / "photos" / row["quantity"])
    photos = sorted((tmp_path / "photos").glob("*/*"))
    bad = overflowing(trained, photos, tmp_path / "model")
    source = [f"source={tmp_path / 'photos'}"]
    for task, words in (("predict", [f"input={tmp_path / 'photos'}"]), ("evaluate", source)):
        done = run(task, f"run={tmp_path / 'model'}", *words)
        rows = {row["id"]: row for row in read_csv(done / "predictions.csv")}
        assert len(rows) == 8
        failed = rows.pop(bad.stem)
        assert (failed["predicted"], failed["p_1"]) == ("", "")
        assert failed["error"] == "the model's outputs are not finite numbers"
        assert {(row["predicted"], row["p_1"], row["error"]) for row in rows.values()} == {("1", "1.0", "")}
        said = capsys.readouterr()
        assert "1 without finite outputs of the model" in said.out + said.err
    assert json.loads((done / "metrics.json").read_text())["test"]["num_images"] == 7


def test_evaluate_without_labels_is_one_line(
    trained: Path, photos: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run("evaluate", f"run={trained}", f"source={photos}")
    assert exit_.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith(f"error: source={photos}: none of 12 photos has a quantity")


@pytest.mark.abid
def test_all_native_originals_are_predicted(trained: Path, abid: Path, run: Run) -> None:
    done = run("predict", f"run={trained}", f"input={abid / 'native'}")
    rows = read_csv(done / "predictions.csv")
    assert len(rows) == 389
    assert all(row["error"] == "" for row in rows)
