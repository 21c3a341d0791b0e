"""An objective that misbehaves where a test says so."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

from binventory.objectives.classification import Classification


class Unruly(Classification):
    """Cross-entropy that does something else in the first training step, once.

    Args:
        does: calm, raise, exit, leave, kill, interrupt, slow (0.2 s a step), tell.
        folder: where it notes that it did it; None: nothing is noted, and it does it every time.
    """

    def __init__(
        self, counts: Any, label_smoothing: float = 0.0, does: str = "calm", folder: str | None = None
    ) -> None:
        super().__init__(counts, label_smoothing)
        self.does, self.folder = does, folder

    def loss(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled() and not self._was_done():
            self._misbehave()
        return super().loss(outputs, target)

    def _was_done(self) -> bool:
        if self.does in ("calm", "slow", "tell") or self.folder is None:
            return False
        note = Path(self.folder) / self.does
        was_done = note.exists()
        note.touch()
        return was_done

    def _misbehave(self) -> None:
        if self.does == "raise":
            raise RuntimeError("something broke")
        if self.does == "exit":
            sys.exit(0)
        if self.does == "leave":
            os._exit(0)
        if self.does == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.does == "interrupt":
            os.kill(os.getpid(), signal.SIGINT)
        if self.does == "slow":
            time.sleep(0.2)
        if self.does == "tell" and self.folder is not None:
            told = {"smoothing": self.label_smoothing, "threads": torch.get_num_threads()}
            name = f"{self.label_smoothing}_rank{os.environ.get('RANK', '0')}.json"
            (Path(self.folder) / name).write_text(json.dumps(told))
