"""An objective that notes what its process holds: memory, open files, threads.

Chosen by `objective._target_=tests.resume.meter.Meter`. The environment variable FILE names where the rows go, one per
validation batch, or per call of `probabilities` where CALLS is "probabilities". Where LEAK names quantities it leaks at every row,
so that the tests are seen to notice: LEAK_BYTES of memory, one file, one thread.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from binventory.objectives.classification import Classification

TARGET = "objective._target_=tests.resume.meter.Meter"
FILE, CALLS, LEAK = "TEST_METER", "TEST_METER_CALLS", "TEST_LEAK"
QUANTITIES = ("memory", "files", "threads")
LEAK_BYTES = 64 * 1024


class Meter(Classification):
    """Classification that measures its process."""

    def __init__(self, counts: Sequence[int], label_smoothing: float = 0.0) -> None:
        super().__init__(counts, label_smoothing)
        self._file = os.environ.get(FILE)
        self._calls = os.environ.get(CALLS, "loss")
        self._leaked: list[object] = []

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        if self._calls == "loss" and not torch.is_grad_enabled():
            self._note()
        return super().loss(outputs, target)

    def probabilities(self, outputs: Tensor) -> Tensor:
        if self._calls == "probabilities":
            self._note()
        return super().probabilities(outputs)

    def _note(self) -> None:
        if self._file is None:
            return
        self._leak(os.environ.get(LEAK, ""))
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        files, threads = (len(list(Path(f"/proc/self/{name}").iterdir())) for name in ("fd", "task"))
        with Path(self._file).open("a") as file:
            file.write(f"{resident} {files} {threads}\n")

    def _leak(self, what: str) -> None:
        if "memory" in what:
            self._leaked.append(np.ones(LEAK_BYTES, dtype=np.uint8))
        if "files" in what:
            self._leaked.append(Path(os.devnull).open())  # noqa: SIM115  left open
        if "threads" in what:
            threading.Thread(target=threading.Event().wait, daemon=True).start()


def slopes(rows: Path) -> dict[str, float]:
    """Return what every quantity gains per row over the second half of the rows, by least squares.

    Over medians of ten rows: what comes and goes, such as the buffers of a save, is no gain.
    """
    values = np.loadtxt(rows)
    second_half = values[len(values) // 2 :]
    blocks = second_half[: len(second_half) // 10 * 10].reshape(-1, 10, len(QUANTITIES))
    gains = np.polyfit(10 * np.arange(len(blocks)), np.median(blocks, axis=1), deg=1)[0]
    return dict(zip(QUANTITIES, gains.tolist(), strict=True))
