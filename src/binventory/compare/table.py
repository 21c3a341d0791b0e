"""The comparison of runs as plain values, computed once for whatever shows it: a terminal, CSV, Markdown, a page."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from binventory.compare.columns import Column, config_columns
from binventory.compare.confusion import Confusion, confusion_of
from binventory.compare.curves import Curves, read_curves
from binventory.compare.disagree import Disagreement, find_disagreement
from binventory.compare.find import find_runs
from binventory.compare.paired import Pair, compare_pairs
from binventory.compare.published import PresetRun, preset_runs
from binventory.compare.run import Run, canonical
from binventory.compare.tested import TestSet, read_tested
from binventory.config.suggest import did_you_mean
from binventory.errors import ConfigError
from binventory.metrics.direction import direction

SEED_KEY = "seed"
_MADE_NAME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-([0-9a-f]{4})((?:/.*)?)")


@dataclass(frozen=True)
class SeedGroup:
    """Finished runs that differ in nothing but their seed, on the same data.

    Attributes:
        runs: positions in the list of runs; of runs with the same seed only the last one started.
        seeds: of these runs.
        means: by figure that all of them have.
        stds: the same, of the sample (n - 1); empty where there is one run.
    """

    runs: tuple[int, ...]
    seeds: tuple[Any, ...]
    means: Mapping[str, float]
    stds: Mapping[str, float]


@dataclass(frozen=True)
class Comparison:
    """What is to be told of some runs.

    Attributes:
        runs: best first by `metric`, those without it last; positions below are into this list.
        labels: shortest name of each run that no other has.
        metric: what runs are ordered by.
        differing: config keys whose values are not the same in all runs of a task.
        columns: the same as columns of a table, what was varied first.
        groups: best first by the mean of `metric`, where the runs have it.
        test_sets: that of most runs first.
        pairs: every two runs of each test set.
        num_apart: pairs of finished runs that are not compared because their test sets differ.
        untested: by position, why a finished run that was tested is in no test set.
        unnamed: by position, how many labelled photos are left out: the run's model cannot name their quantity.
        curves: of the runs with a metrics.csv, in the order of the runs.
        confusions: of the runs in a test set, in the order of the runs.
        disagreement: the photos that the runs of a test set count differently.
        presets: finished runs of presets whose figures are published.
    """

    runs: tuple[Run, ...]
    labels: tuple[str, ...]
    metric: str
    differing: tuple[str, ...]
    columns: tuple[Column, ...]
    groups: tuple[SeedGroup, ...]
    test_sets: tuple[TestSet, ...]
    pairs: tuple[Pair, ...]
    num_apart: int
    untested: Mapping[int, str]
    unnamed: Mapping[int, int]
    curves: tuple[Curves, ...]
    confusions: tuple[Confusion, ...]
    disagreement: Disagreement
    presets: tuple[PresetRun, ...]


def compare(places: Sequence[str], metric: str) -> Comparison:
    """Find runs and compare them.

    Args:
        places: see `find_runs`.
        metric: what runs are ordered by, as logged, e.g. `test/accuracy`.

    Raises:
        InputError: a place does not exist or holds no run.
        ConfigError: no run has such a metric, though they have others.
    """
    found = find_runs(places)
    known = {name for run in found for name in run.figures}
    if known and metric not in known:
        raise ConfigError(f"--metric {metric}: no run has it{did_you_mean(metric, known)}")
    runs = _ordered(found, metric)
    tested, curves = read_tested(runs), read_curves(runs)
    pairs = compare_pairs(tested)
    unread = {curve.run: curve.problem for curve in curves if curve.problem is not None}
    for place, problem in (*tested.problems.items(), *unread.items()):
        runs[place] = replace(runs[place], problem="; ".join(filter(None, (runs[place].problem, problem))))
    differing = differing_keys(runs)
    num_tested = sum(len(same.runs) for same in tested.sets)
    return Comparison(
        runs=tuple(runs),
        labels=_labels(runs),
        metric=metric,
        differing=differing,
        columns=config_columns(runs, differing),
        groups=tuple(_seed_groups(runs, metric)),
        test_sets=tested.sets,
        pairs=tuple(pairs),
        num_apart=num_tested * (num_tested - 1) // 2 - len(pairs),
        untested=tested.problems,
        unnamed={place: read.num_unnamed for place, read in sorted(tested.predictions.items()) if read.num_unnamed},
        curves=tuple(curves),
        confusions=tuple(confusion_of(place, tested.predictions[place]) for place in sorted(tested.predictions)),
        disagreement=find_disagreement(runs, tested),
        presets=preset_runs(runs),
    )


def differing_keys(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return the config keys whose values differ between runs of one task, in the order of their configs.

    A key that only some of these runs have differs. Runs of other tasks have other keys: that is no difference.
    """
    keys: dict[str, None] = {}
    for task in dict.fromkeys(run.task for run in runs):
        configs = [run.config for run in runs if run.task == task and run.config is not None]
        for key in dict.fromkeys(key for config in configs for key in config):
            if len({canonical(config[key]) if key in config else None for config in configs}) > 1:
                keys[key] = None
    return tuple(keys)


def _ordered(runs: Sequence[Run], metric: str) -> list[Run]:
    sign = -1 if direction(metric) == "max" else 1

    def rank(run: Run) -> tuple[bool, bool, float]:
        value = run.figures.get(metric)
        return not run.is_done, value is None, sign * (value or 0.0)

    return sorted(runs, key=rank)  # stable: otherwise as they were found


def _labels(runs: Sequence[Run]) -> tuple[str, ...]:
    """Return the 4 hex digits (and the job) where they tell a run apart, else its name, else its path."""
    made = [match[1] + match[2] if (match := _MADE_NAME.fullmatch(run.name)) else run.name for run in runs]
    short, names = Counter(made), Counter(run.name for run in runs)
    return tuple(
        label if short[label] == 1 else run.name if names[run.name] == 1 else str(run.path)
        for label, run in zip(made, runs, strict=True)
    )


def _seed_groups(runs: Sequence[Run], metric: str) -> list[SeedGroup]:
    alike: dict[tuple[Any, ...], dict[str, int]] = {}
    for place, run in enumerate(runs):
        if not run.is_done or run.config is None or not run.figures:
            continue
        rest = tuple(sorted((key, canonical(value)) for key, value in run.config.items() if key != SEED_KEY))
        by_seed = alike.setdefault((run.task, run.fingerprint, rest), {})
        seed = canonical(run.config.get(SEED_KEY))
        # The same seed again is the same run again: counting it twice would make the spread look smaller.
        if seed not in by_seed or (runs[by_seed[seed]].started or "") <= (run.started or ""):
            by_seed[seed] = place
    groups = [_seed_group(runs, sorted(by_seed.values())) for by_seed in alike.values()]
    sign = -1 if direction(metric) == "max" else 1
    return sorted(groups, key=lambda group: (metric not in group.means, sign * group.means.get(metric, 0.0)))


def _seed_group(runs: Sequence[Run], places: Sequence[int]) -> SeedGroup:
    figures = [runs[place].figures for place in places]
    shared = [name for name in figures[0] if all(name in each for each in figures)]
    values = {name: [each[name] for each in figures] for name in shared}
    configs = [runs[place].config or {} for place in places]
    return SeedGroup(
        runs=tuple(places),
        seeds=tuple(config.get(SEED_KEY) for config in configs),
        means={name: statistics.fmean(of_runs) for name, of_runs in values.items()},
        stds={name: statistics.stdev(of_runs) for name, of_runs in values.items()} if len(places) > 1 else {},
    )
