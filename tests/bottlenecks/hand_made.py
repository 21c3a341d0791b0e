"""What a training might have looked like, made by hand."""

from __future__ import annotations

from binventory.bottlenecks.samples import Observations, RankLoad, Sample, Setup, Step

SETUP = Setup(
    cpu_cores=10, num_ranks=1, local_ranks=1, num_workers=0, batch_size=64, accumulate_grad_batches=1,
    is_compiled=False, is_cached=True, residence="auto", gpu_problem="",
)  # fmt: skip
ON_CPU = "the run is on the CPU"


def sample(
    cpu: float = 50, gpu: float | None = 90, memory: float | None = 80, io_wait: float | None = 1, process: float = 100
) -> Sample:
    return Sample(0.0, cpu, process, io_wait, 10**9, gpu, memory)


def seen(*samples: Sample) -> Observations:
    return Observations(samples)


def waiting(percent: float, *samples: Sample, num_steps: int = 20) -> Observations:
    """Steps of which this share went into waiting for data."""
    return Observations(samples, [Step(100 - percent, percent)] * num_steps)


def ranks(*shares: dict[int, float], num_samples: int = 20, device: str = "gpu") -> Observations:
    """Ranks by the tenths of 0..100 in which their samples lie."""
    loads = [
        RankLoad(device, num_samples, 10.0 * max(one), tuple(one.get(tenth, 0.0) for tenth in range(10)))  # type: ignore[arg-type]
        for one in shares
    ]
    return Observations(loads=loads)


def steps(*durations_s: float) -> Observations:
    """Steps after the five that are a start and count for nothing, which took a hundred times as long."""
    return Observations(durations_s=[100.0] * 5 + list(durations_s))


def outliers(num: int, num_steps: int, deviations: float = 20) -> Observations:
    """Steps of 0.9 s and 1.1 s by turns, the last few of them longer by so many tenths of a second."""
    usual = [0.9, 1.1] * num_steps
    return steps(*usual[: num_steps - num], *[1 + deviations / 10] * num)
