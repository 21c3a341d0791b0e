"""A logger that fails."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.loggers import Logger


class Troubled(Logger):
    """Fails in one of its methods, whenever that is called.

    Args:
        save_dir: not used.
        at: the method; `init` or `experiment` too.
    """

    def __init__(self, save_dir: str, at: str) -> None:
        super().__init__()
        self.at = at
        self._fail("init")

    def _fail(self, method: str) -> None:
        if method == self.at:
            raise OSError(28, f"no space left for {method}")

    @property
    def experiment(self) -> None:
        self._fail("experiment")

    @property
    def name(self) -> str:
        return "troubled"

    @property
    def version(self) -> int:
        return 0

    def log_hyperparams(self, params: Any) -> None:
        self._fail("log_hyperparams")

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self._fail("log_metrics")

    def save(self) -> None:
        self._fail("save")

    def finalize(self, status: str) -> None:
        self._fail("finalize")
