"""What a W&B run shows of the test: confusion matrix, accuracy per count, the photos to look at first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from binventory.data.decode import PhotoError
from binventory.data.preprocess import Preprocessing
from binventory.reports.hard_photos import as_seen, certainty, least_certain, most_wrong

PHOTO_SIZE = 256  # pixels a side
PHOTO_COLUMNS: list[str | int] = ["photo", "why", "id", "quantity", "predicted", "expected", "certainty", "p_quantity"]


def test_media(
    rows: Sequence[Mapping[str, Any]],
    photos: Sequence[str],
    per_count: Mapping[str, Mapping[str, Any]],
    num_photos: int,
    preprocessing: Preprocessing,
) -> dict[str, Any]:
    """Return what is logged of a test set, by key.

    Args:
        rows: of predictions.csv; those with an error are left out.
        photos: the path of each.
        per_count: as in metrics.json.
        num_photos: in each half of the table of photos; 0: no table.
        preprocessing: of the model: photos are shown as it got them.
    """
    import wandb

    counts = [int(count) for count in per_count]
    places = [place for place, row in enumerate(rows) if row["error"] is None]
    read = [rows[place] for place in places]
    bars = wandb.Table(
        columns=["count", "accuracy"], data=[[count, entry["accuracy"]] for count, entry in per_count.items()]
    )
    media = {
        "test/confusion_matrix": wandb.plot.confusion_matrix(
            y_true=[counts.index(row["quantity"]) for row in read],
            preds=[counts.index(row["predicted"]) for row in read],
            class_names=[str(count) for count in counts],
            title="Test: recorded and predicted counts",
        ),
        "test/per_count": wandb.plot.bar(bars, "count", "accuracy", title="Test accuracy per count"),
    }
    if num_photos:
        media["test/photos"] = _photo_table(
            read, [photos[place] for place in places], counts, num_photos, preprocessing
        )
    return media


def _photo_table(
    rows: Sequence[Mapping[str, Any]],
    photos: Sequence[str],
    counts: Sequence[int],
    num_photos: int,
    preprocessing: Preprocessing,
) -> Any:
    import wandb

    chosen = [("most wrong", place) for place in most_wrong(rows, counts, num_photos)]
    chosen += [("least certain", place) for place in least_certain(rows, counts, num_photos)]
    table = wandb.Table(columns=PHOTO_COLUMNS)
    for why, place in chosen:
        row = rows[place]
        table.add_data(
            _thumbnail(photos[place], preprocessing), why, row["id"], row["quantity"], row["predicted"],
            row["expected"], certainty(row, counts), row[f"p_{row['quantity']}"],
        )  # fmt: skip
    return table


def _thumbnail(path: str, preprocessing: Preprocessing) -> Any:
    import wandb

    try:
        photo = as_seen(Path(path), preprocessing, PHOTO_SIZE)
    except PhotoError as error:  # it could be read when it was tested
        return wandb.Image(Image.new("RGB", (PHOTO_SIZE, PHOTO_SIZE), "#e4e3de"), caption=error.reason)
    return wandb.Image(photo, file_type="jpg")
