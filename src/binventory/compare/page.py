"""The comparison as one HTML page: what its template shows. Nothing is computed here but how a figure is written."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import quote

from binventory.compare.cells import (
    LEVEL,
    figure_text,
    heading,
    left_out,
    letters_of_test_sets,
    mean_std,
    shown_metrics,
    times,
    without_seed,
)
from binventory.compare.columns import Column
from binventory.compare.page_data import MAX_VISIBLE, color_numbers, page_data, shown_labels, winners
from binventory.compare.page_published import REMARKS, published_rows
from binventory.compare.paired import Pair
from binventory.compare.render import write_file
from binventory.compare.run import STATES, Run, plain_text
from binventory.compare.table import Comparison
from binventory.data.text import printable
from binventory.metrics.direction import direction
from binventory.reports.html import render_page

TEMPLATE = Path(__file__).resolve().parent / "assets" / "compare.html"
MAX_SENTENCES = 4

Values = dict[str, Any]


def write_page(comparison: Comparison, path: Path) -> None:
    """Write the page, atomically. Photos on which runs disagree are read from where predictions.csv says they are.

    Raises:
        InputError: the file cannot be written, or a package that the page takes its scripts from is not installed.
    """
    data = page_data(comparison)
    has_curves = bool(data["curves"])
    has_groups = any(len(group.runs) > 1 for group in comparison.groups)
    values = {**_head(comparison), **_runs(comparison, path), **_groups(comparison), **_pairs(comparison)}
    values |= {**_curves(comparison), **_photos(comparison, data), **_published(comparison)}
    values |= {"charts": has_curves or has_groups, "has_groups": has_groups}
    values["sections"] = _sections(values)
    write_file("--html", path, render_page(TEMPLATE, values, data, charts=has_curves or has_groups))


def _head(comparison: Comparison) -> Values:
    states = Counter(run.state for run in comparison.runs)
    letters = letters_of_test_sets(comparison)
    sets = [
        {
            "letter": letters[same.runs[0]],
            "num_images": f"{same.num_images:,}",
            "num_runs": times(len(same.runs), "run"),
        }
        for same in comparison.test_sets
    ]
    folder = os.path.commonpath([run.path.resolve() for run in comparison.runs])
    return {
        "title": f"Comparison of {times(len(comparison.runs), 'run')}",
        "lead": printable(os.path.relpath(folder), 300),
        "written": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "version": metadata.version("binventory"),
        "states": ", ".join(f"{number} {state}" for state, number in states.most_common()),
        "metric": printable(comparison.metric, 100),
        "best_is": "most is best" if direction(comparison.metric) == "max" else "least is best",
        "test_sets": sets,
        "warnings": _warnings(comparison),
    }


def _warnings(comparison: Comparison) -> list[str]:
    lines = []
    if len(comparison.test_sets) > 1:
        apart = times(comparison.num_apart, "pair")
        lines.append(
            "The test sets differ: figures of runs on different test sets are not comparable."
            f" {apart} of runs {'is' if comparison.num_apart == 1 else 'are'} not compared."
        )
    if any(same.fingerprint is None and len(same.runs) > 1 for same in comparison.test_sets):
        lines.append("Runs without a data fingerprint were matched by ids and quantities only: photos may differ.")
    return lines + left_out(comparison)


def _runs(comparison: Comparison, page: Path) -> Values:
    runs, columns, metrics = comparison.runs, comparison.columns, shown_metrics(comparison)
    labels, colors = shown_labels(comparison), color_numbers(comparison)
    letters = letters_of_test_sets(comparison)
    groups = {place: str(number) for number, group in enumerate(comparison.groups, 1) for place in group.runs}
    best = {name: best_runs(comparison, name) for name in metrics}
    numeric = [_is_numeric(runs, column) for column in columns]
    rows = [
        {
            "label": labels[place],
            "href": _link(run.path, page.parent),
            "path": printable(str(run.path), 300),
            "color": colors[place],
            "state": run.state,
            "state_class": run.state if run.state in STATES else "broken",
            "task": run.task or "-",
            "group": groups.get(place, "-"),
            "test_set": letters.get(place, "-"),
            "config": [
                {"text": column.text(run), "order": column.value(run) if is_number else None, "is_number": is_number}
                for column, is_number in zip(columns, numeric, strict=True)
            ],
            "figures": [
                _cell(figure_text(name, run.figures.get(name)), run.figures.get(name), is_best=place in best[name])
                for name in metrics
            ],
            "problem": run.problem or "",
        }
        for place, run in enumerate(runs)
    ]
    return {
        "runs": rows,
        "has_tasks": len({run.task for run in runs}) > 1,
        "has_sets": len(comparison.test_sets) > 1,
        "has_problems": any(run.problem for run in runs),
        "config_headings": [
            {"name": heading(column.name), "is_number": is_number}
            for column, is_number in zip(columns, numeric, strict=True)
        ],
        "metrics": [{"name": heading(name), "first": _first(name)} for name in metrics],
    }


def _first(name: str) -> str:
    return "desc" if direction(name) == "max" else "asc"


def _cell(text: str, order: float | None, *, is_best: bool = False) -> Values:
    return {"text": text, "order": order, "is_best": is_best}


def _is_numeric(runs: Sequence[Run], column: Column) -> bool:
    values = [value for run in runs if (value := column.value(run)) is not None]
    return bool(values) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def best_runs(comparison: Comparison, name: str) -> set[int]:
    """Return the finished runs that are best by a figure, of those whose figures are of the same photos."""
    rivals: dict[Hashable, list[int]] = {}
    for place, run in enumerate(comparison.runs):
        if run.is_done and name in run.figures:
            rivals.setdefault(_photos_of(comparison, place, name), []).append(place)
    best: set[int] = set()
    for photos, places in rivals.items():
        if photos is None:
            continue
        if len(places) > 1:
            values = {place: comparison.runs[place].figures[name] for place in places}
            top = (max if direction(name) == "max" else min)(values.values())
            best |= {place for place, value in values.items() if value == top}
    return best


def _photos_of(comparison: Comparison, place: int, name: str) -> Hashable:
    """Return what is the same for runs whose figure is of the same photos; None where a run does not say of which."""
    run, split = comparison.runs[place], name.partition("/")[0]
    test_set = letters_of_test_sets(comparison).get(place)
    if split == "test":
        return test_set
    # A fingerprint covers photos, quantities and split. Without one, runs are held together as their test sets are.
    source = run.fingerprint or test_set
    num_images = run.figures.get("val/num_images") if split == "val" else None  # seconds hang on the photos, too
    return None if source is None else (source, num_images)


def _link(folder: Path, base: Path) -> str:
    """Return the relative URL of a run folder. Its colons are escaped: no part of a name can be taken for a scheme."""
    return quote(os.fsencode(os.path.relpath(folder, base))) + "/"


def _groups(comparison: Comparison) -> Values:
    metrics = shown_metrics(comparison)
    columns = without_seed(comparison)
    rows = [
        {
            "name": str(number),
            "color": number - 1,
            "num_runs": len(group.runs),
            "seeds": ", ".join(map(plain_text, group.seeds)),
            "config": [column.text(comparison.runs[group.runs[0]]) for column in columns],
            "figures": [_cell(mean_std(name, group), group.means.get(name)) for name in metrics],
        }
        for number, group in enumerate(comparison.groups, 1)
    ]
    return {"groups": rows, "group_headings": [heading(column.name) for column in columns]}


def _pairs(comparison: Comparison) -> Values:
    pairs = comparison.pairs
    of_accuracy = sum(pair.accuracy_p_corrected < LEVEL for pair in pairs)
    of_rmse = sum(pair.rmse_p_corrected < LEVEL for pair in pairs)
    best = [pair for pair in pairs if pairs and pair.first == pairs[0].first][:MAX_SENTENCES]
    return {
        "num_pairs": times(len(pairs), "pair") if pairs else "",
        "pairs_summary": f"Of {times(len(pairs), 'pair')}, {of_accuracy} differ by more than chance in accuracy,"
        f" {of_rmse} in RMSE.",
        "sentences": [_sentence(comparison, pair) for pair in best],
    }


def _sentence(comparison: Comparison, pair: Pair) -> str:
    """Say in words what a pair's figures mean."""
    labels = shown_labels(comparison)
    first, second = labels[pair.first], labels[pair.second]
    of_accuracy, of_rmse = winners(pair)
    sign = -1 if of_accuracy == pair.second else 1
    low, high = sorted(100 * sign * end for end in pair.accuracy_interval)
    points = f"{100 * abs(pair.accuracy_difference):.1f} percentage points"
    interval = f"95%: {low:.1f} to {high:.1f}".replace("-", "−")  # noqa: RUF001  as in the table
    accuracy = (
        f"these photos do not tell their accuracies apart ({points}, {interval})"
        if of_accuracy is None
        else f"{labels[of_accuracy]} counts {points} more of the photos right ({interval})"
    )
    rmse = "nor their RMSEs" if of_accuracy is None else "their RMSEs are not told apart"
    if of_rmse is not None:
        rmse = f"{labels[of_rmse]} has an RMSE that is {abs(pair.rmse_difference):.3f} items smaller"
    return f"{first} and {second}: {accuracy}; {rmse}."


def _curves(comparison: Comparison) -> Values:
    labels, curves = shown_labels(comparison), comparison.curves
    longest = max((curve.num_epochs for curve in curves), default=0)
    notes = []
    if sum(curve.problem is None for curve in curves) > MAX_VISIBLE:
        notes.append(f"The best {MAX_VISIBLE} runs are shown at first.")
    if any(curve.num_epochs > len(curve.epochs) for curve in curves):
        notes.append(f"Of up to {longest:,} epochs, some are left out, evenly.")
    return {
        "has_curves": any(curve.problem is not None or curve.values for curve in curves),
        "curve_note": " ".join(notes),
        "curve_problems": [f"{labels[curve.run]}: {curve.problem}" for curve in curves if curve.problem is not None],
    }


def _photos(comparison: Comparison, data: Mapping[str, Any]) -> Values:
    labels, found = shown_labels(comparison), comparison.disagreement
    num_runs = max((len(same.runs) for same in comparison.test_sets), default=0)
    num_answers = max((len(photo.answers) for photo in found.photos), default=0)
    about = f"The runs count {found.num_disputed:,} of {times(found.num_photos, 'photo')} differently."
    if found.photos:
        shown = "All of them are here" if found.num_disputed == len(found.photos) else f"Here are {len(found.photos)}"
        about += (
            f" {shown}: first those on which most pairs of runs differ, then those that they count furthest apart."
            " The percentage is the probability that a run gives to its count."
        )
    if num_answers < num_runs and found.photos:
        about += f" Answers are those of the best {num_answers} runs of a test set, the numbers above them of all."
    return {
        "has_confusions": bool(comparison.confusions) or bool(comparison.untested),
        "prediction_problems": [f"{labels[place]}: {problem}" for place, problem in comparison.untested.items()],
        "has_disagreement": bool(found.num_photos),
        "num_photos": len(data["photos"]),
        "disagreement_about": about,
    }


def _published(comparison: Comparison) -> Values:
    rows = published_rows(comparison, shown_labels(comparison), color_numbers(comparison))
    return {"presets": comparison.presets, "published": rows, "remarks": REMARKS}


def _sections(values: Values) -> list[tuple[str, str]]:
    sections = [
        ("what", "Overview", True),
        ("runs", "Runs", True),
        ("seeds", "Seeds", values["has_groups"]),
        ("pairs", "Differences", bool(values["num_pairs"])),
        ("curves", "Curves", values["has_curves"]),
        ("confusions", "Confusion", values["has_confusions"]),
        ("published", "Published", bool(values["presets"])),
        ("disagreement", "Photos", values["has_disagreement"]),
    ]
    return [(anchor, name) for anchor, name, is_there in sections if is_there]
