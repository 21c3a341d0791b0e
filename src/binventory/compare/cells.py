"""What a cell of a comparison says: the same on the terminal, in Markdown and on the page."""

from __future__ import annotations

from binventory.compare.columns import Column
from binventory.compare.table import SEED_KEY, Comparison, SeedGroup
from binventory.data.text import printable

SHOWN = ("test/accuracy", "test/rmse", "test/within_one", "val/accuracy", "train_seconds")  # CSV has all of them
WHOLE = ("epochs", "best_epoch", "train_seconds", "images_per_second", "test/num_images", "val/num_images")
MISSING = "-"
LEVEL = 0.05  # of p: below, two runs differ by more than chance


def shown_metrics(comparison: Comparison) -> list[str]:
    """Return the figures that tables show, the one that runs are ordered by first."""
    known = {name for run in comparison.runs for name in run.figures}
    return [name for name in dict.fromkeys((comparison.metric, *SHOWN)) if name in known]


def without_seed(comparison: Comparison) -> list[Column]:
    """Return the columns of the config in which seed groups differ."""
    return [column for column in comparison.columns if column.name != SEED_KEY]


def letters_of_test_sets(comparison: Comparison) -> dict[int, str]:
    """Return the name of each run's test set by the run's position: A, B, … Z, A1, …"""
    names = {}
    for number, same in enumerate(comparison.test_sets):
        letter = chr(ord("A") + number % 26) + (str(number // 26) if number >= 26 else "")
        names.update(dict.fromkeys(same.runs, letter))
    return names


def left_out(comparison: Comparison) -> list[str]:
    """Return a line for each run with photos that its model cannot name the quantity of."""
    return [
        f"{printable(comparison.labels[place], 200)}: {times(number, 'photo')} {'has' if number == 1 else 'have'} a"
        " quantity outside its counts; left out."
        for place, number in comparison.unnamed.items()
    ]


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
