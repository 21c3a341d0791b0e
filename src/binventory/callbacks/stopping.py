"""Signals to stop during training: a flag that all ranks look at together, between steps."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch.distributed import ReduceOp

from binventory.distributed import is_distributed
from binventory.signals import stop_signals

POLL_S = 0.4  # between two times that ranks agree: a stop shall be reached within a second


class StopRequest:
    """Handlers that only set a flag, and agreement over ranks.

    Lightning's own handling hangs under DDP: it broadcasts inside the handler. It registers its handlers later than
    `on_fit_start`, so `listen` belongs into `on_train_start`, which comes after.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.signum = 0
        self._clock = clock
        self._poll_every = self._num_polls = 1
        self._agreed_at = 0.0
        self._before: dict[int, Any] = {}
        self._group: Any = None

    def listen(self) -> None:
        """Take the signals to stop. Every rank must call it: it makes the process group that `agree` uses."""

        def handle(signum: int, _frame: FrameType | None) -> None:
            self.signum = signum

        for signum in stop_signals():
            self._before[signum] = signal.signal(signum, handle)
        if is_distributed() and torch.distributed.get_backend() != "gloo":
            # On the CPU: asking the device at every step would wait for it at every step.
            self._group = torch.distributed.new_group(backend="gloo")
        self._agreed_at = self._clock()

    def restore(self) -> None:
        """Give the signals back to who had them, unless the process is leaving and ignores them."""
        for signum, handler in self._before.items():
            if signal.getsignal(signum) is not signal.SIG_IGN:
                signal.signal(signum, handler)
        self._before.clear()

    def agree(self, *flags: int) -> tuple[int, ...]:
        """Return the largest of each rank's flags, the same on all ranks, which must all be at this point."""
        if not is_distributed():
            return flags
        values = torch.tensor(flags)
        torch.distributed.all_reduce(values, op=ReduceOp.MAX, group=self._group)
        return tuple(int(value) for value in values)

    def poll(self, *flags: int) -> tuple[int, ...]:
        """Return what `agree` does, or zeros: ranks wait for each other only at every k-th call, some 0.4 s apart.

        All ranks must call it after the same steps. Each finds the same k: it comes from the slowest rank's steps.
        """
        if not is_distributed():
            return flags
        if self._num_polls < self._poll_every:
            self._num_polls += 1
            return (0,) * len(flags)
        step_us = int(1e6 * (self._clock() - self._agreed_at) / self._num_polls)
        *agreed, slowest_us = self.agree(*flags, step_us)
        # Doubled at most: one short step does not tell how long the next ones take.
        self._poll_every = min(2 * self._poll_every, max(1, int(1e6 * POLL_S) // max(1, slowest_us)))
        self._agreed_at, self._num_polls = self._clock(), 1
        return tuple(agreed)
