"""Reading the machine: processor, memory, GPU. Each look costs well under a millisecond."""

from __future__ import annotations

import importlib
import time
from collections import deque
from threading import Event, Thread
from typing import Any, NamedTuple

import psutil  # type: ignore[import-untyped]

from binventory.bottlenecks.samples import Sample

MAX_SAMPLES = 50_000  # the newest are kept: seven hours at two a second, some 15 MB
LOOKS_PER_SEARCH = 10  # for new children: it reads every process of the machine


class Gpu:
    """One GPU as the NVIDIA management library (NVML) sees it.

    Args:
        nvml: the module `pynvml`, initialised.
        handle: the GPU in it.
    """

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml = nvml
        self._handle = handle

    def read(self) -> tuple[float | None, float | None]:
        """Return the share of time in use and the share of memory in use, both 0..100; None where it does not tell."""
        try:
            used_percent = float(self._nvml.nvmlDeviceGetUtilizationRates(self._handle).gpu)
            memory = self._nvml.nvmlDeviceGetMemoryInfo(self._handle)
        except self._nvml.NVMLError:
            return None, None
        return used_percent, 100 * memory.used / memory.total


def open_gpu(uuid: str) -> tuple[Gpu | None, str]:
    """Return a GPU by its UUID, `GPU-…`, or None and why its figures cannot be had, in words that end no sentence."""
    try:
        nvml = importlib.import_module("pynvml")
    except ModuleNotFoundError:
        return None, "the package nvidia-ml-py is not installed"
    try:
        nvml.nvmlInit()
        gpu = Gpu(nvml, nvml.nvmlDeviceGetHandleByUUID(uuid))
    except nvml.NVMLError as error:
        return None, f"NVML gives none ({error})"
    if gpu.read() == (None, None):
        return None, "NVML tells no utilisation of this GPU"  # a slice of one, for example
    return gpu, ""


class CpuShares(NamedTuple):
    """What all cores did between two looks, in shares of 0..100."""

    busy_percent: float
    io_wait_percent: float | None


def cpu_shares(before: Any, now: Any) -> CpuShares:
    """Compare two results of `psutil.cpu_times()`. Not every system counts I/O wait."""
    # Guests' time is part of user time already. A counter may go back a little: the kernel says so of I/O wait.
    spent = {
        name: max(0.0, end - start)
        for name, start, end in zip(now._fields, before, now, strict=True)
        if name not in ("guest", "guest_nice")
    }
    total_s, io_wait_s = sum(spent.values()), spent.get("iowait")
    busy_s = max(0.0, total_s - spent["idle"] - (io_wait_s or 0.0))
    percent = 100 / total_s if total_s else 0.0
    return CpuShares(busy_s * percent, None if io_wait_s is None else io_wait_s * percent)


class Machine:
    """Looks at the machine, at this process with its children, and at a GPU.

    Args:
        gpu: the one of this rank, if it has one that can be read.
    """

    def __init__(self, gpu: Gpu | None) -> None:
        self._gpu = gpu
        self._own = psutil.Process()
        self._family = {self._own.pid: self._own}
        self._cpu_s: dict[int, float] = {}  # of each process at the look before
        self._num_looks = 0
        self._started = self._looked = time.monotonic()
        self._cpu_times = psutil.cpu_times()
        self._family_figures()

    def look(self) -> Sample:
        """Return what happened since the last look, or since this was made."""
        now, cpu_times = time.monotonic(), psutil.cpu_times()
        shares = cpu_shares(self._cpu_times, cpu_times)
        cpu_s, memory_bytes = self._family_figures()
        process_percent = 100 * cpu_s / max(1e-9, now - self._looked)
        gpu_percent, gpu_memory_percent = (None, None) if self._gpu is None else self._gpu.read()
        self._looked, self._cpu_times = now, cpu_times
        return Sample(
            now - self._started,
            shares.busy_percent,
            process_percent,
            shares.io_wait_percent,
            memory_bytes,
            gpu_percent,
            gpu_memory_percent,
        )

    def _family_figures(self) -> tuple[float, int]:
        """Return the CPU seconds since the last look and the resident memory, of this process and its children."""
        if self._num_looks % LOOKS_PER_SEARCH == 0:
            children = self._own.children(recursive=True)
            self._family = {self._own.pid: self._own, **{child.pid: child for child in children}}
        self._num_looks += 1
        spent_s, memory_bytes, cpu_s = 0.0, 0, {}
        for pid, process in self._family.items():
            try:
                times, memory = process.cpu_times(), process.memory_info()
            except psutil.Error:  # it ended meanwhile
                continue
            cpu_s[pid] = times.user + times.system
            spent_s += cpu_s[pid] - self._cpu_s.get(pid, cpu_s[pid])
            memory_bytes += memory.rss
        self._cpu_s = cpu_s
        return spent_s, memory_bytes


class Sampler:
    """Looks at the machine every so many seconds, in a thread of its own.

    Args:
        every_s: seconds between two looks.
        gpu: that of this rank.
    """

    def __init__(self, every_s: float, gpu: Gpu | None) -> None:
        self.every_s = every_s
        self._samples: deque[Sample] = deque(maxlen=MAX_SAMPLES)
        self._machine = Machine(gpu)
        self._stopped = Event()
        # A process that dies shall not wait for it.
        self._thread = Thread(target=self._run, name="binventory-sampler", daemon=True)
        self._thread.start()

    def stop(self) -> tuple[Sample, ...]:
        """End the thread and return the newest `MAX_SAMPLES`."""
        self._stopped.set()
        self._thread.join(timeout=5)  # a driver that hangs shall not hold the run
        return tuple(self._samples)

    def _run(self) -> None:
        while not self._stopped.wait(self.every_s):
            try:
                self._samples.append(self._machine.look())
            except (psutil.Error, OSError):  # one look less
                continue
