"""What a run has reached so far, read by others while it goes on."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from binventory.files import read_limited


def read_epochs(run_dir: Path) -> list[dict[str, str]]:
    """Return the rows of a run's metrics.csv so far, one an epoch; none before the first."""
    try:
        text = read_limited(run_dir / "metrics.csv").decode(errors="replace")
        return list(csv.DictReader(io.StringIO(text, newline="")))
    except (OSError, csv.Error):
        return []
