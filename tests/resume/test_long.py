"""Long runs hold no more at their end than in their middle: memory, open files, threads, by a measured slope."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from tests.resume import meter
from tests.resume.runs import SMALL, Lab
from tests.resume.trap import TARGET

NUM_EPOCHS = int(os.environ.get("TEST_LONG_EPOCHS", "300"))
NUM_PHOTOS = int(os.environ.get("TEST_LONG_PHOTOS", "20000"))
BATCH_SIZE = 64
# Per epoch: half of what `meter` leaks on request. 300 epochs that stay below it gain less than 10 MB.
MAX_BYTES_PER_EPOCH = meter.LEAK_BYTES / 2
# Predictions are kept until they are written, about 450 bytes each; one decoded photo of 32 x 32 would be 3 KB.
MAX_BYTES_PER_PHOTO = 1024
MAX_HANDLES = 0.02  # per row; one a row would be 1


def train(lab: Lab, name: str, num_epochs: int, leak: str = "") -> Path:
    """Train many short epochs in one process and return the rows that were measured."""
    rows = lab.folder / f"{name}.rows"
    overrides = [override for override in SMALL if override != TARGET]
    overrides += [meter.TARGET, f"trainer.max_epochs={num_epochs}", "trainer.limit_train_batches=2"]
    overrides += ["trainer.limit_test_batches=1", f"paths.output_dir={lab.folder / name}"]
    job = lab.jobs.start(lab.folder, "train", overrides, **{meter.FILE: str(rows), meter.LEAK: leak})
    assert job.wait(timeout_s=550) == 0, job.stderr
    return rows


def predict(lab: Lab, name: str, num_photos: int, leak: str = "") -> Path:
    """Predict a folder of links to few photos and return the rows that were measured."""
    rows = lab.folder / f"{name}.rows"
    many = lab.folder / f"{name}-photos"
    many.mkdir()
    photos = sorted(lab.folder.glob(".cache/data/synthetic/*/bin-images/*.jpg"))[:20]
    for number in range(num_photos):
        os.link(photos[number % len(photos)], many / f"{number:06d}.jpg")
    (run,) = (lab.folder / "short").glob("train/*")
    overrides = [f"run={run}", f"input={many}", f"batch_size={BATCH_SIZE}", "num_workers=2"]
    environment = {meter.FILE: str(rows), meter.CALLS: "probabilities", meter.LEAK: leak}
    job = lab.jobs.start(lab.folder, "predict", overrides, BINVENTORY_ALLOW_TARGETS="tests.", **environment)
    assert job.wait(timeout_s=550) == 0, job.stderr
    assert f"{num_photos} of {num_photos} photos predicted" in job.stdout
    return rows


@pytest.mark.long
def test_training_stays_flat(lab: Lab) -> None:
    rows = train(lab, "long", NUM_EPOCHS)
    assert len(np.loadtxt(rows)) == NUM_EPOCHS + 1, "one a validation, one of the test"
    gains = meter.slopes(rows)
    print(gains)
    assert gains["memory"] < MAX_BYTES_PER_EPOCH
    assert abs(gains["files"]) < MAX_HANDLES
    assert abs(gains["threads"]) < MAX_HANDLES


@pytest.mark.long
def test_predictions_stay_flat(lab: Lab) -> None:
    train(lab, "short", 1)
    gains = meter.slopes(predict(lab, "many", NUM_PHOTOS))
    print(gains)
    assert gains["memory"] / BATCH_SIZE < MAX_BYTES_PER_PHOTO
    assert abs(gains["files"]) < MAX_HANDLES
    assert abs(gains["threads"]) < MAX_HANDLES
    leaking = meter.slopes(predict(lab, "leaking", 100 * BATCH_SIZE, leak="memory files threads"))
    print(leaking)
    assert leaking["memory"] / BATCH_SIZE > MAX_BYTES_PER_PHOTO, "a leak of 64 KB per batch is seen"
    assert leaking["files"] > 0.9
    assert leaking["threads"] > 0.9


@pytest.mark.long
def test_a_leak_in_training_is_seen(lab: Lab) -> None:
    """64 KB, one file and one thread per epoch."""
    gains = meter.slopes(train(lab, "leaking-training", NUM_EPOCHS, leak="memory files threads"))
    print(gains)
    assert gains["memory"] > MAX_BYTES_PER_EPOCH
    assert gains["files"] > 0.9
    assert gains["threads"] > 0.9
