"""Run folders as a finished training leaves them, with the predictions that a test wants."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from binventory.config.capture import save_config
from binventory.files import write_json
from binventory.tasks.predictions import prediction_row, write_csv

COUNTS = [1, 2, 3, 4, 5]
CONFIG = {"data": {"counts": COUNTS, "batch_size": 32}, "optimizer": {"lr": 0.1}, "seed": 0}
TRAIN = "binventory.tasks.train:run"


def predictions_of(quantities: Sequence[int], predicted: Sequence[int], photos: str = "photos") -> list[dict[str, Any]]:
    """Return rows of predictions.csv, ids by place."""
    rows = []
    for place, (quantity, count) in enumerate(zip(quantities, predicted, strict=True)):
        shares = [0.6 if each == count else 0.1 for each in COUNTS]
        rows.append(prediction_row(f"{place:05d}", f"{photos}/{place:05d}.jpg", int(quantity), shares, COUNTS))
    return rows


def make_run(
    folder: Path,
    rows: Sequence[Mapping[str, Any]],
    *,
    config: Mapping[str, Any] | None = None,
    fingerprint: str | None = "a" * 64,
    started: str = "2026-11-22T10:00:00.000+00:00",
    curves: Mapping[str, Sequence[float]] | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write a finished run whose figures are those of its rows; `curves` are those of metrics.csv."""
    folder.mkdir(parents=True)
    write_csv(folder / "predictions.csv", rows, COUNTS)
    errors = np.array([row["predicted"] - row["quantity"] for row in rows if row["predicted"] is not None])
    test = {"accuracy": float((errors == 0).mean()), "rmse": float((errors**2).mean() ** 0.5)}
    test["num_images"] = len(errors)
    write_json(folder / "metrics.json", {"val": {"accuracy": 0.5}, "test": test, "epochs": 3, "train_seconds": 9.5})
    data = {} if fingerprint is None else {"data": {"fingerprint": fingerprint}}
    write_json(folder / "provenance.json", {**data, **(provenance or {})})
    if curves is not None:
        with (folder / "metrics.csv").open("w", newline="") as file:
            epochs = zip(*curves.values(), strict=True)
            csv.writer(file).writerows([["epoch", *curves], *([number, *row] for number, row in enumerate(epochs, 1))])
    save_config(OmegaConf.create({**CONFIG, **(config or {})}), folder / "config.yaml")
    write_state(folder, "done", started=started)
    return folder


def write_state(folder: Path, state: str, error: Mapping[str, str] | None = None, **others: Any) -> None:
    """Write status.json."""
    status = {"state": state, "task": TRAIN, "started": None, "ended": None, "exit_code": None, "error": error}
    (folder / "status.json").write_text(json.dumps({**status, **others}))
