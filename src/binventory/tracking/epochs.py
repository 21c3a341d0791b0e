"""What a run has reached so far, read by others while it goes on."""

from __future__ import annotations

import csv
from pathlib import Path


def read_epochs(run_dir: Path) -> list[dict[str, str]]:
    """Return the rows of a run's metrics.csv so far, one an epoch; none before the first."""
    try:
        with (run_dir / "metrics.csv").open(newline="") as file:
            return list(csv.DictReader(file))
    except OSError:
        return []
