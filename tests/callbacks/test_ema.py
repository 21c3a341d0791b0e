"""The average of the weights is what is validated, tested and shipped."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from binventory.serving.bundle import load_bundle
from tests.running import TINY, Run


def test_average_is_validated_tested_and_in_the_bundle(run: Run) -> None:
    # Keeping nearly all of it, the average stays at the weights after the first step, whatever training does later.
    folder = run("train", *TINY, "callbacks=ema", "callbacks.ema.decay=0.9999999", "trainer.max_epochs=3", "seed=3")
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    average, raw = checkpoint["state_dict"], checkpoint["current_model_state"]
    key = "network.backbone.fc.weight"
    assert not torch.allclose(average[key], raw[key], atol=1e-3), "training went on"
    assert int(checkpoint["averaging_state"]["n_averaged"]) == checkpoint["global_step"]
    with (folder / "metrics.csv").open(newline="") as file:
        losses = [float(row["val/loss"]) for row in csv.DictReader(file)]
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-3), "validated: the average, which does not move"
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"]
    bundle = load_file(folder / "bundle" / "weights.safetensors")
    assert all(torch.equal(value, best[f"network.{name}"]) for name, value in bundle.items())


def test_shipped_model_gives_the_tested_probabilities_to_the_bit(run: Run) -> None:
    """The normalisation is a constant buffer: averaged with itself it must not move, not even in its last bit."""
    folder = run("train", *TINY, "callbacks=ema", "callbacks.ema.decay=0.9")
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    bundle = load_bundle(folder)
    for start in range(0, len(rows), 32):
        batch = rows[start : start + 32]
        photos = [bundle.preprocessing.pixels(Path(row["path"]).read_bytes(), row["id"]) for row in batch]
        tested = [[float(row[f"p_{count}"]) for count in bundle.counts] for row in batch]
        assert bundle.probabilities(torch.stack(photos)).tolist() == tested
