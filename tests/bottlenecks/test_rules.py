"""Nine rules on hand-made samples: triggered, ok, not evaluable, and each threshold from both of its sides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from binventory.bottlenecks import judging
from binventory.bottlenecks.finding import Finding
from binventory.bottlenecks.gpu_rules import (
    batch_size,
    cpu_bottleneck,
    gpu_memory_increase,
    io_bottleneck,
    low_gpu_utilization,
)
from binventory.bottlenecks.judging import judged, load_of
from binventory.bottlenecks.rules import (
    RULES,
    dataloader,
    histogram_distance,
    load_balancing,
    max_initialization_time,
    step_outlier,
)
from binventory.bottlenecks.samples import Observations, Sample, Setup
from binventory.config.compose import compose_checked
from tests.bottlenecks.hand_made import ON_CPU, SETUP, outliers, ranks, sample, seen, steps, waiting

TRIGGERED, OK, UNKNOWN = "triggered", "ok", "not evaluable"
TWO = replace(SETUP, num_ranks=2, local_ranks=2)
IDLE_IO, IDLE_CPU = sample(gpu=9, io_wait=51), sample(gpu=9, cpu=91)


def memory(*values: float) -> Observations:
    return seen(*[sample(memory=value) for value in values])


def gpu(*values: float) -> Observations:
    return seen(*[sample(gpu=value) for value in values])


def workers(number: int, **changes: Any) -> Any:
    return replace(SETUP, cpu_cores=100, num_workers=number, **changes)


def room(**changes: float) -> Observations:
    return seen(*[sample(**{"cpu": 69, "gpu": 69, "memory": 69, **changes})] * 20)


CASES: list[tuple[Callable[..., Finding], Observations, Any, str]] = [
    # the average of 10 samples rises by more than 5 points
    (gpu_memory_increase, memory(*[50] * 80, *[55] * 20), SETUP, OK),
    (gpu_memory_increase, memory(*[50] * 80, *[55.1] * 20), SETUP, TRIGGERED),
    (gpu_memory_increase, memory(*[50] * 80, *[60] * 5, *[50] * 15), SETUP, OK),
    (gpu_memory_increase, memory(*[50] * 80, *[60.5] * 5, *[50] * 15), SETUP, TRIGGERED),
    (gpu_memory_increase, memory(*[20 + 0.2 * number for number in range(100)]), SETUP, TRIGGERED),
    (gpu_memory_increase, memory(*[80 - 0.2 * number for number in range(100)]), SETUP, OK),
    (gpu_memory_increase, memory(*range(50), *[50] * 50), SETUP, OK),
    (gpu_memory_increase, memory(*[50] * 19), SETUP, UNKNOWN),
    (gpu_memory_increase, memory(*[50] * 20), SETUP, OK),
    (gpu_memory_increase, seen(*[sample(memory=None)] * 30), SETUP, UNKNOWN),
    # the 95th percentile is below 70, or the 5th below 10
    (low_gpu_utilization, gpu(*[70] * 20), SETUP, OK),
    (low_gpu_utilization, gpu(*[69.9] * 20), SETUP, TRIGGERED),
    (low_gpu_utilization, gpu(*[10, 90, 90, 90] * 10), SETUP, OK),
    (low_gpu_utilization, gpu(*[9.9, 90, 90, 90] * 10), SETUP, TRIGGERED),
    (low_gpu_utilization, gpu(*[90] * 39, 0), SETUP, OK),
    (low_gpu_utilization, gpu(*[0] * 2000, *[90] * 500), SETUP, OK),
    (low_gpu_utilization, gpu(*[90] * 2000, *[0] * 500), SETUP, TRIGGERED),
    (low_gpu_utilization, gpu(*[90] * 19), SETUP, UNKNOWN),
    (low_gpu_utilization, seen(*[sample(gpu=None)] * 30), SETUP, UNKNOWN),
    # loader processes are 70 % to 200 % of the cores; without any, or with, 10 % of the time is spent waiting
    (dataloader, waiting(0), workers(70), OK),
    (dataloader, waiting(0), workers(69), TRIGGERED),
    (dataloader, waiting(0), workers(200), OK),
    (dataloader, waiting(0), workers(201), TRIGGERED),
    (dataloader, waiting(0), workers(0), OK),
    (dataloader, waiting(10), workers(0), OK),
    (dataloader, waiting(10.1), workers(0), TRIGGERED),
    (dataloader, waiting(10.1), workers(100), TRIGGERED),
    (dataloader, waiting(90, *[sample(gpu=70)] * 20), workers(0), OK),
    (dataloader, waiting(90, *[sample(gpu=69)] * 20), workers(0), TRIGGERED),
    (dataloader, waiting(0, num_steps=19), workers(0), UNKNOWN),
    (dataloader, seen(), workers(0), UNKNOWN),
    # I/O wait is above 50 with the GPU below 10, in more than half of the samples
    (io_bottleneck, seen(*[IDLE_IO, sample()] * 20), SETUP, OK),
    (io_bottleneck, seen(*[IDLE_IO, sample()] * 20, IDLE_IO, IDLE_IO), SETUP, TRIGGERED),
    (io_bottleneck, seen(*[sample()] * 149, *[IDLE_IO] * 51), SETUP, TRIGGERED),
    (io_bottleneck, seen(*[sample(gpu=9, io_wait=50)] * 20), SETUP, OK),
    (io_bottleneck, seen(*[sample(gpu=10, io_wait=51)] * 20), SETUP, OK),
    (io_bottleneck, seen(*[IDLE_IO] * 20), SETUP, TRIGGERED),
    (io_bottleneck, seen(*[IDLE_IO] * 19), SETUP, UNKNOWN),
    (io_bottleneck, seen(*[sample(gpu=9, io_wait=None)] * 30), SETUP, UNKNOWN),
    (io_bottleneck, seen(*[sample(gpu=None, io_wait=90)] * 30), SETUP, UNKNOWN),
    # the CPU is above 90 with the GPU below 10, in more than half of the samples
    (cpu_bottleneck, seen(*[IDLE_CPU, sample()] * 20), SETUP, OK),
    (cpu_bottleneck, seen(*[IDLE_CPU, sample()] * 20, IDLE_CPU, IDLE_CPU), SETUP, TRIGGERED),
    (cpu_bottleneck, seen(*[sample()] * 149, *[IDLE_CPU] * 51), SETUP, TRIGGERED),
    (cpu_bottleneck, seen(*[sample(gpu=9, cpu=90)] * 20), SETUP, OK),
    (cpu_bottleneck, seen(*[sample(gpu=10, cpu=91)] * 20), SETUP, OK),
    (cpu_bottleneck, seen(*[IDLE_CPU] * 20), SETUP, TRIGGERED),
    (cpu_bottleneck, seen(*[IDLE_CPU] * 19), SETUP, UNKNOWN),
    (cpu_bottleneck, seen(*[sample(gpu=None, cpu=100)] * 30), SETUP, UNKNOWN),
    # CPU, GPU and GPU memory all have a 95th percentile below 70
    (batch_size, room(), SETUP, TRIGGERED),
    (batch_size, room(cpu=69.9, gpu=69.9, memory=69.9), SETUP, TRIGGERED),
    (batch_size, room(cpu=70), SETUP, OK),
    (batch_size, room(gpu=70), SETUP, OK),
    (batch_size, room(memory=70), SETUP, OK),
    (batch_size, seen(*[sample()] * 2000, *[sample(gpu=0, memory=0)] * 500), SETUP, TRIGGERED),
    (batch_size, seen(*[sample(memory=None)] * 30), SETUP, UNKNOWN),
    # the histograms of two ranks are more than 0.5 apart
    (load_balancing, ranks({9: 1.0}, {9: 1.0}), TWO, OK),
    (load_balancing, ranks({9: 1.0}, {2: 1.0}), TWO, TRIGGERED),
    (load_balancing, ranks({1: 0.835, 7: 0.165}, {1: 0.165, 7: 0.835}), TWO, OK),
    (load_balancing, ranks({1: 0.84, 7: 0.16}, {1: 0.16, 7: 0.84}), TWO, TRIGGERED),
    (load_balancing, ranks({4: 1.0}, {5: 1.0}), TWO, OK),
    (load_balancing, ranks({5: 1.0}, {6: 1.0}), TWO, OK),
    (load_balancing, ranks({4: 1.0}, {6: 1.0}), TWO, TRIGGERED),
    (load_balancing, ranks({9: 1.0}, {9: 1.0}, {2: 1.0}), replace(TWO, num_ranks=3), TRIGGERED),
    (load_balancing, ranks({9: 1.0}), TWO, UNKNOWN),
    (load_balancing, ranks({9: 1.0}), SETUP, UNKNOWN),
    (load_balancing, ranks({9: 1.0}, {2: 1.0}, num_samples=19), TWO, UNKNOWN),
    # more than 10 steps of a thousand are 3 standard deviations above the mean; fewer of fewer
    (step_outlier, outliers(10, 1000), SETUP, OK),
    (step_outlier, outliers(11, 1000), SETUP, TRIGGERED),
    (step_outlier, outliers(11, 1000, deviations=3.0), SETUP, OK),
    (step_outlier, outliers(11, 1000, deviations=3.5), SETUP, TRIGGERED),
    (step_outlier, outliers(10, 5000), SETUP, OK),
    (step_outlier, outliers(11, 5000), SETUP, TRIGGERED),
    (step_outlier, outliers(1, 50), SETUP, OK),
    (step_outlier, outliers(2, 50), SETUP, TRIGGERED),
    (step_outlier, outliers(2, 199), SETUP, TRIGGERED),
    (step_outlier, outliers(2, 200), SETUP, OK),
    (step_outlier, outliers(3, 200), SETUP, TRIGGERED),
    (step_outlier, outliers(0, 49), SETUP, UNKNOWN),
    (step_outlier, steps(), SETUP, UNKNOWN),
    # 20 minutes
    (max_initialization_time, Observations(initialization_s=1200), SETUP, OK),
    (max_initialization_time, Observations(initialization_s=1200.1), SETUP, TRIGGERED),
    (max_initialization_time, Observations(), SETUP, UNKNOWN),
]  # fmt: skip


@pytest.mark.parametrize(("rule", "observations", "setup", "verdict"), CASES)
def test_rule(rule: Callable[..., Finding], observations: Observations, setup: Any, verdict: str) -> None:
    finding = rule(observations, setup)
    assert finding.verdict == verdict, finding
    assert finding.meaning.endswith(".")
    assert bool(finding.override) == bool(finding.short) == (verdict == TRIGGERED)
    if verdict != UNKNOWN:
        assert finding.figures
    units = (
        "_percent",
        "_points",
        "_s",
        "_samples",
        "_steps",
        "_workers",
        "_cores",
        "_outliers",
        "_allowed",
        "_distance",
    )
    assert all(name.endswith(units) for name in finding.figures), finding.figures


def test_an_outlier_is_blamed_on_what_was_sampled_only() -> None:
    """Of ten cores: 90 % busy, of which this training took a tenth, or nearly all; or there are no samples."""

    def said(*samples: Sample, waits: float = 0, setup: Setup = SETUP) -> Finding:
        given = replace(outliers(11, 1000), samples=samples, steps=waiting(waits).steps)
        return step_outlier(given, setup)

    crowded = said(*[sample(cpu=90, process=100)] * 40)
    assert "others took 80 % of the CPU" in crowded.short
    assert "took 80 % of this machine's CPU" in crowded.meaning
    assert crowded.figures["crowded_share_percent"] == 100
    both = said(*[sample(cpu=90, process=100)] * 40, waits=50)
    assert "other processes" in both.meaning
    assert "waited for data" in both.meaning
    # Alone; beside others on a machine with cores to spare; two ranks that fill it; too few samples to tell.
    two = replace(SETUP, num_ranks=2, local_ranks=2)
    for finding in (
        said(*[sample(cpu=90, process=880)] * 40), said(*[sample(cpu=60, process=100)] * 40),
        said(*[sample(cpu=90, process=440)] * 40, setup=two), said(*[sample(cpu=90, process=100)] * 5),
    ):  # fmt: skip
        assert finding.verdict == TRIGGERED
        assert "Nothing that was sampled says why" in finding.meaning
        assert "progress" not in f"{finding.meaning} {finding.override}"
        assert "other processes" not in finding.meaning


def test_each_rule_has_each_verdict_above() -> None:
    assert {(rule, verdict) for rule, _, _, verdict in CASES} == {
        (rule, verdict) for rule in RULES for verdict in (TRIGGERED, OK, UNKNOWN)
    }
    assert len(RULES) == 9


def test_without_data_nothing_is_ok() -> None:
    for rule in RULES:
        assert rule(Observations(), SETUP).verdict == UNKNOWN, rule.__name__


def test_why_there_are_no_figures_is_said() -> None:
    setup = replace(SETUP, gpu_problem=ON_CPU)
    for rule in (gpu_memory_increase, low_gpu_utilization, io_bottleneck, cpu_bottleneck, batch_size):
        assert rule(seen(*[sample(gpu=None, memory=None)] * 30), setup).meaning == "The run is on the CPU."
    assert "I/O wait" in io_bottleneck(seen(*[sample(io_wait=None)] * 30), SETUP).meaning
    assert "19 samples are too few" in cpu_bottleneck(seen(*[sample()] * 19), SETUP).meaning


@pytest.mark.parametrize(
    ("num_values", "window", "first", "num_judged"),
    [(20, None, 0, 20), (30, None, 10, 20), (40, None, 20, 20), (41, None, 20, 21), (300, None, 150, 150),
     (2000, None, 1000, 1000), (5000, None, 1000, 4000), (5000, 500, 4500, 500), (600, 500, 300, 300)],
)  # fmt: skip
def test_patience_and_window(num_values: int, window: int | None, first: int, num_judged: int) -> None:
    values = judged(list(range(num_values)), window)
    assert (values[0], len(values), values[-1]) == (first, num_judged, num_values - 1)


@pytest.mark.parametrize(
    ("rule", "num_judged"),
    [(low_gpu_utilization, 500), (batch_size, 500), (cpu_bottleneck, 2000), (io_bottleneck, 2000)],
)
def test_how_many_samples_each_rule_judges(rule: Callable[..., Finding], num_judged: int) -> None:
    assert rule(seen(*[sample()] * 3000), SETUP).figures["num_samples"] == num_judged


def test_thresholds_are_the_published_ones() -> None:
    """Against the package that publishes them, where it is installed."""
    published = pytest.importorskip("smdebug_rulesconfig.profiler_rules.rules")

    def of(rule: str) -> dict[str, Any]:
        parameters = dict(getattr(published, rule)().rule_parameters)
        return {name: value for name, value in parameters.items() if name not in ("rule_to_invoke", "scan_interval_us")}

    patience, share = {"patience": judging.PATIENCE}, judging.BOTTLENECK_SHARE_PERCENT
    assert of("GPUMemoryIncrease") == {
        "increase": judging.MEMORY_INCREASE_POINTS, "window": judging.MEMORY_WINDOW, **patience,
    }  # fmt: skip
    assert of("LowGPUUtilization") == {
        "threshold_p95": judging.GPU_P95_PERCENT, "threshold_p5": judging.GPU_P5_PERCENT,
        "window": judging.WINDOW, **patience,
    }  # fmt: skip
    assert of("Dataloader") == {
        "min_threshold": judging.WORKERS_MIN_PERCENT, "max_threshold": judging.WORKERS_MAX_PERCENT,
    }  # fmt: skip
    assert of("IOBottleneck") == {
        "threshold": share, "gpu_threshold": judging.IDLE_GPU_PERCENT, "io_threshold": judging.IO_WAIT_PERCENT,
        **patience,
    }  # fmt: skip
    assert of("CPUBottleneck") == {
        "threshold": share, "gpu_threshold": judging.IDLE_GPU_PERCENT, "cpu_threshold": judging.BUSY_CPU_PERCENT,
        **patience,
    }  # fmt: skip
    names = ("cpu_threshold_p95", "gpu_threshold_p95", "gpu_memory_threshold_p95")
    assert of("BatchSize") == {
        **dict.fromkeys(names, judging.BATCH_P95_PERCENT), "window": judging.WINDOW, **patience,
    }  # fmt: skip
    assert of("LoadBalancing") == {"threshold": judging.LOAD_DISTANCE, **patience}
    assert of("StepOutlier") == {
        "stddev": judging.OUTLIER_DEVIATIONS, "mode": None, "n_outliers": judging.MAX_OUTLIERS,
    }  # fmt: skip
    assert of("MaxInitializationTime") == {"threshold": judging.MAX_INITIALIZATION_MINUTES}


def test_overrides_are_what_the_config_takes() -> None:
    """Every one that a rule names, in each setup that changes what it names."""
    setups = [
        replace(setup, is_cached=is_cached, residence=residence, is_compiled=is_compiled)
        for setup in (SETUP, workers(30), TWO)
        for is_cached, residence, is_compiled in ((True, "auto", True), (True, "memory", False), (False, "auto", False))
    ]
    found = {
        finding.override
        for rule, observations, _, _ in CASES
        for setup in setups
        for given in (observations, replace(observations, steps=waiting(50).steps))
        if (finding := rule(given, setup)).override
    }
    commands: list[dict[str, str]] = []  # composing one costs half a second: those of different keys share one
    for override in sorted(found):
        words = dict(word.split("=") for word in override.split())
        command = next((command for command in commands if not command.keys() & words.keys()), None)
        if command is None:
            commands.append(command := {})
        command.update(words)
    # A command of one word is another value of a key that is in the first.
    lines = [[f"{key}={value}" for key, value in command.items()] for command in commands if len(command) > 1]
    assert {"data.cache=true", "data.residence=memory", "data.residence=device", "data.num_workers=100"} <= {
        word for line in lines for word in line
    }
    for line in lines:
        assert compose_checked("train", line)


def test_half_a_batch_is_still_shared_out_evenly() -> None:
    grown = memory(*[50] * 80, *[60] * 20)
    three = replace(SETUP, num_ranks=3, batch_size=9, accumulate_grad_batches=2)
    assert gpu_memory_increase(grown, three).override == "data.batch_size=3 trainer.accumulate_grad_batches=4"


def test_distance_of_histograms() -> None:
    apart = histogram_distance([1.0] + [0.0] * 9, [0.0] * 9 + [1.0])
    assert apart == pytest.approx(0.832555, abs=1e-6), "the square root of ln 2"
    assert histogram_distance([0.1] * 10, [0.1] * 10) == pytest.approx(0, abs=1e-7)


def test_load_of_a_rank() -> None:
    of_gpu = load_of([sample(gpu=0)] * 20 + [sample(gpu=100)] * 10 + [sample(gpu=35)] * 10, 1)
    assert (of_gpu.device, of_gpu.num_samples, of_gpu.mean_percent) == ("gpu", 20, 67.5)
    assert of_gpu.shares == (0, 0, 0, 0.5, 0, 0, 0, 0, 0, 0.5)
    of_cpu = load_of([sample(gpu=None, process=150)] * 20, 2)
    assert (of_cpu.device, of_cpu.mean_percent, of_cpu.shares[7]) == ("cpu", 75, 1.0)
    assert load_of([sample(gpu=None, process=150)] * 20, 1).mean_percent == 100
    assert load_of([], 1).num_samples == 0
