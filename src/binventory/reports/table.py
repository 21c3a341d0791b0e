"""The results of a run as a table on the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

METRICS = (
    ("accuracy", "{:.3f}"),
    ("within_one", "{:.3f}"),
    ("rmse", "{:.3f}"),
    ("expected_rmse", "{:.3f}"),
    ("mae", "{:.3f}"),
    ("cross_entropy", "{:.3f}"),
    ("ece", "{:.3f}"),
    ("num_images", "{:d}"),
)


def print_results(figures: dict[str, Any], run_dir: Path) -> None:
    """Print the figures of `metrics.json`, one column a split, and where the run folder is."""
    splits = [split for split in ("val", "test") if figures.get(split)]
    table = Table(title="Results", title_justify="left")
    table.add_column("metric")
    for split in splits:
        table.add_column(split, justify="right")
    for name, form in METRICS:
        values = (figures[split][name] for split in splits)
        table.add_row(name, *("-" if value is None else form.format(value) for value in values))
    table.add_section()
    for count in figures[splits[-1]]["per_count"]:
        cells = []
        for split in splits:
            entry = figures[split]["per_count"][count]
            cells.append("-" if entry["accuracy"] is None else f"{entry['accuracy']:.3f} of {entry['num_images']}")
        table.add_row(f"accuracy of {count}", *cells)
    console = Console()
    console.print(table)
    if figures["best_epoch"] is not None:
        console.print(
            f"best epoch {figures['best_epoch']} of {figures['epochs']}, trained in {figures['train_seconds']:.1f} s,"
            f" {figures['images_per_second']:.0f} images/s",
            highlight=False,
        )
    # Not through the console: it would break a long path over lines.
    print(f"run folder: {run_dir}")
