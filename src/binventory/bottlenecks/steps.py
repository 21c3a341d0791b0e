"""How long steps take and how long they wait for data, without waiting for the device."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from binventory.bottlenecks.samples import Step

MAX_STEPS = 100_000  # the newest are kept: some 20 MB


class StepTimer:
    """Two calls a step; each costs a microsecond, on a GPU some more.

    Args:
        make_event: makes a `torch.cuda.Event` that keeps the time; None: the host's clock tells how long a step took.

    Attributes:
        steps: the newest `MAX_STEPS`.
        durations_s: from the end of a step to the end of the next, where nothing else came between; likewise.
    """

    def __init__(self, make_event: Callable[[], Any] | None) -> None:
        self.steps: deque[Step] = deque(maxlen=MAX_STEPS)
        self.durations_s: deque[float] = deque(maxlen=MAX_STEPS)
        self._make_event = make_event
        self._pending: deque[Any] = deque()  # events that the device has not reached; None: something else came between
        self._waits_since: float | None = None
        self._data_wait_s: float | None = None
        self._began = 0.0

    def epoch_began(self) -> None:
        """From now on training waits for the first batch."""
        self._waits_since = time.perf_counter()

    def step_began(self) -> None:
        """The batch is there."""
        self._began = time.perf_counter()
        self._data_wait_s = None if self._waits_since is None else self._began - self._waits_since

    def step_ended(self) -> None:
        """Its work is done, or queued on the device."""
        self._waits_since = now = time.perf_counter()
        step = Step(now - self._began, self._data_wait_s)
        self.steps.append(step)
        if self._make_event is not None:
            event = self._make_event()
            event.record()
            self._pending.append(event)
            self._read_events()
        elif step.data_wait_s is not None:
            self.durations_s.append(step.compute_s + step.data_wait_s)

    def something_else(self) -> None:
        """Validation, or a checkpoint: the time until the next step is not spent on training."""
        self._waits_since = None
        self._pending.append(None)

    def _read_events(self) -> None:
        while len(self._pending) > 1:
            first, second = self._pending[0], self._pending[1]
            if first is not None and second is not None:
                if not second.query():  # the device is not there yet
                    return
                self.durations_s.append(first.elapsed_time(second) / 1000)
            self._pending.popleft()
