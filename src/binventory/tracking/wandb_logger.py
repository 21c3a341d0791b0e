"""Weights & Biases: online when a key is configured, else offline, never a prompt."""

from __future__ import annotations

import netrc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytorch_lightning.loggers import WandbLogger

from binventory.config.capture import redact_text


def make_wandb_logger(
    save_dir: str, project: str, entity: str | None = None, group: str | None = None, tags: list[str] | None = None
) -> WandbLogger:
    """Start the W&B run of a run folder, named as the folder is."""
    mode = os.environ.get("WANDB_MODE") or ("online" if _has_key() else "offline")
    # The client warns about offline mode and console capture on every start; the run folder says all that.
    logger = WandbLogger(
        name=Path(save_dir).name,
        save_dir=save_dir,
        project=project,
        entity=entity,
        group=group,
        tags=list(tags or []),
        offline=mode == "offline",
        log_model=False,
    )
    with _redacted_command_line():
        _ = logger.experiment  # starts the run
    return logger


@contextmanager
def _redacted_command_line() -> Iterator[None]:
    """Hide secrets of the command line, which W&B stores and has no setting for."""
    before = sys.argv
    sys.argv = [redact_text(argument) for argument in before]
    try:
        yield
    finally:
        sys.argv = before


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
