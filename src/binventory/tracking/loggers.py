"""The experiment loggers that a config names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from pytorch_lightning.loggers import Logger, WandbLogger

from binventory.config.capture import redact, to_plain
from binventory.config.schema import TrainConfig
from binventory.config.targets import import_target
from binventory.errors import ConfigError


def make_loggers(config: TrainConfig, run_dir: Path) -> list[Logger]:
    """Build every logger of `config.logger` and tell it the config, with secrets redacted.

    Raises:
        ConfigError: its package is not installed.
    """
    loggers = []
    for name, node in config.logger.items():
        options: dict[str, Any] = {key: value for key, value in node.items() if key != "_target_"}
        try:
            made: Logger = import_target(f"logger.{name}", node["_target_"])(save_dir=str(run_dir), **options)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"logger={name}: {error.name} is not installed; pip install 'binventory[{name}]'"
            ) from error
        made.log_hyperparams(redact(to_plain(OmegaConf.create(cast(Any, config)))))
        loggers.append(made)
    return loggers


def finish_loggers(loggers: Sequence[Logger], *, failed: bool) -> None:
    """End what Lightning leaves open: a W&B run would else take in the next run of this process."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=int(failed))
