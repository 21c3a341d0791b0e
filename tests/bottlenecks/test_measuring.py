"""What is sampled is what the machine does, and steps are timed without waiting for the device."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import NamedTuple

import psutil
import pytest
import torch

from binventory.bottlenecks import steps
from binventory.bottlenecks.machine import Machine, Sampler, cpu_shares, open_gpu
from binventory.bottlenecks.samples import Step
from binventory.bottlenecks.steps import StepTimer
from binventory.cores import usable_cores


class LinuxTimes(NamedTuple):
    user: float
    nice: float
    system: float
    idle: float
    iowait: float
    guest: float


class MacTimes(NamedTuple):
    user: float
    nice: float
    system: float
    idle: float


def test_shares_of_the_cores() -> None:
    before, now = LinuxTimes(10, 0, 5, 100, 7, 4), LinuxTimes(14, 1, 6, 102, 9, 8)
    assert cpu_shares(before, now) == (pytest.approx(60), pytest.approx(20)), (
        "guests are part of user; I/O wait is idle"
    )
    assert cpu_shares(MacTimes(10, 0, 5, 100), MacTimes(13, 0, 5, 101)) == (pytest.approx(75), None)
    backwards = cpu_shares(before, LinuxTimes(14, 0, 5, 104, 6, 4))
    assert backwards == (pytest.approx(50), 0), "a counter that goes back counts nothing"
    assert cpu_shares(before, before) == (0, 0), "no time went by"


def test_the_systems_own_counters_fit() -> None:
    shares = cpu_shares(psutil.cpu_times(), psutil.cpu_times())
    assert (shares.io_wait_percent is not None) == sys.platform.startswith("linux")


def test_a_look_counts_this_process_and_its_children() -> None:
    child = subprocess.Popen([sys.executable, "-S", "-c", "data = bytearray(80_000_000)\nwhile True: pass"])
    try:
        while psutil.Process(child.pid).memory_info().rss < 80_000_000:
            time.sleep(0.01)
        began = time.monotonic()
        machine = Machine(None)
        time.sleep(0.4)
        look = machine.look()
        assert 5 < look.process_cpu_percent < 250, "the child's share; this process slept"
        assert look.memory_bytes > psutil.Process().memory_info().rss + 70_000_000
        assert 0 < look.cpu_percent <= 100
        assert 0.4 <= look.time_s <= time.monotonic() - began
        assert (look.gpu_percent, look.gpu_memory_percent) == (None, None)
    finally:
        child.kill()
        child.wait()
    gone = machine.look()
    assert gone.memory_bytes < look.memory_bytes - 70_000_000, "a child that ended counts no more and breaks nothing"


def test_a_child_that_comes_later_is_found() -> None:
    machine = Machine(None)
    child = subprocess.Popen(
        [sys.executable, "-S", "-c", "data = bytearray(80_000_000)\ninput()"], stdin=subprocess.PIPE
    )
    try:
        while psutil.Process(child.pid).memory_info().rss < 80_000_000:
            time.sleep(0.01)
        own = psutil.Process().memory_info().rss
        assert max(machine.look().memory_bytes for _ in range(10)) > own + 70_000_000
    finally:
        child.kill()
        child.wait()


def test_the_sampler_looks_until_it_is_stopped() -> None:
    began = time.monotonic()
    sampler = Sampler(0.02, None)
    while len(sampler._samples) < 3:
        time.sleep(0.02)
    samples = sampler.stop()
    assert 3 <= len(samples) <= (time.monotonic() - began) / 0.02
    times = [sample.time_s for sample in samples]
    assert times == sorted(times)
    assert "binventory-sampler" not in {thread.name for thread in threading.enumerate()}
    time.sleep(0.05)
    assert len(sampler.stop()) == len(samples)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_reason_is_said() -> None:
    gpu, problem = open_gpu("GPU-none")
    assert gpu is None
    assert "NVML" in problem or "nvidia-ml-py" in problem


def test_without_the_package_the_reason_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert open_gpu("GPU-none") == (None, "the package nvidia-ml-py is not installed")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_gpu_is_read() -> None:
    pytest.importorskip("pynvml")
    gpu, problem = open_gpu(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
    assert gpu is not None, problem
    _, before = gpu.read()
    held = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    stop = time.monotonic() + 2
    while time.monotonic() < stop:
        (held[: 2**26].view(-1, 2**13).float() @ torch.ones(2**13, 2**10, device="cuda")).sum()
    used, after = gpu.read()
    assert used is not None
    assert used > 20
    assert before is not None
    assert after is not None
    assert after > before


def test_steps_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(steps, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    timer = StepTimer(None)

    def step(wait_s: float, compute_s: float) -> None:
        clock.now += wait_s
        timer.step_began()
        clock.now += compute_s
        timer.step_ended()

    clock.now += 50
    timer.epoch_began()
    step(2, 1)  # the first batch of an epoch is waited for too
    step(4, 1)
    timer.something_else()
    step(64, 8)
    step(16, 8)
    clock.now += 50
    timer.epoch_began()
    step(32, 8)
    assert list(timer.steps) == [Step(1, 2), Step(1, 4), Step(8, None), Step(8, 16), Step(8, 32)]
    assert list(timer.durations_s) == [3, 5, 24, 40], "where something else came between, it is not known"


class DeviceEvent:
    """An event of a device whose clock the test moves."""

    reached = 0.0  # how far the device is, in ms
    made = 0

    def __init__(self) -> None:
        DeviceEvent.made += 1
        self.at = 20.0 * DeviceEvent.made**2

    def record(self) -> None:
        assert self.at > DeviceEvent.reached

    def query(self) -> bool:
        return self.at <= DeviceEvent.reached

    def elapsed_time(self, other: DeviceEvent) -> float:
        assert self.query()
        assert other.query(), "asked for what is not there yet: that would wait for the device"
        return other.at - self.at


def test_steps_on_a_device_are_read_when_they_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceEvent, "reached", 0.0)
    monkeypatch.setattr(DeviceEvent, "made", 0)
    timer = StepTimer(DeviceEvent)

    def step() -> None:
        timer.step_began()
        timer.step_ended()

    for _ in range(3):
        step()
    assert list(timer.durations_s) == [], "the host is ahead"
    DeviceEvent.reached = 180
    step()
    assert list(timer.durations_s) == [0.06, 0.1], "the ends of the first three lie at 20, 80 and 180 ms"
    timer.something_else()  # validation
    DeviceEvent.reached = 400
    step()
    step()
    DeviceEvent.reached = 720
    step()
    assert list(timer.durations_s) == [0.06, 0.1, 0.14, 0.22], "not the one with validation in it"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_steps_on_a_gpu_take_what_the_gpu_takes() -> None:
    timer = StepTimer(lambda: torch.cuda.Event(enable_timing=True))
    for _ in range(20):
        timer.step_began()
        torch.cuda._sleep(20_000_000)  # cycles: some 10 ms
        timer.step_ended()
    assert sum(step.compute_s for step in timer.steps) < 0.05, "the host did not wait"
    torch.cuda.synchronize()
    timer.step_began()
    timer.step_ended()
    assert len(timer.durations_s) >= 19
    assert all(0.005 < duration < 0.05 for duration in list(timer.durations_s)[1:19])


def test_usable_cores() -> None:
    assert 1 <= usable_cores() <= (psutil.cpu_count() or 1)
