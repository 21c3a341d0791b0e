"""Nine rules that tell what held a training back: pure functions from what was seen to a finding.

Names and thresholds are those of SageMaker Debugger's profiler rules, as the package smdebug-rulesconfig 1.0.1 has
them; what is our own is marked so. The published rules judge while a training runs. These judge once, at its end.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations

import numpy as np

from binventory.bottlenecks.finding import Finding, not_evaluable
from binventory.bottlenecks.gpu_rules import (
    batch_size,
    cpu_bottleneck,
    gpu_memory_increase,
    io_bottleneck,
    low_gpu_utilization,
)
from binventory.bottlenecks.judging import (
    CROWDED_PERCENT,
    CROWDED_SHARE_PERCENT,
    DATA_WAIT_PERCENT,
    GPU_P95_PERCENT,
    LOAD_DISTANCE,
    MAX_INITIALIZATION_MINUTES,
    MAX_OUTLIERS,
    MIN_SAMPLES,
    MIN_STEPS,
    OTHERS_PERCENT,
    OUTLIER_DEVIATIONS,
    STEPS_PER_OUTLIER,
    WARMUP_STEPS,
    WORKERS_MAX_PERCENT,
    WORKERS_MIN_PERCENT,
    gpu_percents,
    judged,
    loading_to_try,
    others_percents,
    workers_to_try,
)
from binventory.bottlenecks.samples import LOAD_BINS, Observations, Setup


def dataloader(seen: Observations, setup: Setup) -> Finding:
    """Loader processes are fewer than 70 % or more than 200 % of the cores.

    Our own: without any, there is nothing to count; and training may wait for data whatever their number. More than
    10 % of its time triggers, unless the GPU was busy all the same: the host runs ahead of it.
    """
    rule = "Dataloader"
    wait = seen.data_wait_percent
    if wait is None or len(seen.steps) < MIN_SAMPLES:
        num_steps = len(seen.steps)
        return not_evaluable(rule, f"{num_steps} steps are too few to tell.", num_steps=num_steps)
    workers_percent = 100 * setup.num_workers / setup.cpu_cores
    figures = {
        "data_wait_percent": wait,
        "num_workers": setup.num_workers,
        "cpu_cores": setup.cpu_cores,
        "workers_percent": workers_percent,
    }
    gpu = gpu_percents(seen.samples)
    waited = wait > DATA_WAIT_PERCENT and not (gpu and statistics.fmean(judged(gpu)) >= GPU_P95_PERCENT)
    if setup.num_workers and not WORKERS_MIN_PERCENT <= workers_percent <= WORKERS_MAX_PERCENT:
        costs = "Training waits for data." if waited else "Training hardly waited for data, so it costs little."
        number = f"{setup.num_workers} loader processes on {setup.cpu_cores} cores"
        override = loading_to_try(setup) if waited else workers_to_try(setup)
        return Finding(rule, "triggered", figures, f"{number}. {costs}", number, override)
    if waited:
        meaning = "This share of the time went into waiting for the next batch."
        short = f"waits for data {wait:.0f} % of the time"
        return Finding(rule, "triggered", figures, meaning, short, loading_to_try(setup))
    return Finding(rule, "ok", figures, "Batches were there when they were needed.")


def load_balancing(seen: Observations, setup: Setup) -> Finding:
    """The utilisation of two ranks is distributed differently: the distance of their histograms is above 0.5."""
    rule = "LoadBalancing"
    if setup.num_ranks < 2:
        return not_evaluable(rule, "There is one process: nothing to balance.")
    if len(seen.loads) < setup.num_ranks:
        return not_evaluable(rule, "The run was stopped before its ranks put their figures together.")
    fewest = min(load.num_samples for load in seen.loads)
    if fewest < MIN_SAMPLES or len({load.device for load in seen.loads}) > 1:
        return not_evaluable(rule, f"A rank has {fewest} samples, or another device.", num_samples=fewest)
    distance = max(histogram_distance(a.shares, b.shares) for a, b in combinations(seen.loads, 2))
    means = [load.mean_percent for load in seen.loads]
    figures = {
        "histogram_distance": distance,
        "busiest_mean_percent": max(means),
        "idlest_mean_percent": min(means),
        "num_samples": fewest,
    }
    if distance <= LOAD_DISTANCE:
        return Finding(rule, "ok", figures, "The ranks were equally busy.")
    idlest = means.index(min(means))
    return Finding(
        rule,
        "triggered",
        figures,
        f"Rank {idlest} does less than the others or waits for them; every step takes as long as its slowest rank."
        " A run on one device tells what the others add.",
        f"ranks {min(means):.0f} % to {max(means):.0f} % busy",
        "trainer.devices=1",
    )


def step_outlier(seen: Observations, setup: Setup) -> Finding:
    """More than 10 steps take longer than the mean and 3 standard deviations.

    Our own: a run of less than 1,000 steps may have one for every 100 of them, at least one; the first five are a
    start. By Cantelli's inequality a tenth of all steps at most can be that far out.
    """
    rule = "StepOutlier"
    durations = np.array(seen.durations_s[WARMUP_STEPS:])
    if len(durations) < MIN_STEPS:
        return not_evaluable(rule, f"{len(durations)} steps are too few to tell.", num_steps=len(durations))
    limit_s = float(durations.mean() + OUTLIER_DEVIATIONS * durations.std())
    num_outliers = int((durations > limit_s).sum())
    allowed = min(MAX_OUTLIERS, max(1, len(durations) // STEPS_PER_OUTLIER))
    figures = {
        "num_outliers": num_outliers,
        "num_allowed": allowed,
        "limit_s": limit_s,
        "median_s": float(np.median(durations)),
        "max_s": float(durations.max()),
        "num_steps": len(durations),
    }
    if num_outliers <= allowed:
        return Finding(rule, "ok", figures, "Steps took about the same time.")
    short = f"{num_outliers} of {len(durations)} steps above {1000 * limit_s:.0f} ms"
    crowding = _crowding(seen, setup)
    cause, more, override = _why_uneven(seen, setup, crowding)
    meaning = f"Some steps took far longer than the others{cause}."
    return Finding(rule, "triggered", {**figures, **crowding}, meaning, short + more, override)


def _why_uneven(seen: Observations, setup: Setup, crowding: Mapping[str, float]) -> tuple[str, str, str]:
    """Return why steps were uneven, as far as the samples tell: for the meaning, for one line, and what to try."""
    cause, more, taken = "", "", f"{crowding['others_mean_percent']:.0f} %"
    if crowding["crowded_share_percent"] > CROWDED_SHARE_PERCENT:
        more = f", others took {taken} of the CPU"
        cause = (
            f", and other processes, or other machines on its hardware, took {taken} of this machine's CPU: with the"
            " machine to itself the training would be steadier"
        )
    if (seen.data_wait_percent or 0.0) > DATA_WAIT_PERCENT:
        return f"{cause}, and training waited for data: loading comes in bursts", more, loading_to_try(setup)
    shown = cause or ". Nothing that was sampled says why; a trace shows what they did"
    return shown, more, "callbacks.trace.num_steps=100"


def _crowding(seen: Observations, setup: Setup) -> dict[str, float]:
    """Return what others took of the CPU, and in which share of the samples they left too little of it."""
    others = others_percents(seen.samples, setup)
    if len(others) < MIN_SAMPLES:
        return {"others_mean_percent": 0.0, "crowded_share_percent": 0.0, "num_samples": len(others)}
    values = judged(list(zip(others, (sample.cpu_percent for sample in seen.samples), strict=True)))
    crowded = sum(taken > OTHERS_PERCENT and busy > CROWDED_PERCENT for taken, busy in values)
    return {
        "others_mean_percent": statistics.fmean(taken for taken, _ in values),
        "crowded_share_percent": 100 * crowded / len(values),
        "num_samples": len(values),
    }


def max_initialization_time(seen: Observations, setup: Setup) -> Finding:
    """More than 20 minutes from the start of the job to the end of its first step."""
    rule = "MaxInitializationTime"
    if seen.initialization_s is None:
        return not_evaluable(rule, "No step was done, or it is not known when the job started.")
    minutes = seen.initialization_s / 60
    figures = {"initialization_s": seen.initialization_s}
    if minutes <= MAX_INITIALIZATION_MINUTES:
        return Finding(rule, "ok", figures, "The first step came soon.")
    first = "Compiling is part of it. " if setup.is_compiled else ""
    return Finding(
        rule,
        "triggered",
        figures,
        f"{first}Photos are fetched and indexed once for each folder of theirs: keep it between runs, and let"
        " `binventory prepare` fill it before a device waits.",
        f"{minutes:.0f} min to the first step",
        "trainer.compile=false" if setup.is_compiled else "paths.data_dir=FOLDER paths.cache_dir=FOLDER",
    )


RULES: tuple[Callable[[Observations, Setup], Finding], ...] = (
    gpu_memory_increase,
    low_gpu_utilization,
    dataloader,
    io_bottleneck,
    cpu_bottleneck,
    batch_size,
    load_balancing,
    step_outlier,
    max_initialization_time,
)


def histogram_distance(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the Jensen-Shannon distance of two histograms of `LOAD_BINS` shares: 0 equal, 0.83 (√ln 2) apart.

    Two bins are taken together, once from each end on: values close to each other at the edge of a bin are not apart.
    """

    from scipy.special import rel_entr  # type: ignore[import-untyped]  # needed by runs of several ranks alone

    def distance(first_edge: int) -> float:
        edges = [0, *range(first_edge, LOAD_BINS, 2)]
        p, q = np.add.reduceat(left, edges), np.add.reduceat(right, edges)
        return math.sqrt(max(0.0, float(rel_entr(p, (p + q) / 2).sum() + rel_entr(q, (p + q) / 2).sum()) / 2))

    return min(distance(1), distance(2))
