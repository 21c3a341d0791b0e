"""What goes wrong in a logger is a warning: a training outlives its dashboard."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

from pytorch_lightning.loggers import Logger

from binventory.config.capture import one_line

# All that Lightning and we call on a logger; not every logger has each.
HOOKS = ("log_hyperparams", "log_metrics", "log_graph", "log_best", "log_results", "save", "after_save_checkpoint")
ENDINGS = ("finalize", "finish")  # called also on a logger that has failed: what it holds may still be closed


def guard(logger: Logger, name: str) -> None:
    """Let a logger's first failure be a warning, and the last thing that is logged there.

    Args:
        logger: its methods are replaced, on this object alone.
        name: of the logger in the config.
    """
    failed: list[str] = []

    def guarded(hook: str, call: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(call)
        def calling(*args: Any, **kwargs: Any) -> Any:
            if failed and hook not in ENDINGS:
                return None
            try:
                return call(*args, **kwargs)
            except Exception as error:  # noqa: BLE001  a run is worth more than what is said of it
                if not failed:
                    warn_failed(name, error)
                failed.append(hook)
                return None

        return calling

    for hook in (*HOOKS, *ENDINGS):
        if (call := getattr(logger, hook, None)) is not None:
            setattr(logger, hook, guarded(hook, call))


def warn_failed(name: str, error: Exception) -> None:
    """Say that nothing more is logged to a logger, and why."""
    print(
        f"warning: logger={name} has failed, nothing more is logged there: {type(error).__name__}:"
        f" {one_line(str(error))}; metrics.csv has everything",
        file=sys.stderr,
        flush=True,
    )
