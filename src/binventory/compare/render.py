"""A comparison as text: on the terminal, as CSV, as Markdown. Nothing is computed here."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from binventory.compare.cells import (
    LEVEL,
    difference,
    figure_text,
    heading,
    left_out,
    letters_of_test_sets,
    mean_std,
    p_value,
    shown_metrics,
    times,
    without_seed,
)
from binventory.compare.columns import Column
from binventory.compare.paired import Pair
from binventory.compare.run import TRAINING_FIGURES, Run, plain_text
from binventory.compare.table import Comparison
from binventory.data.text import printable
from binventory.errors import InputError
from binventory.files import write_text

STYLES = {"done": "green", "failed": "red", "broken": "red", "running": "cyan", "preempted": "yellow"}
MAX_CELL = 36  # characters a line of a cell on a terminal
MARKUP = str.maketrans({**{char: f"\\{char}" for char in "\\`*_[]|"}, "<": "&lt;", ">": "&gt;", "&": "&amp;"})
MAX_PAIRS = 20  # more are in the CSV

Rows = list[list[str]]


class Sheet(NamedTuple):
    """A table.

    Attributes:
        title: of it.
        header: of its columns.
        rows: as many cells each.
        config: which of the columns are of the config: they may stand in tables of their own.
    """

    title: str
    header: list[str]
    rows: Rows
    config: range = range(0)


def print_comparison(comparison: Comparison) -> None:
    """Print the tables on stdout."""
    console = Console()
    for sheet in (part for whole in _sheets(comparison) for part in _fitting(whole, console.width)):
        table = Table(title=sheet.title, title_justify="left")
        for name in sheet.header:
            table.add_column(Text(name), overflow="fold")
        for row in sheet.rows:
            table.add_row(*(Text(cell, STYLES.get(cell, "")) for cell in row))
        console.print(table)
    for line in _remarks(comparison):
        console.print(Text(line), soft_wrap=True)


def write_markdown(comparison: Comparison, path: Path) -> None:
    """Write the tables as Markdown, atomically.

    Raises:
        InputError: the file cannot be written.
    """
    parts = []
    for title, header, rows, _ in _sheets(comparison):
        lines = [f"## {title}", "", _markdown_row(header), _markdown_row(["---"] * len(header))]
        parts.append("\n".join([*lines, *map(_markdown_row, rows)]))
    parts.extend(map(_escaped, _remarks(comparison)))
    write_file("--markdown", path, "\n\n".join(parts) + "\n")


def write_csv(comparison: Comparison, path: Path) -> list[Path]:
    """Write one row a run with all of its figures and, where there are pairs, `<name>.pairs.csv` beside it.

    Returns:
        The files.

    Raises:
        InputError: a file cannot be written.
    """
    written = [path]
    write_file("--csv", path, _csv(_run_rows(comparison)))
    if comparison.pairs and not _is_special(path):
        written.append(path.with_suffix(f".pairs{path.suffix or '.csv'}"))
        write_file("--csv", written[-1], _csv(_pair_rows(comparison)))
    return written


def _sheets(comparison: Comparison) -> list[Sheet]:
    sheets = [_runs_sheet(comparison)]
    if any(len(group.runs) > 1 for group in comparison.groups):
        sheets.append(_groups_sheet(comparison))
    if comparison.pairs:
        sheets.append(_pairs_sheet(comparison))
    return sheets


def _fitting(sheet: Sheet, width: int) -> list[Sheet]:
    """Return a table that is too wide as several: columns of the config that do not fit go on in the next one."""
    lengths = [
        max(len(name), *(min(MAX_CELL, len(row[place])) for row in sheet.rows)) + 3
        for place, name in enumerate(sheet.header)
    ]
    parts = [[place for place in range(len(sheet.header)) if place not in sheet.config]]
    for place in sheet.config:
        last = parts[-1]
        # A table of the config alone holds one column at least, beside what its rows are.
        if sum(lengths[each] for each in (*last, place)) + 1 > width and (len(parts) == 1 or len(last) > 1):
            parts.append([0])
        parts[-1] = sorted([*parts[-1], place])
    return [
        Sheet(
            f"{sheet.title}{' (config, continued)' if number else ''}",
            [sheet.header[place] for place in part],
            [[row[place] for place in part] for row in sheet.rows],
        )
        for number, part in enumerate(parts)
    ]


def _runs_sheet(comparison: Comparison) -> Sheet:
    metrics, runs = shown_metrics(comparison), comparison.runs
    has_tasks = len({run.task for run in runs}) > 1
    sets = letters_of_test_sets(comparison) if len(comparison.test_sets) > 1 else {}
    columns = comparison.columns
    before = ["run", *(["task"] if has_tasks else []), "state"]
    header = [*before, *_names(columns), *map(heading, metrics), *(["test set"] if sets else [])]
    rows = []
    for place, run in enumerate(runs):
        task = [run.task or "-"] if has_tasks else []
        figures = [figure_text(name, run.figures.get(name)) for name in metrics]
        tested = [sets.get(place, "-")] if sets else []
        label = printable(comparison.labels[place], 200)
        rows.append([label, *task, run.state, *(column.text(run) for column in columns), *figures, *tested])
    title = f"{times(len(runs), 'run')} by {comparison.metric}"
    return Sheet(title, header, rows, range(len(before), len(before) + len(columns)))


def _names(columns: Iterable[Column]) -> list[str]:
    return [heading(column.name) for column in columns]


def _groups_sheet(comparison: Comparison) -> Sheet:
    metrics, columns = shown_metrics(comparison), without_seed(comparison)
    before = ["group", "runs", "seeds"]
    rows = []
    for number, group in enumerate(comparison.groups, 1):
        config = [column.text(comparison.runs[group.runs[0]]) for column in columns]
        said = [mean_std(name, group) for name in metrics]
        rows.append([str(number), str(len(group.runs)), ", ".join(map(plain_text, group.seeds)), *config, *said])
    header = [*before, *_names(columns), *map(heading, metrics)]
    title = "Mean ± standard deviation over seeds"
    return Sheet(title, header, rows, range(len(before), len(before) + len(columns)))


def _pairs_sheet(comparison: Comparison) -> Sheet:
    header = ["first - second", "accuracy [95%]", "McNemar p", "RMSE [95%]", "bootstrap p"]
    rows = []
    for pair in comparison.pairs[:MAX_PAIRS]:
        labels = (printable(comparison.labels[place], 200) for place in (pair.first, pair.second))
        accuracy = difference(pair.accuracy_difference, pair.accuracy_interval)
        rmse = difference(pair.rmse_difference, pair.rmse_interval)
        p = [p_value(each) for each in (pair.accuracy_p_corrected, pair.rmse_p_corrected)]
        rows.append([" - ".join(labels), accuracy, p[0], rmse, p[1]])
    return Sheet("Differences on the same photos (p corrected by Holm)", header, rows)


def _remarks(comparison: Comparison) -> list[str]:
    lines = []
    pairs = comparison.pairs
    if pairs:
        of_accuracy = sum(pair.accuracy_p_corrected < LEVEL for pair in pairs)
        of_rmse = sum(pair.rmse_p_corrected < LEVEL for pair in pairs)
        lines.append(
            f"Corrected for {times(len(pairs), 'pair')}, {of_accuracy} differ in accuracy and {of_rmse} in RMSE"
            f" (p < {LEVEL})."
        )
        if len(pairs) > MAX_PAIRS:
            lines.append(f"{times(len(pairs) - MAX_PAIRS, 'more pair')} not shown; --csv FILE writes all of them.")
    if len(comparison.test_sets) > 1:
        letters = letters_of_test_sets(comparison)
        sets = ", ".join(f"{letters[same.runs[0]]} of {same.num_images} photos" for same in comparison.test_sets)
        apart = times(comparison.num_apart, "pair")
        lines.append(f"The test sets differ ({sets}): their figures are not comparable. {apart} of runs not compared.")
    if any(same.fingerprint is None and len(same.runs) > 1 for same in comparison.test_sets):
        lines.append("Runs without a data fingerprint were matched by ids and quantities only: photos may differ.")
    lines += left_out(comparison)
    for label, run in zip(comparison.labels, comparison.runs, strict=True):
        if run.problem is not None:
            lines.append(f"{printable(label, 200)}: {run.state}: {run.problem}")
    return lines


def _run_rows(comparison: Comparison) -> list[dict[str, Any]]:
    names = sorted({name for run in comparison.runs for name in run.figures} - set(TRAINING_FIGURES))
    sets = letters_of_test_sets(comparison)
    groups = {place: number for number, group in enumerate(comparison.groups) for place in group.runs}
    return [
        {
            "run": run.name,
            "path": str(run.path),
            "state": run.state,
            "task": run.task,
            "started": run.started,
            "seed_group": groups.get(place),
            "test_set": sets.get(place),
            **{f"config.{column.name}": column.text(run, missing="") for column in comparison.columns},
            **{name: run.figures.get(name) for name in (*names, *TRAINING_FIGURES)},
            "problem": run.problem,
        }
        for place, run in enumerate(comparison.runs)
    ]


def _pair_rows(comparison: Comparison) -> list[dict[str, Any]]:
    return [_pair_row(comparison.runs, pair) for pair in comparison.pairs]


def _pair_row(runs: Sequence[Run], pair: Pair) -> dict[str, Any]:
    row: dict[str, Any] = {"first": runs[pair.first].name, "second": runs[pair.second].name}
    row["only_first_right"], row["only_second_right"] = pair.only_first, pair.only_second
    for name in ("accuracy", "rmse"):
        low, high = getattr(pair, f"{name}_interval")
        row[f"{name}_difference"] = getattr(pair, f"{name}_difference")
        row[f"{name}_low"], row[f"{name}_high"] = low, high
        row[f"{name}_p"] = getattr(pair, f"{name}_p")
        row[f"{name}_p_corrected"] = getattr(pair, f"{name}_p_corrected")
    return row


def _markdown_row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(_escaped, cells))} |"


def _escaped(text: str) -> str:
    """Return text in which nothing is Markdown or HTML: names and values are others'."""
    return text.translate(MARKUP)


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _is_special(path: Path) -> bool:
    return path.exists() and not path.is_file()


def write_file(option: str, path: Path, text: str) -> None:
    """Write the file of an option, atomically; a device or a pipe, /dev/null say, is written to and not replaced.

    Raises:
        InputError: it cannot be written; names the option.
    """
    try:
        if _is_special(path):
            path.write_text(text, encoding="utf-8")
        else:
            write_text(path, text)
    except BrokenPipeError:
        pass  # its reader has what it wanted
    except OSError as error:
        raise InputError(f"{option} {path}: cannot be written ({error.strerror}); name another file") from error
