"""The comparison that the proofs rest on notices everything but what it names as left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.resume.compare import differences
from tests.resume.runs import Lab

Change = Callable[[dict[str, Any]], None]


def flip_last_bit(tensor: torch.Tensor) -> None:
    first = (0,) * tensor.dim()
    changed = tensor[first].reshape(1).clone()
    changed.view(torch.uint8)[0] ^= 1
    tensor[first] = changed[0]


def change_checkpoint(run: Path, change: Change) -> None:
    path = run / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    path.unlink()  # it may share its blocks with another
    torch.save(checkpoint, path)


CHANGES: dict[str, Change] = {
    "checkpoints/last.ckpt/state_dict/network.backbone.fc.weight": lambda found: flip_last_bit(
        found["state_dict"]["network.backbone.fc.weight"]
    ),
    "checkpoints/last.ckpt/current_model_state/network.backbone.fc.bias": lambda found: flip_last_bit(
        found["current_model_state"]["network.backbone.fc.bias"]
    ),
    "checkpoints/last.ckpt/optimizer_states/0/state/0/momentum_buffer": lambda found: flip_last_bit(
        found["optimizer_states"][0]["state"][0]["momentum_buffer"]
    ),
    "checkpoints/last.ckpt/lr_schedulers/0/last_epoch": lambda found: found["lr_schedulers"][0].update(last_epoch=1),
    "checkpoints/last.ckpt/global_step": lambda found: found.update(global_step=1),
    "checkpoints/last.ckpt/epoch": lambda found: found.update(epoch=float(found["epoch"])),
}


@pytest.fixture
def pair(lab: Lab, tmp_path: Path) -> tuple[Path, Path]:
    """A run and a copy of it."""
    original = lab.undisturbed("callbacks.ema.decay=0.8")
    shutil.copytree(original, tmp_path / "copy")
    return original, tmp_path / "copy"


def test_equal_runs_are_equal(pair: tuple[Path, Path]) -> None:
    assert differences(*pair) == []


@pytest.mark.parametrize("path", CHANGES)
def test_every_value_of_a_checkpoint_counts(path: str, pair: tuple[Path, Path]) -> None:
    original, copy = pair
    change_checkpoint(copy, CHANGES[path])
    (line,) = differences(original, copy)
    assert line.startswith(f"{path}: ")


def test_a_key_on_one_side_only_counts(pair: tuple[Path, Path]) -> None:
    original, copy = pair
    change_checkpoint(copy, lambda found: found.update(new={}))
    assert any(
        line.startswith("checkpoints/last.ckpt/new/: only in the second") for line in differences(original, copy)
    )
    assert any(line.startswith("checkpoints/last.ckpt/new/: only in the first") for line in differences(copy, original))


def test_figures_count_and_times_do_not(pair: tuple[Path, Path]) -> None:
    original, copy = pair
    path = copy / "metrics.json"
    figures = json.loads(path.read_text())
    path.write_text(json.dumps({**figures, "train_seconds": -1.0, "images_per_second": -1.0}))
    rows = (copy / "metrics.csv").read_text().splitlines()
    seconds = rows[0].split(",").index("seconds")
    cells = rows[1].split(",")
    cells[seconds] = "99"
    (copy / "metrics.csv").write_text("\n".join([rows[0], ",".join(cells), *rows[2:]]) + "\n")
    assert differences(original, copy) == []
    path.write_text(json.dumps({**figures, "epochs": figures["epochs"] + 1}))
    (copy / "metrics.csv").write_text("\n".join([rows[0], ",".join(cells), *rows[2:-1]]) + "\n")
    (copy / "left.tmp").touch()
    found = "\n".join(differences(original, copy))
    for said in ("metrics.json/epochs: ", "metrics.csv/: ", "files/left.tmp: only in the second"):
        assert said in found
