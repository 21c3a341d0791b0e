"""A run on cached features of a frozen backbone is the run that computes the backbone every time."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.resume.runs import BATCHES, Lab

# A learning rate at which features of another photo, or of another flip, show in every figure.
FROZEN = ["model.finetune=head", "optimizer.lr=2.5"]
TOLERANCE = 1e-5
UNCACHED = "model.cache_features=false"
STOP = {"phase": "train", "call": BATCHES + 5, "do": "SIGTERM"}


def figures(run: Path) -> dict[str, float]:
    """Return all that a run says in numbers, but how long it took."""
    found: dict[str, float] = {}
    for name in ("metrics.csv", "predictions.csv"):
        with (run / name).open(newline="") as file:
            for place, row in enumerate(csv.DictReader(file)):
                numbers = {key: value for key, value in row.items() if key not in ("id", "path", "seconds") and value}
                found.update({f"{name} {place} {key}": float(value) for key, value in numbers.items()})
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    for split in ("val", "test"):
        found.update({f"{split} {key}": value for key, value in metrics[split].items() if isinstance(value, float)})
    return found


def check_near(found: Path, wanted: Path) -> None:
    """Fail unless all figures and the head's weights are within `TOLERANCE`, and the backbone's are the same."""
    mine, other = figures(found), figures(wanted)
    assert mine.keys() == other.keys()
    far = {
        name: (mine[name], other[name]) for name in mine if not math.isclose(mine[name], other[name], abs_tol=TOLERANCE)
    }
    assert not far
    assert len(mine) > 300
    weights, others = (load_file(run / "bundle" / "weights.safetensors") for run in (found, wanted))
    for name, tensor in weights.items():
        if name.startswith("backbone.fc."):
            torch.testing.assert_close(tensor, others[name], rtol=0, atol=TOLERANCE)
        else:
            assert torch.equal(tensor, others[name]), name


@pytest.mark.parametrize(
    ("overrides", "num_ranks"),
    [
        ([], 1),
        (["data.hflip=0"], 1),
        (["data.hflip=1", "callbacks.ema.decay=0.8", "trainer.accumulate_grad_batches=3"], 2),
    ],
    ids=["half flipped", "none flipped", "two ranks"],
)
def test_cached_equals_computed_every_time(overrides: list[str], num_ranks: int, lab: Lab) -> None:
    cached = lab.undisturbed(*FROZEN, *overrides, num_ranks=num_ranks)
    check_near(cached, lab.undisturbed(*FROZEN, *overrides, UNCACHED, num_ranks=num_ranks))
    first, last = (float(row["train/loss"]) for row in list(csv.DictReader((cached / "metrics.csv").open()))[::2])
    assert abs(first - last) > 0.01, "something is learned"


def test_stopped_and_resumed_with_and_without_the_cache(lab: Lab) -> None:
    series, other = lab.series(*FROZEN), lab.series(*FROZEN)
    stopped = series.start(plan=STOP)
    assert stopped.wait() == 143, stopped.stderr
    assert 0 < series.position()["batches"] < BATCHES
    shutil.copytree(lab.jobs.seen(series.output_dir), lab.jobs.seen(other.output_dir))
    job = series.resume_by_folder()
    assert job.wait() == 0, job.stderr
    assert "frozen features: 240 photos" in job.stdout
    series.check_equals(lab.undisturbed(*FROZEN))
    job = other.resume_by_folder(UNCACHED)
    assert job.wait() == 0, job.stderr
    assert "frozen features" not in job.stdout
    check_near(other.run, series.run)
