"""Which way a metric is better."""

from __future__ import annotations

# Of these, more is better; of every other metric, less.
MAXIMIZED = ("accuracy", "within_one")


def direction(metric: str) -> str:
    """Return max or min: which way a metric is better."""
    return "max" if metric.rsplit("/", maxsplit=1)[-1] in MAXIMIZED else "min"
