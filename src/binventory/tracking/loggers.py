"""The experiment loggers that a config names: made, told what came of the test, and closed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from omegaconf import OmegaConf
from pytorch_lightning.loggers import Logger, TensorBoardLogger

from binventory.config.capture import one_line, redact, to_plain
from binventory.config.schema import TrainConfig
from binventory.config.targets import import_target
from binventory.data.preprocess import Preprocessing
from binventory.errors import ConfigError
from binventory.files import read_limited
from binventory.launch.runner import ending_of
from binventory.tracking.guard import guard, warn_failed
from binventory.tracking.wandb_logger import BinWandbLogger, flat_figures


def make_loggers(config: TrainConfig, run_dir: Path, resumed_step: int | None) -> list[Logger]:
    """Build every logger of `config.logger` and tell it the config, with secrets redacted.

    What goes wrong in one, now or later, is a warning; one that cannot be made is left out.

    Args:
        config: a checked config.
        run_dir: the run folder.
        resumed_step: optimizer steps that a resumed run has done; what was logged after them is about to be done again.

    Raises:
        ConfigError: its package is not installed, or it does not take what the config says.
    """
    loggers: list[Logger] = []
    told = redact(to_plain(OmegaConf.create(cast(Any, config))))
    for name, node in config.logger.items():
        options: dict[str, Any] = {key: value for key, value in node.items() if key != "_target_"}
        target = import_target(f"logger.{name}", node["_target_"])
        if target is TensorBoardLogger and resumed_step is not None:
            options["purge_step"] = resumed_step
        try:
            made: Logger = target(save_dir=str(run_dir), **options)
            # Lightning would start what is behind it later, where nothing is caught.
            _ = getattr(made, "experiment", None)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"logger={name}: {error.name} is not installed; pip install 'binventory[{name}]'"
            ) from error
        except ConfigError:
            raise
        except (TypeError, ValueError) as error:
            raise ConfigError(f"logger.{name}: {one_line(str(error))}; change what is under logger.{name}") from error
        except Exception as error:  # noqa: BLE001  no disk space, no server, …
            warn_failed(name, error)
            continue
        guard(made, name)
        made.log_hyperparams(told)
        loggers.append(made)
    return loggers


def log_provenance(loggers: Sequence[Logger], run_dir: Path) -> None:
    """Give W&B what provenance.json says beside the config: overrides, group choices, git commit, data."""
    facts = json.loads(read_limited(run_dir / "provenance.json"))
    told = {name: facts.get(name) for name in ("overrides", "choices", "git", "data", "packages", "hardware")}
    for logger in loggers:
        if isinstance(logger, BinWandbLogger):
            logger.log_hyperparams({"provenance": {**told, "run_dir": str(run_dir)}})


def log_results(
    loggers: Sequence[Logger],
    figures: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    photos: Sequence[str],
    preprocessing: Preprocessing,
    step: int,
) -> None:
    """Log what came of a finished run.

    Args:
        loggers: all of the run's.
        figures: as in metrics.json.
        rows: as in predictions.csv.
        photos: the path of each row's photo.
        preprocessing: of the model.
        step: optimizer steps done.
    """
    scalars = flat_figures({"test": figures["test"]})
    for logger in loggers:
        if isinstance(logger, BinWandbLogger):
            logger.log_results(figures, rows, photos, preprocessing)
        else:
            logger.log_metrics(scalars, step=step - 1)  # Lightning's loggers count from 0


def finish_loggers(loggers: Sequence[Logger], error: BaseException | None) -> None:
    """End what Lightning leaves open: a W&B run would else take in the next run of this process."""
    for logger in loggers:
        if isinstance(logger, BinWandbLogger):
            state, exit_code = ending_of(error)
            logger.finish(state, exit_code, f"{type(error).__name__}: {error}" if state == "failed" else None)
