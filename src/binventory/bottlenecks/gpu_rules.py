"""The rules that judge by the GPU's own figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np

from binventory.bottlenecks.finding import Finding, not_evaluable
from binventory.bottlenecks.judging import (
    BATCH_P95_PERCENT,
    BOTTLENECK_SHARE_PERCENT,
    BUSY_CPU_PERCENT,
    DATA_WAIT_PERCENT,
    GPU_P5_PERCENT,
    GPU_P95_PERCENT,
    IDLE_GPU_PERCENT,
    IO_WAIT_PERCENT,
    MEMORY_INCREASE_POINTS,
    MEMORY_WINDOW,
    WINDOW,
    gpu_percents,
    judged,
    loading_to_try,
    too_little,
)
from binventory.bottlenecks.samples import Observations, Setup


def gpu_memory_increase(seen: Observations, setup: Setup) -> Finding:
    """Memory of the GPU grows: a moving average over 10 samples rises by more than 5 points above its lowest before.

    Published is a comparison with the average before it, which a slow leak passes.
    """
    rule = "GPUMemoryIncrease"
    memory = [sample.gpu_memory_percent for sample in seen.samples if sample.gpu_memory_percent is not None]
    if problem := too_little(memory, setup.gpu_problem):
        return not_evaluable(rule, problem, num_samples=len(memory))
    values = judged(memory)
    averages = np.convolve(values, np.ones(MEMORY_WINDOW), mode="valid") / MEMORY_WINDOW
    rise = float((averages - np.minimum.accumulate(averages)).max())
    figures = {"rise_points": rise, "last_percent": float(averages[-1]), "num_samples": len(values)}
    if rise <= MEMORY_INCREASE_POINTS:
        return Finding(rule, "ok", figures, "The GPU's memory stayed as full as it was.")
    return Finding(
        rule,
        "triggered",
        figures,
        "The GPU's memory filled up while the work stayed the same. Something keeps tensors; if it goes on, the run"
        " ends out of memory. Half the batch with twice the accumulation gives room meanwhile.",
        f"GPU memory rose by {rise:.0f} points",
        f"data.batch_size={max(1, setup.batch_size // 2 // setup.num_ranks) * setup.num_ranks}"
        f" trainer.accumulate_grad_batches={2 * setup.accumulate_grad_batches}",
    )


def low_gpu_utilization(seen: Observations, setup: Setup) -> Finding:
    """The GPU is never busy (95th percentile below 70), or it is and stops again and again (5th below 10)."""
    rule = "LowGPUUtilization"
    gpu = gpu_percents(seen.samples)
    if problem := too_little(gpu, setup.gpu_problem):
        return not_evaluable(rule, problem, num_samples=len(gpu))
    values = judged(gpu, WINDOW)
    p5, p95 = (float(value) for value in np.percentile(values, [5, 95]))
    figures = {"gpu_p95_percent": p95, "gpu_p5_percent": p5, "num_samples": len(values)}
    waits = (seen.data_wait_percent or 0.0) > DATA_WAIT_PERCENT
    override = loading_to_try(setup) if waits else f"data.batch_size={2 * setup.batch_size}"
    cause = "Training waited for data meanwhile." if waits else "Data were there: the work for it is too small."
    if p95 < GPU_P95_PERCENT:
        meaning = f"The GPU could do more at any time. {cause}"
        return Finding(rule, "triggered", figures, meaning, f"GPU p95 {p95:.0f} %", override)
    if p5 < GPU_P5_PERCENT:
        meaning = f"The GPU works and stops by turns. {cause}"
        return Finding(rule, "triggered", figures, meaning, f"GPU p5 {p5:.0f} %, p95 {p95:.0f} %", override)
    return Finding(rule, "ok", figures, "The GPU was kept busy.")


def _held(pairs: Sequence[tuple[float, float]], above_percent: float) -> tuple[float, float, int]:
    """Of (load, GPU use): the share of samples with a high load and an idle GPU, the mean load, how many count."""
    values = judged(pairs)
    held = sum(load > above_percent and gpu < IDLE_GPU_PERCENT for load, gpu in values)
    return 100 * held / len(values), statistics.fmean(load for load, _ in values), len(values)


def io_bottleneck(seen: Observations, setup: Setup) -> Finding:
    """In more than half of the samples I/O wait is above 50 % and the GPU below 10 %."""
    rule = "IOBottleneck"
    known = [sample for sample in seen.samples if sample.gpu_percent is not None]
    if problem := too_little(known, setup.gpu_problem):
        return not_evaluable(rule, problem, num_samples=len(known))
    pairs = [(one.io_wait_percent, one.gpu_percent or 0.0) for one in known if one.io_wait_percent is not None]
    if problem := too_little(pairs, "this system does not count I/O wait"):
        return not_evaluable(rule, problem, num_samples=len(pairs))
    share, mean, num_samples = _held(pairs, IO_WAIT_PERCENT)
    figures = {"bottleneck_share_percent": share, "io_wait_mean_percent": mean, "num_samples": num_samples}
    if share <= BOTTLENECK_SHARE_PERCENT:
        return Finding(rule, "ok", figures, "The GPU seldom stood still while a disk was read.")
    return Finding(
        rule,
        "triggered",
        figures,
        "The GPU stood still while a disk was read. Decoded photos are read faster, best from memory; let"
        " paths.cache_dir be on a local disk.",
        f"I/O holds the GPU {share:.0f} % of the time",
        loading_to_try(setup),
    )


def cpu_bottleneck(seen: Observations, setup: Setup) -> Finding:
    """In more than half of the samples the CPU is above 90 % and the GPU below 10 %."""
    rule = "CPUBottleneck"
    pairs = [(one.cpu_percent, one.gpu_percent) for one in seen.samples if one.gpu_percent is not None]
    if problem := too_little(pairs, setup.gpu_problem):
        return not_evaluable(rule, problem, num_samples=len(pairs))
    share, mean, num_samples = _held(pairs, BUSY_CPU_PERCENT)
    figures = {"bottleneck_share_percent": share, "cpu_mean_percent": mean, "num_samples": num_samples}
    if share <= BOTTLENECK_SHARE_PERCENT:
        return Finding(rule, "ok", figures, "The GPU seldom stood still while all cores worked.")
    return Finding(
        rule,
        "triggered",
        figures,
        "The GPU stood still while all cores worked, most likely at decoding photos or at putting batches together.",
        f"CPU holds the GPU {share:.0f} % of the time",
        "data.residence=device" if setup.is_cached else "data.cache=true",
    )


def batch_size(seen: Observations, setup: Setup) -> Finding:
    """CPU, GPU and GPU memory all have a 95th percentile below 70: there is room for a larger batch."""
    rule = "BatchSize"
    known = [
        (one.cpu_percent, one.gpu_percent, one.gpu_memory_percent)
        for one in seen.samples
        if one.gpu_percent is not None and one.gpu_memory_percent is not None
    ]
    if problem := too_little(known, setup.gpu_problem):
        return not_evaluable(rule, problem, num_samples=len(known))
    values = judged(known, WINDOW)
    cpu, gpu, memory = (float(value) for value in np.percentile(np.array(values), 95, axis=0))
    figures = {
        "cpu_p95_percent": cpu,
        "gpu_p95_percent": gpu,
        "gpu_memory_p95_percent": memory,
        "num_samples": len(values),
    }
    if max(cpu, gpu, memory) >= BATCH_P95_PERCENT:
        return Finding(rule, "ok", figures, "Something of CPU, GPU and its memory was well used.")
    return Finding(
        rule,
        "triggered",
        figures,
        "Neither CPU nor GPU nor its memory is used up: a larger batch fits, or a smaller machine does. Adjust"
        " optimizer.lr to the batch.",
        f"p95: CPU {cpu:.0f} %, GPU {gpu:.0f} %, its memory {memory:.0f} %",
        f"data.batch_size={2 * setup.batch_size}",
    )
