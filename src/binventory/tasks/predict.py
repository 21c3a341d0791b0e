"""Count the items on photos with a trained model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

from binventory.config.schema import PredictConfig
from binventory.data.inputs import list_inputs, record_warnings
from binventory.data.sources.mirror import distrust, large_downloads
from binventory.errors import InputError
from binventory.files import atomic_path
from binventory.reports.contact_sheet import save_contact_sheet
from binventory.serving.bundle import load_bundle
from binventory.tasks.predictions import agreement, columns, failures, none_answered, prediction_row, write_csv
from binventory.tasks.scoring import score_photos


def run(config: PredictConfig, run_dir: Path) -> int:
    """Write `predictions.csv`, `predictions.parquet` and `contact_sheet.png`.

    Args:
        config: a checked config.
        run_dir: the folder to write into.

    Returns:
        How many photos were predicted.

    Raises:
        InputError: no model, no input, or nothing of it could be read; predictions.csv is there all the same.
    """
    bundle = load_bundle(Path(config.run), config.accelerator)
    with large_downloads(config.data.confirm_download):
        photos = list_inputs(config.input, config.s3, config.paths.data_dir)
    scored = score_photos(
        bundle, photos, batch_size=config.batch_size, num_workers=config.num_workers, label="predicting"
    )
    rows = [
        prediction_row(photo.id, str(photo.path or ""), photo.quantity, probabilities, bundle.counts, error)
        for photo, (probabilities, error) in zip(photos, scored, strict=True)
    ]
    unread = (photo.path for photo, (_, error) in zip(photos, scored, strict=True) if error is not None and photo.path)
    distrust(unread, config.paths.data_dir)
    write_csv(run_dir / "predictions.csv", rows, bundle.counts)
    _write_parquet(run_dir / "predictions.parquet", rows, bundle.counts)
    read = [row for row in rows if row["error"] is None]
    if not read:
        raise InputError(
            f"input={config.input}: {none_answered([row['error'] for row in rows])};"
            f" the reasons are in {run_dir / 'predictions.csv'}"
        )
    if config.contact_sheet:
        # not the rows' paths: as text a path that is no UTF-8 is another
        paths = [photo.path for photo, row in zip(photos, rows, strict=True) if row["error"] is None and photo.path]
        save_contact_sheet(
            run_dir / "contact_sheet.png", read, paths, bundle.counts, config.contact_sheet, bundle.preprocessing
        )
    if warnings := record_warnings(photos):
        print(*warnings, sep="\n  ", file=sys.stderr)
    _say(rows, bundle.counts, run_dir)
    return len(read)


def _write_parquet(path: Path, rows: Sequence[dict[str, Any]], counts: Sequence[int]) -> None:
    kinds = {
        "id": pa.string(),
        "path": pa.string(),
        "quantity": pa.int64(),
        "predicted": pa.int64(),
        "error": pa.string(),
    }
    schema = pa.schema([(name, kinds.get(name, pa.float64())) for name in columns(counts)])
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(list(rows), schema), temporary)


def _say(rows: Sequence[dict[str, Any]], counts: Sequence[int], run_dir: Path) -> None:
    read = [row for row in rows if row["error"] is None]
    table = Table(title="Predicted counts", title_justify="left")
    for heading in ("count", "photos"):
        table.add_column(heading, justify="right")
    for count in counts:
        table.add_row(str(count), str(sum(row["predicted"] == count for row in read)))
    Console().print(table)
    failed = failures(row["error"] for row in rows)
    print(f"{len(read)} of {len(rows)} photos predicted{f', {failed} (see the error column)' if failed else ''}")
    if line := agreement(rows, counts):
        print(line)
    print(f"predictions: {run_dir / 'predictions.csv'}")
