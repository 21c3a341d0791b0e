"""What a cell of a comparison says: the same on the terminal, in Markdown and on the page."""

from __future__ import annotations

from collections.abc import Sequence

from binventory.compare.run import Run, plain_text
from binventory.compare.table import Comparison, SeedGroup
from binventory.data.text import printable

SHOWN = ("test/accuracy", "test/rmse", "test/within_one", "val/accuracy", "train_seconds")  # CSV has all of them
WHOLE = ("epochs", "best_epoch", "train_seconds", "images_per_second", "test/num_images", "val/num_images")
MISSING = "-"
LEVEL = 0.05  # of p: below, two runs differ by more than chance
MAX_CONFIG_VALUES = 8  # in one cell


def shown_metrics(comparison: Comparison) -> list[str]:
    """Return the figures that tables show, the one that runs are ordered by first."""
    known = {name for run in comparison.runs for name in run.figures}
    return [name for name in dict.fromkeys((comparison.metric, *SHOWN)) if name in known]


def config_headings(keys: Sequence[str], max_columns: int) -> list[str]:
    """Return a heading for each key; where these would be too many, one for all."""
    return [heading(key) for key in keys] if len(keys) <= max_columns else ["config"]


def config_cells(run: Run, keys: Sequence[str], max_columns: int) -> list[str]:
    """Return a cell for each key; where these would be too many, one cell for all."""
    if len(keys) <= max_columns:
        return [value_text(run, key) for key in keys]
    said = [f"{heading(key)}={value_text(run, key)}" for key in keys if run.config is not None and key in run.config]
    more = f" … {len(said) - MAX_CONFIG_VALUES} more" if len(said) > MAX_CONFIG_VALUES else ""
    return [" ".join(said[:MAX_CONFIG_VALUES]) + more or MISSING]


def letters_of_test_sets(comparison: Comparison) -> dict[int, str]:
    """Return the name of each run's test set by the run's position: A, B, … Z, A1, …"""
    names = {}
    for number, same in enumerate(comparison.test_sets):
        letter = chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")
        names.update(dict.fromkeys(same.runs, letter))
    return names


def value_text(run: Run, key: str, missing: str = MISSING) -> str:
    """Return the value of a config key as YAML would have it in one line."""
    return plain_text(run.config[key]) if run.config is not None and key in run.config else missing


def heading(name: str) -> str:
    """Return the heading of a figure or config key."""
    return "seconds" if name == "train_seconds" else printable(name, 200)


def figure_text(name: str, value: float | None) -> str:
    """Return a figure with the decimals that it is shown with."""
    if value is None:
        return MISSING
    return f"{value:.0f}" if name in WHOLE else f"{value:.4f}"


def mean_std(name: str, group: SeedGroup) -> str:
    """Return `mean ± standard deviation`, or the mean where there is one run."""
    mean = figure_text(name, group.means.get(name))
    return f"{mean} ± {figure_text(name, group.stds[name])}" if name in group.stds else mean


def difference(value: float, interval: tuple[float, float]) -> str:
    """Return a difference with its interval."""
    return f"{value:+.3f} [{interval[0]:+.3f}, {interval[1]:+.3f}]"


def p_value(value: float) -> str:
    """Return p with four decimals."""
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def times(number: int, what: str) -> str:
    """Return `1 run` or `2 runs`."""
    return f"{number:,} {what}" + ("" if number == 1 else "s")
