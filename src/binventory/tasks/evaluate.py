"""Score a trained model on a labelled source."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from binventory.config.schema import EvaluateConfig
from binventory.data.inputs import InputPhoto, list_inputs, record_warnings
from binventory.data.sources.mirror import distrust, large_downloads
from binventory.errors import InputError
from binventory.files import write_json
from binventory.metrics.counting import CountingMetrics
from binventory.reports.table import print_results
from binventory.serving.bundle import load_bundle
from binventory.tasks.predictions import failures, none_answered, prediction_row, write_csv
from binventory.tasks.scoring import score_photos


def run(config: EvaluateConfig, run_dir: Path) -> float:
    """Write `metrics.json` and `predictions.csv` of a source whose quantities are known.

    Args:
        config: a checked config.
        run_dir: the folder to write into.

    Returns:
        The accuracy.

    Raises:
        InputError: no model, no source, or not one photo that could be scored.
    """
    bundle = load_bundle(Path(config.run), config.accelerator)
    with large_downloads(config.data.confirm_download):
        found = list_inputs(config.source, config.s3, config.paths.data_dir, key="source")
    photos = _labelled(found, bundle.counts, config.source)
    started = time.perf_counter()
    scored = score_photos(
        bundle, photos, batch_size=config.batch_size, num_workers=config.num_workers, label="evaluating"
    )
    seconds = time.perf_counter() - started
    rows = [
        prediction_row(photo.id, str(photo.path or ""), photo.quantity, probabilities, bundle.counts, error)
        for photo, (probabilities, error) in zip(photos, scored, strict=True)
    ]
    unread = (photo.path for photo, (_, error) in zip(photos, scored, strict=True) if error is not None and photo.path)
    distrust(unread, config.paths.data_dir)
    write_csv(run_dir / "predictions.csv", rows, bundle.counts)
    pairs = [(photo.quantity, found) for photo, (found, _) in zip(photos, scored, strict=True) if found is not None]
    if not pairs:
        raise InputError(f"source={config.source}: {none_answered([error for _, error in scored])}")
    metrics = CountingMetrics(bundle.counts)
    metrics.update(
        torch.tensor([found for _, found in pairs]),
        torch.tensor([bundle.counts.index(quantity) for quantity, _ in pairs if quantity is not None]),
    )
    figures: dict[str, Any] = {
        "val": None,
        "test": metrics.compute(),
        "epochs": None,
        "best_epoch": None,
        "train_seconds": None,
        "images_per_second": round(len(pairs) / seconds, 3),
    }
    write_json(run_dir / "metrics.json", figures)
    if failed := failures(error for _, error in scored):
        print(f"photos left out: {failed}; see the error column of predictions.csv", file=sys.stderr)
    print_results(figures, run_dir)
    return float(figures["test"]["accuracy"])


def _labelled(photos: list[InputPhoto], counts: list[int], source: str) -> list[InputPhoto]:
    """Leave out, and count aloud, what has no quantity or one that the model does not know."""
    if warnings := record_warnings(photos):
        print(*warnings, sep="\n  ", file=sys.stderr)
    labelled = [photo for photo in photos if photo.quantity in counts]
    unlabelled = sum(photo.quantity is None for photo in photos)
    if not labelled:
        raise InputError(
            f"source={source}: none of {len(photos)} photos has a quantity in {counts}, which is what the model counts;"
            " name a source with metadata, an ImageFolder tree or a table with a quantity column"
        )
    if len(labelled) < len(photos):
        other = len(photos) - len(labelled) - unlabelled
        print(f"left out: {unlabelled} without a quantity, {other} with a quantity outside {counts}", file=sys.stderr)
    return labelled
