"""One sweep from its settings to its results."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import optuna
from hydra.core.config_loader import ConfigLoader
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from binventory.config.check import check_config
from binventory.config.compose import as_job
from binventory.errors import ConfigError
from binventory.launch.sweep import Sweep, one_line_errors
from binventory.metrics.direction import direction
from binventory.tracking.resume import override_key
from hydra_plugins.binventory_optuna_sweeper._results import best_trial, describe_best, write_results
from hydra_plugins.binventory_optuna_sweeper._search import Search
from hydra_plugins.binventory_optuna_sweeper._space import Space, read_space
from hydra_plugins.binventory_optuna_sweeper._study import (
    check_same_space,
    check_searchable,
    check_settings,
    choices_so_far,
    open_study,
)
from hydra_plugins.binventory_optuna_sweeper.optuna_sweeper import OptunaSweeperConf

log = logging.getLogger(__name__)

MAX_COMPOSED = 32  # combinations that are tried out before the sweep starts


def run_sweep(
    settings: OptunaSweeperConf, context: HydraContext, task: Any, config: DictConfig, arguments: Sequence[str]
) -> list[Sequence[JobReturn]]:
    """Do what `OptunaSweeper.sweep` promises."""
    task_name: str | None = getattr(task, "task_name", None)
    arguments = [text for text in arguments if override_key(text) != "resume_sweep"]
    with one_line_errors() if task_name is not None else nullcontext():
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        check_settings(settings)
        space = read_space(settings.params, arguments, context.config_loader, as_grid=settings.sampler == "grid")
        check_searchable(settings, space.distributions)
        composed = _try_out(space, context.config_loader, config, task_name)
        metric, way = _objective(settings, composed)
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=task, config=config)
        if getattr(launcher, "dry_run", False):
            raise ConfigError("hydra.launcher.dry_run=true: a search draws its jobs as it goes; give single values")
        sweep = Sweep(launcher, task, config)
        is_resumed = OmegaConf.select(config, "resume_sweep", default=None) is not None
        study = open_study(settings, sweep.folder, way, is_resumed=is_resumed)
        space = space.ordered_as(choices_so_far(study))
        check_same_space(study, space.distributions)
    with sweep.running():
        returned = Search(settings, space, study, sweep, metric).run()
    write_results(study, sweep.folder, metric)
    exit_code = sweep.finish()
    print(describe_best(study, sweep.folder, metric), flush=True)
    if not sweep.signum:
        _write_page(study, sweep, metric)
    if exit_code:
        sys.exit(exit_code)
    return returned


def _try_out(space: Space, config_loader: ConfigLoader, config: DictConfig, task_name: str | None) -> DictConfig:
    """Compose the ends of every parameter, so that a wrong one is found now and not in the tenth trial; return one."""
    configs = []
    for values in itertools.islice(space.samples(), MAX_COMPOSED):
        overrides = space.overrides(values)
        try:
            configs.append(config_loader.load_sweep_config(config, overrides))
        except (HydraException, OmegaConfBaseException) as error:
            reason = " ".join(str(error).splitlines()[:2])
            raise ConfigError(f"{' '.join(overrides)}: cannot be composed ({reason})") from error
        if task_name is not None:
            with as_job(configs[-1], 0):
                check_config(task_name, configs[-1])
    return configs[0]


def _objective(settings: OptunaSweeperConf, composed: DictConfig) -> tuple[str, str]:
    """Return the metric that trials are compared by, and minimize or maximize."""
    if "objective_metric" not in composed:  # a task that is not ours
        return "value", settings.direction or "minimize"
    if composed.objective_metric is None:
        raise ConfigError("objective_metric=null: a search needs a metric to go by; name one, e.g. val/accuracy")
    metric = str(composed.objective_metric)
    return metric, settings.direction or f"{direction(metric)}imize"


def _write_page(study: optuna.Study, sweep: Sweep, metric: str) -> None:
    if best_trial(study) is None:
        return
    try:
        from hydra_plugins.binventory_optuna_sweeper._plots import write_page
    except ModuleNotFoundError as error:
        log.warning(f"no optuna.html: {error.name} is not installed; pip install 'binventory[optuna]'")
        return
    path = sweep.folder / "optuna.html"
    write_page(study, path, metric)
    print(f"plots: {path}", flush=True)
