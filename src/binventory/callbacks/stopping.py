"""SIGINT and SIGTERM during training: a flag that all ranks look at together, between steps."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
from torch.distributed import ReduceOp

from binventory.distributed import is_distributed


class StopRequest:
    """Handlers that only set a flag, and agreement over ranks.

    Lightning's own handling hangs under DDP: it broadcasts inside the handler. It registers its handlers later than
    `on_fit_start`, so `listen` belongs into `on_train_start`, which comes after.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, Any] = {}
        self._group: Any = None

    def listen(self) -> None:
        """Take SIGINT and SIGTERM. Every rank must call it: it makes the process group that `agree` uses."""

        def handle(signum: int, _frame: FrameType | None) -> None:
            self.signum = signum

        for signum in (signal.SIGINT, signal.SIGTERM):
            self._before[signum] = signal.signal(signum, handle)
        if is_distributed() and torch.distributed.get_backend() != "gloo":
            # On the CPU: asking the device at every step would wait for it at every step.
            self._group = torch.distributed.new_group(backend="gloo")

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
