"""An objective that stops its own process at an exact place of a run.

Chosen by `objective._target_=tests.resume.trap.Trap`; what it does stands in the environment variable PLAN as JSON:

    {"phase": "init" | "train" | "eval", "call": 3, "do": "SIGTERM" | "SIGINT" | "SIGKILL" | "raise",
     "to": "self" | "group", "rank": 0}

`init` is the making of the objective, before there is a trainer; `train` and `eval` count the calls of `loss` in this
process, from 1. Without the variable it is plain classification.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from binventory.objectives.classification import Classification

PLAN = "TEST_TRAP"
TARGET = "objective._target_=tests.resume.trap.Trap"


class TrapError(RuntimeError):
    """What a trap raises when it is asked to raise."""


class Trap(Classification):
    """Classification whose n-th loss stops the process."""

    def __init__(self, counts: Sequence[int], label_smoothing: float = 0.0) -> None:
        super().__init__(counts, label_smoothing)
        self._plan: dict[str, Any] = json.loads(os.environ.get(PLAN, "{}"))
        self._calls: Counter[str] = Counter()
        self._count("init")

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        self._count("train" if torch.is_grad_enabled() else "eval")
        return super().loss(outputs, target)

    def _count(self, phase: str) -> None:
        self._calls[phase] += 1
        plan = self._plan
        here = (phase, self._calls[phase], int(os.environ.get("RANK", "0")))
        if plan and here == (plan["phase"], plan["call"], plan["rank"]):
            self._spring(plan["do"], plan["to"])

    def _spring(self, do: str, to: str) -> None:
        print(f"trap: {do} to {to}", flush=True)
        if do == "raise":
            raise TrapError("the trap sprang")
        if to == "group":
            os.killpg(0, signal.Signals[do])
        else:
            os.kill(os.getpid(), signal.Signals[do])
