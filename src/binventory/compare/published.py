"""Runs of the shipped experiments beside the figures that were published for them."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from binventory.compare.run import Run, canonical, flat, plain_text

REPORT_TEST_PHOTOS = 2089  # of the source report's split of 10,441 photos


@dataclass(frozen=True)
class PublishedResult:
    """A row of published_results.csv.

    Attributes:
        preset: `experiment=` of it; empty for a public record.
        accuracy: as a fraction; None where there is none.
        rmse: in items; None where there is none.
        minutes: of training, as published; None where there are none.
        instance: that it was trained on; may be empty.
        source: who published it.
    """

    preset: str
    accuracy: float | None
    rmse: float | None
    minutes: float | None
    instance: str
    source: str


@dataclass(frozen=True)
class PresetRun:
    """A finished run of a preset whose figures are published.

    Attributes:
        run: position in the list of runs.
        preset: `experiment=` of it.
        differences: (config key, value as shipped, value of the run), as text; None where there is no such key.
        problem: why they cannot be told.
    """

    run: int
    preset: str
    differences: tuple[tuple[str, str | None, str | None], ...]
    problem: str | None = None


def published_results() -> list[PublishedResult]:
    """Read the published figures that the package holds."""
    from binventory.config.compose import CONFIG_DIR

    def number(cell: str) -> float | None:
        return float(cell) if cell else None

    with (CONFIG_DIR / "experiment" / "published_results.csv").open(newline="", encoding="utf-8") as file:
        return [
            PublishedResult(
                row["preset"],
                number(row["accuracy"]),
                number(row["rmse"]),
                number(row["minutes"]),
                row["instance"],
                row["source"],
            )
            for row in csv.DictReader(file)
        ]


def preset_runs(runs: Sequence[Run]) -> tuple[PresetRun, ...]:
    """Return the finished runs that were started from a preset with published figures."""
    started = [(place, run) for place, run in enumerate(runs) if run.is_done and run.experiment is not None]
    if not started:
        return ()
    known = {row.preset for row in published_results() if row.preset}
    return tuple(_preset_run(place, run, str(run.experiment)) for place, run in started if run.experiment in known)


def _preset_run(place: int, run: Run, preset: str) -> PresetRun:
    from binventory.errors import ConfigError

    if run.config is None:
        return PresetRun(place, preset, (), "its config.yaml cannot be read")
    try:
        shipped = _shipped(preset)
    except ConfigError as error:  # as shipped it asks for what is not installed here
        return PresetRun(place, preset, (), str(error))
    ours = {key: (canonical(value), plain_text(value)) for key, value in run.config.items()}
    theirs = {key: (canonical(value), plain_text(value)) for key, value in shipped.items()}
    nothing = (None, None)
    pairs = {key: (theirs.get(key, nothing), ours.get(key, nothing)) for key in dict.fromkeys([*theirs, *ours])}
    return PresetRun(
        place,
        preset,
        tuple((key, first[1], second[1]) for key, (first, second) in pairs.items() if first[0] != second[0]),
    )


@cache
def _shipped(preset: str) -> dict[str, object]:
    from binventory.config.capture import redact, to_plain
    from binventory.config.compose import compose_checked

    return dict(flat(redact(to_plain(compose_checked("train", [f"experiment={preset}"])[0]))))
