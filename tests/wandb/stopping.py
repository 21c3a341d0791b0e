"""An objective that ends its run, at one training step."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import psutil
import torch

from binventory.objectives.classification import Classification


class Stopping(Classification):
    """Cross-entropy that ends the run at its so-manieth training step in this process.

    Args:
        at: the step, counted from 1; an attempt that has fewer left runs through.
        does: raise, prune, kill_client (the client's background process), block_media (pictures have nowhere to go), or
            a signal that the process sends itself.
    """

    def __init__(self, counts: Any, at: int, does: str, label_smoothing: float = 0.0) -> None:
        super().__init__(counts, label_smoothing)
        self.at, self.does, self.calls = at, does, 0

    def loss(self, outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if torch.is_grad_enabled():
            self.calls += 1
            if self.calls == self.at:
                self._end()
        return super().loss(outputs, target)

    def _end(self) -> None:
        if self.does == "raise":
            raise RuntimeError("something broke")
        if self.does == "prune":  # what a sweep does
            newest = max(Path("outputs/train").iterdir(), key=lambda run: run.stat().st_mtime_ns)
            (newest / ".prune").touch()
        elif self.does == "kill_client":
            for child in psutil.Process().children():
                if child.name().startswith("wandb-core"):
                    child.kill()
        elif self.does == "block_media":
            newest = max(Path("outputs/train").iterdir(), key=lambda run: run.stat().st_mtime_ns)
            for files in newest.glob("wandb/*run-*/files"):
                (files / "media").write_text("")
        else:
            os.kill(os.getpid(), signal.Signals[self.does])
