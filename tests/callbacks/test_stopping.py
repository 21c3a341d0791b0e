"""When ranks look at each other's flags."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from binventory.callbacks.stopping import StopRequest


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A group of one: what is asked of it is asked as among many."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def steps_until_seen(step_s: float, num_steps_before: int) -> int:
    """Return how many steps a stop takes to be reached, counting the one in which it is asked for."""
    clock = Clock()
    stop = StopRequest(clock)
    stop.listen()
    try:
        for number in range(num_steps_before + 10_000):
            clock.now += step_s
            if number == num_steps_before:
                signal.raise_signal(signal.SIGTERM)
            if stop.poll(0, stop.signum)[1]:
                return number - num_steps_before + 1
    finally:
        stop.restore()
    raise AssertionError("never seen")


def test_alone_a_stop_is_seen_at_once() -> None:
    assert steps_until_seen(0.001, 1000) == 1


@pytest.mark.usefixtures("process_group")
@pytest.mark.parametrize("step_s", [0.0001, 0.001, 0.01, 0.15, 0.3, 0.9, 30.0])
def test_ranks_see_a_stop_within_a_second_or_a_step(step_s: float) -> None:
    for num_steps_before in (0, 1, 2, 3, 7, 100, 1000, 1001, 1023):
        assert steps_until_seen(step_s, num_steps_before) <= max(1, 1.0 / step_s)


@pytest.mark.usefixtures("process_group")
def test_one_short_step_does_not_tell_how_long_the_next_ones_take() -> None:
    clock = Clock()
    stop = StopRequest(clock)
    stop.poll(0)
    clock.now += 0.0001
    stop.poll(0)
    seen = []
    for _ in range(10):
        clock.now += 0.3
        seen.append(stop.poll(1)[0])
    assert "000" not in "".join(map(str, seen)), "a second is three steps"


@pytest.mark.usefixtures("process_group")
def test_ranks_wait_for_each_other_only_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = []
    clock = Clock()
    stop = StopRequest(clock)
    agree = stop.agree
    monkeypatch.setattr(stop, "agree", lambda *flags: times.append(clock.now) or agree(*flags))
    for _ in range(10_000):
        clock.now += 0.001
        stop.poll(0)
    assert len(times) < 10 / 0.4 + 12, "ten seconds of training; it begins with every step, then every other"
