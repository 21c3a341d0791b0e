"""The comparison as the page's script reads it: plain values for tables and charts, photos as small JPEGs."""

from __future__ import annotations

import base64
from io import BytesIO
from pathlib import Path
from typing import Any

from binventory.compare.cells import LEVEL, heading, letters_of_test_sets, shown_metrics, without_seed
from binventory.compare.columns import Column
from binventory.compare.disagree import DisputedPhoto
from binventory.compare.paired import Pair
from binventory.compare.run import Run
from binventory.compare.table import Comparison
from binventory.data.text import printable

THUMBNAIL = 264  # pixels on the longer side: twice of what the page shows
JPEG_QUALITY = 72
MAX_VISIBLE = 20  # curves at first
MAX_GROUPS = 40  # in the chart
MAX_TITLE_KEYS = 6
# The metric that is shown first is the first of these that was logged.
CURVE_METRICS = ("val/accuracy", "val/loss", "train/loss", "train/accuracy", "val/rmse")


def page_data(comparison: Comparison) -> dict[str, Any]:
    """Return plain values; runs are positions in the list of runs. Reads the photos on which runs disagree."""
    groups = comparison.groups[:MAX_GROUPS] if any(len(group.runs) > 1 for group in comparison.groups) else ()
    group_metrics = list(
        dict.fromkeys([*shown_metrics(comparison), *(name for group in groups for name in group.means)])
    )
    curves = [curve for curve in comparison.curves if curve.problem is None and curve.values]
    logged = {name for curve in curves for name in curve.values}
    first = [name for name in CURVE_METRICS if name in logged]
    return {
        "labels": shown_labels(comparison),
        "titles": run_titles(comparison),
        "colors": color_numbers(comparison),
        "pairs": [_pair(pair) for pair in comparison.pairs],
        "groups": [
            {"name": name, "color": number, "runs": group.runs, "means": group.means, "stds": group.stds}
            for number, (name, group) in enumerate(zip(group_titles(comparison), groups, strict=False))
        ],
        "groupMetrics": [name for name in group_metrics if groups and not name.endswith("num_images")],
        "figures": {name: [run.figures.get(name) for run in comparison.runs] for name in group_metrics if groups},
        "curves": [
            {
                "run": curve.run,
                "epochs": curve.epochs,
                "values": {name: [_brief(value) for value in values] for name, values in curve.values.items()},
            }
            for curve in curves
        ],
        "curveMetrics": [*first, *sorted(logged - set(first))],
        "maxVisible": MAX_VISIBLE,
        "confusions": [
            {"run": each.run, "counts": each.counts, "matrix": each.matrix} for each in comparison.confusions
        ],
        "photos": [_photo(comparison, photo) for photo in comparison.disagreement.photos],
    }


def shown_labels(comparison: Comparison) -> list[str]:
    """Return the labels of the runs as text for people."""
    return [printable(label, 120) for label in comparison.labels]


def run_titles(comparison: Comparison) -> list[str]:
    """Return for each run its label and what is its own in the config."""
    columns = comparison.columns[:MAX_TITLE_KEYS]
    return [
        " ".join([label, *(f"{heading(column.name)}={column.text(run)}" for column in columns)])
        for label, run in zip(shown_labels(comparison), comparison.runs, strict=True)
    ]


def group_titles(comparison: Comparison) -> list[str]:
    """Return for each seed group its number and what is its own in the config."""
    columns = without_seed(comparison)[:2]
    return [
        printable(" ".join([str(number), *(_short(comparison.runs[group.runs[0]], each) for each in columns)]), 40)
        for number, group in enumerate(comparison.groups, 1)
    ]


def _short(run: Run, column: Column) -> str:
    return f"{column.name.rsplit('.', 1)[-1]}={column.text(run)}"


def color_numbers(comparison: Comparison) -> list[int]:
    """Return the number of each run's colour: that of its seed group; runs in none have one each, after these."""
    of_groups = {place: number for number, group in enumerate(comparison.groups) for place in group.runs}
    alone = [place for place in range(len(comparison.runs)) if place not in of_groups]
    others = {place: number for number, place in enumerate(alone, len(comparison.groups))}
    return [{**of_groups, **others}[place] for place in range(len(comparison.runs))]


def winners(pair: Pair) -> tuple[int | None, int | None]:
    """Return which run is better by more than chance, in accuracy and in RMSE; None: not told apart."""
    more = pair.first if pair.accuracy_difference > 0 else pair.second
    smaller = pair.first if pair.rmse_difference < 0 else pair.second
    return (
        more if pair.accuracy_p_corrected < LEVEL else None,
        smaller if pair.rmse_p_corrected < LEVEL else None,
    )


def _pair(pair: Pair) -> list[float | None]:
    of_accuracy, of_rmse = winners(pair)
    return [
        pair.first, pair.second, pair.only_first, pair.only_second,
        _brief(pair.accuracy_difference), *map(_brief, pair.accuracy_interval), _brief(pair.accuracy_p_corrected),
        of_accuracy,
        _brief(pair.rmse_difference), *map(_brief, pair.rmse_interval), _brief(pair.rmse_p_corrected), of_rmse,
    ]  # fmt: skip


def _brief(value: float | None) -> float | None:
    """Return a number with the digits that a chart can show: half of the bytes."""
    return None if value is None else float(f"{value:.6g}")


def _photo(comparison: Comparison, photo: DisputedPhoto) -> dict[str, Any]:
    letters = letters_of_test_sets(comparison)
    shown = _thumbnail(comparison.runs[photo.answers[0].run], photo.path)
    return {
        "id": printable(photo.id, 80),
        "quantity": photo.quantity,
        "set": letters[photo.answers[0].run] if len(comparison.test_sets) > 1 else None,
        "tally": list(photo.tally.items()),
        "answers": [
            {
                "run": answer.run,
                "predicted": answer.predicted,
                "certainty": None if answer.certainty is None else round(answer.certainty, 4),
            }
            for answer in photo.answers
        ],
        **shown,
    }


def _thumbnail(run: Run, path: str) -> dict[str, str]:
    """Return the photo as a data URI, or why there is none."""
    from PIL import Image

    from binventory.data.decode import PhotoError, decode_rgb, read_photo

    if not path:
        return {"problem": "predictions.csv names no photo"}
    place = Path(path)
    if not place.is_absolute() and run.working_dir is not None and not place.exists():
        place = Path(run.working_dir) / place  # relative to where the run was started
    try:
        image = decode_rgb(read_photo(place), str(place))
    except PhotoError as error:
        return {"problem": error.reason}
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR, reducing_gap=2.0)
    jpeg = BytesIO()
    image.save(jpeg, format="JPEG", quality=JPEG_QUALITY)
    return {"image": f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"}
