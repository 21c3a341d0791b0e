"""How long `binventory compare`, its page included, takes on 200 finished runs of one test set of 2,000 photos.

Makes the run folders, starts the command five times, and appends the median to results/compare.csv:
`python benchmarks/compare.py`. The aim: under 5 s.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf
from PIL import Image

from binventory.config.capture import to_plain
from binventory.config.compose import compose_checked
from binventory.tasks.predictions import prediction_row, write_csv
from recording import record

NUM_RUNS, NUM_PHOTOS, NUM_STARTS = 200, 2000, 5
COUNTS = [1, 2, 3, 4, 5]


def make_run(folder: Path, number: int, config: dict[str, object]) -> None:
    """Write a run folder: what a finished training leaves, without its weights."""
    generator = np.random.default_rng(number)
    quantities = np.random.default_rng(0).integers(1, 6, NUM_PHOTOS)
    scores = generator.normal(size=(NUM_PHOTOS, len(COUNTS)))
    scores[np.arange(NUM_PHOTOS), quantities - 1] += 0.005 * number
    probabilities = (np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)).tolist()
    rows = [
        prediction_row(f"{place:05d}", f"photos/{place:05d}.jpg", int(quantity), shares, COUNTS)
        for place, (quantity, shares) in enumerate(zip(quantities, probabilities, strict=True))
    ]
    write_csv(folder / "predictions.csv", rows, COUNTS)
    errors = np.array([row["predicted"] for row in rows]) - quantities
    figures = {"accuracy": float((errors == 0).mean()), "rmse": float(np.sqrt((errors**2).mean()))}
    scored = {**figures, "within_one": float((abs(errors) < 2).mean()), "num_images": NUM_PHOTOS}
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    status = {"state": "done", "task": "binventory.tasks.train:run", "started": now, "ended": now, "exit_code": 0}
    metrics = {"val": scored, "test": scored, "epochs": 30, "train_seconds": 100.0 + number}
    for name, values in (
        ("status.json", {**status, "error": None}),
        ("metrics.json", metrics),
        ("provenance.json", {"data": {"fingerprint": "0" * 64}}),
    ):
        (folder / name).write_text(json.dumps(values))
    optimizer = {**config["optimizer"], "lr": 0.01 * (1 + number // 5)}  # type: ignore[dict-item]
    curves = [f"{epoch},{2 / epoch},{1 - 1 / epoch},{2.1 / epoch},{0.9 - 1 / epoch}" for epoch in range(1, 31)]
    (folder / "metrics.csv").write_text("\n".join(["epoch,train/loss,train/accuracy,val/loss,val/accuracy", *curves]))
    (folder / "config.yaml").write_text(
        OmegaConf.to_yaml(OmegaConf.create({**config, "seed": number % 5, "optimizer": optimizer}))
    )


def make_photos(folder: Path) -> None:
    """Write the photos: noise on a gradient, 500 pixels a side, some 60 KB each."""
    folder.mkdir()
    ramp = np.add.outer(np.arange(500), np.arange(500)) // 5
    noise = np.random.default_rng(0).integers(0, 40, (500, 500, 3))
    photo = BytesIO()
    Image.fromarray((ramp[..., None] + noise).clip(0, 255).astype(np.uint8)).save(photo, "JPEG", quality=75)
    for place in range(NUM_PHOTOS):
        (folder / f"{place:05d}.jpg").write_bytes(photo.getvalue())


def main() -> None:
    """Make the runs, time the command, write the result."""
    with tempfile.TemporaryDirectory() as scratch:
        config = to_plain(compose_checked("train", [])[0])
        for number in range(NUM_RUNS):
            folder = Path(scratch) / "outputs" / "train" / f"2026-11-22_10-00-00-{number:04x}"
            folder.mkdir(parents=True)
            make_run(folder, number, config)
        make_photos(Path(scratch) / "photos")
        command = [sys.executable, "-c", "from binventory.cli import main; main()", "compare", "outputs"]
        seconds = []
        for _ in range(NUM_STARTS):
            started = time.perf_counter()
            subprocess.run(command, cwd=scratch, check=True, stdout=subprocess.DEVNULL)  # noqa: S603  our own
            seconds.append(time.perf_counter() - started)
        page_bytes = (Path(scratch) / "outputs" / "compare.html").stat().st_size
    row = {
        "num_runs": NUM_RUNS,
        "num_photos": NUM_PHOTOS,
        "num_pairs": NUM_RUNS * (NUM_RUNS - 1) // 2,
        "median_s": round(statistics.median(seconds), 2),
        "min_s": round(min(seconds), 2),
        "max_s": round(max(seconds), 2),
        "page_mb": round(page_bytes / 1e6, 1),
    }
    record("compare", [row])


if __name__ == "__main__":
    main()
