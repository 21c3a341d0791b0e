"""What is known of a training when the rules judge it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

LOAD_BINS = 10  # of 10 points each


class Sample(NamedTuple):
    """One look at the machine, taken on a rank; shares are of the time since the look before.

    Attributes:
        time_s: since sampling began.
        cpu_percent: busy share of all cores of the machine, 0..100.
        process_cpu_percent: CPU time of the rank and its children; 100 is one core.
        io_wait_percent: share of all cores that idled while a disk was asked; None where the system does not tell.
        memory_bytes: resident memory of the rank and its children; what they share counts once for each.
        gpu_percent: share of the time in which the rank's GPU ran a kernel, 0..100; None where nothing tells.
        gpu_memory_percent: memory of the rank's GPU in use, by whomever, 0..100; None likewise.
    """

    time_s: float
    cpu_percent: float
    process_cpu_percent: float
    io_wait_percent: float | None
    memory_bytes: int
    gpu_percent: float | None
    gpu_memory_percent: float | None


class Step(NamedTuple):
    """One training batch on the clock of the host.

    Attributes:
        compute_s: from the batch's start to its end. On a GPU that is the time to queue its work, and to wait for
            earlier work where the queue is full.
        data_wait_s: from the end of the batch before, or the start of the epoch, until the batch was there; None
            where something else came between: a checkpoint was written.
    """

    compute_s: float
    data_wait_s: float | None


class RankLoad(NamedTuple):
    """How busy the device of one rank was.

    Attributes:
        device: what was measured.
        num_samples: how often.
        mean_percent: 0..100.
        shares: of the samples in each tenth of 0..100.
    """

    device: Literal["gpu", "cpu"]
    num_samples: int
    mean_percent: float
    shares: tuple[float, ...]


@dataclass(frozen=True)
class Setup:
    """What the rules have to know of the run beside what was measured.

    Attributes:
        cpu_cores: that this process may use.
        num_ranks: processes of the training.
        local_ranks: those on this machine.
        num_workers: loader processes on this machine, of all its ranks.
        batch_size: `data.batch_size`.
        accumulate_grad_batches: batches per optimizer step.
        is_compiled: `trainer.compile`.
        is_cached: `data.cache`.
        residence: `data.residence`.
        gpu_problem: why there are no figures of the GPU; empty where there are.
        machine_cores: of the machine; None where it does not say.
    """

    cpu_cores: int
    num_ranks: int
    local_ranks: int
    num_workers: int
    batch_size: int
    accumulate_grad_batches: int
    is_compiled: bool
    is_cached: bool
    residence: str
    gpu_problem: str
    machine_cores: int | None = None


@dataclass(frozen=True)
class Observations:
    """What was seen of one attempt at a training, on rank 0 unless it says otherwise.

    Attributes:
        samples: in the order of time.
        steps: the training batches, in order.
        durations_s: from the end of a batch to the end of the next, by the device's own clock where it has one;
            validation and saving are left out.
        initialization_s: from the start of the job to the end of its first batch; None where that is not known.
        loads: of every rank, by rank; of rank 0 alone where the run was stopped.
    """

    samples: Sequence[Sample] = ()
    steps: Sequence[Step] = ()
    durations_s: Sequence[float] = ()
    initialization_s: float | None = None
    loads: Sequence[RankLoad] = field(default_factory=tuple)

    @property
    def data_wait_percent(self) -> float | None:
        """Return the share of the steps' time in which the host waited for a batch; None without steps."""
        known = [(step.data_wait_s, step.compute_s) for step in self.steps if step.data_wait_s is not None]
        total_s = sum(wait_s + compute_s for wait_s, compute_s in known)
        return 100 * sum(wait_s for wait_s, _ in known) / total_s if total_s else None
