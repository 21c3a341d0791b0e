"""Several ways to do the same thing, measured in turn within one process, and what they come to beside each other."""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from typing import NamedTuple, TypeVar

import psutil
from scipy import stats

T = TypeVar("T")


class Spent(NamedTuple):
    """Seconds by the clock, and of all cores by this process and its children."""

    wall_s: float
    cpu_s: float


class Ratio(NamedTuple):
    """How many times as long one way takes as another: the median of the pairs, and a 95 % interval of their mean."""

    median: float
    low: float
    high: float


def alternate(ways: Mapping[str, Callable[[], T]], rounds: int, said: Callable[[T], str]) -> dict[str, list[T]]:
    """Measure each way once a round, every other round in reverse order; return each way's results."""
    found: dict[str, list[T]] = {name: [] for name in ways}
    for number in range(rounds):
        for name in reversed(ways) if number % 2 else ways:
            found[name].append(ways[name]())
            print(f"round {number + 1} of {rounds}, {name}: {said(found[name][-1])}", flush=True)
    return found


def spent_by(work: Callable[[], object]) -> Spent:
    """Run something and return what it took."""
    cpu_s, started = cpu_seconds(), time.perf_counter()
    work()
    return Spent(time.perf_counter() - started, cpu_seconds() - cpu_s)


def quietly(work: Callable[[], None]) -> None:
    """Do something whose words nobody needs unless it fails."""
    said = StringIO()
    try:
        with redirect_stdout(said), redirect_stderr(said):
            work()
    except BaseException:
        print(said.getvalue(), file=sys.stderr)
        raise


def cpu_seconds() -> float:
    """Return what this process and its children, those that ended too, have used of all cores."""
    own = psutil.Process()
    ended = own.cpu_times()
    return (
        sum(sum(process.cpu_times()[:2]) for process in (own, *own.children(recursive=True)))
        + ended.children_user
        + ended.children_system
    )


def summary(spent: Sequence[Spent]) -> dict[str, float]:
    """Return the columns that say what a way took over its rounds, in seconds."""
    wall_s, cpu_s = zip(*spent, strict=True)
    return {
        "rounds": len(spent),
        "median_s": round(statistics.median(wall_s), 2),
        "min_s": round(min(wall_s), 2),
        "max_s": round(max(wall_s), 2),
        "median_cpu_s": round(statistics.median(cpu_s), 2),
    }


def ratio(seconds: Sequence[float], base: Sequence[float]) -> Ratio:
    """Compare two ways, round by round. The interval is Student's, of the logarithms; infinite for a single round."""
    logs = [math.log(one / other) for one, other in zip(seconds, base, strict=True)]
    mean, number = statistics.fmean(logs), len(logs)
    half = stats.t.ppf(0.975, number - 1) * statistics.stdev(logs) / math.sqrt(number) if number > 1 else math.inf
    return Ratio(math.exp(statistics.median(logs)), math.exp(mean - half), math.exp(mean + half))
