"""What the rules share: the thresholds, which samples count, and when there are too few."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from binventory.bottlenecks.samples import LOAD_BINS, RankLoad, Sample, Setup

T = TypeVar("T")

# Published.
PATIENCE = 1000  # samples
WINDOW = 500  # samples: LowGPUUtilization, BatchSize
MEMORY_WINDOW = 10  # samples
MEMORY_INCREASE_POINTS = 5
GPU_P95_PERCENT, GPU_P5_PERCENT = 70, 10
BATCH_P95_PERCENT = 70  # each of CPU, GPU and GPU memory
WORKERS_MIN_PERCENT, WORKERS_MAX_PERCENT = 70, 200  # of the cores
IDLE_GPU_PERCENT, BUSY_CPU_PERCENT, IO_WAIT_PERCENT = 10, 90, 50
BOTTLENECK_SHARE_PERCENT = 50  # of the samples
LOAD_DISTANCE = 0.5
OUTLIER_DEVIATIONS, MAX_OUTLIERS = 3, 10
MAX_INITIALIZATION_MINUTES = 20

# Our own: what makes them fit short runs, and what a wait for data may cost.
MIN_SAMPLES = 20
MIN_STEPS, WARMUP_STEPS, STEPS_PER_OUTLIER = 50, 5, 100
DATA_WAIT_PERCENT = 10
# A sample in which others crowd this training out: they took so much of a machine that had little left to give.
OTHERS_PERCENT, CROWDED_PERCENT = 10, 80
CROWDED_SHARE_PERCENT = 10  # of the samples


def judged(values: Sequence[T], window: int | None = None) -> list[T]:
    """Return the samples that a rule judges: those after its patience, of them the last `window`.

    A start is no steady state, so the first `PATIENCE` samples do not count. Of a run with less than twice as many the
    first half does not count, as far as `MIN_SAMPLES` remain.
    """
    skipped = max(0, min(PATIENCE, len(values) // 2, len(values) - MIN_SAMPLES))
    rest = list(values[skipped:])
    return rest if window is None else rest[-window:]


def gpu_percents(samples: Sequence[Sample]) -> list[float]:
    """Return the GPU's utilisation of the samples that have it."""
    return [sample.gpu_percent for sample in samples if sample.gpu_percent is not None]


def too_little(values: Sequence[object], missing: str) -> str:
    """Return why there are too few samples to judge by; empty where there are enough."""
    if not values and missing:
        return f"{missing[0].upper()}{missing[1:]}."
    if len(values) < MIN_SAMPLES:
        return f"{len(values)} samples are too few to tell: {MIN_SAMPLES} are needed."
    return ""


def others_percents(samples: Sequence[Sample], setup: Setup) -> list[float]:
    """Return what others took of all cores: other processes, or other machines on the same hardware."""
    cores = setup.machine_cores or setup.cpu_cores
    own = [sample.process_cpu_percent * setup.local_ranks / cores for sample in samples]
    return [max(0.0, sample.cpu_percent - mine) for sample, mine in zip(samples, own, strict=True)]


def workers_to_try(setup: Setup) -> str:
    """Return the override for a loader process a core; `data.num_workers` counts for each rank."""
    return f"data.num_workers={max(1, setup.cpu_cores // setup.local_ranks)}"


def loading_to_try(setup: Setup) -> str:
    """Return the override that makes batches cheaper than they are in this run."""
    if not setup.is_cached:
        return "data.cache=true"
    return f"data.residence={'device' if setup.residence == 'memory' else 'memory'}"


def load_of(samples: Sequence[Sample], cores: float) -> RankLoad:
    """Return how busy a rank's device was: its GPU where there are figures of it, else its share of the cores.

    Args:
        samples: those of the rank.
        cores: that the rank may take, its share of those of the machine.
    """
    gpu = gpu_percents(samples)
    values = judged(gpu or [min(100.0, sample.process_cpu_percent / cores) for sample in samples])
    counts = [0] * LOAD_BINS
    for value in values:
        counts[min(LOAD_BINS - 1, int(value * LOAD_BINS / 100))] += 1
    num = len(values)
    shares = tuple(count / num for count in counts) if num else ()
    return RankLoad("gpu" if gpu else "cpu", num, sum(values) / num if num else 0.0, shares)
