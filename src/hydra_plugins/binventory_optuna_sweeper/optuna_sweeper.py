"""The sweeper's config and its entry point. Hydra imports this module at every start: Optuna is imported when used."""

import importlib.util
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from binventory.errors import ConfigError


@dataclass
class OptunaSweeperConf:
    """`hydra.sweeper` under `hydra/sweeper=binventory_optuna`."""

    _target_: str = "hydra_plugins.binventory_optuna_sweeper.optuna_sweeper.OptunaSweeper"
    # Search space, dotted key -> Hydra's sweep syntax: {optimizer.lr: "tag(log, interval(0.001, 0.1))"}.
    # The command line wins over it.
    params: dict[str, Any] = field(default_factory=dict)
    # How values are drawn: tpe, random, grid or cmaes.
    sampler: str = "tpe"
    # Of the draws; null: others each time.
    seed: int | None = 0
    # Finished trials (done, pruned or failed) after which the sweep ends; null: 20, or the whole grid.
    n_trials: int | None = None
    # Trials at once; null: as many as the launcher runs.
    n_jobs: int | None = None
    # minimize or maximize; null: what objective_metric asks for, minimize for a task that has no such key.
    direction: str | None = None
    # Which trials are stopped early by their values per epoch: none, median or asha.
    pruner: str = "none"
    # median, asha: no trial is stopped before this epoch is over.
    pruner_min_epochs: int = 1
    # median: no trial is stopped before so many are complete.
    pruner_startup_trials: int = 5
    # asha: one of so many trials goes on at epochs m, m*f, m*f*f … (m: pruner_min_epochs, f: this).
    pruner_reduction_factor: int = 4
    # Database URL; null: optuna.db in the sweep folder.
    storage: str | None = None
    # Name of the study in the storage; null: the sweep folder's.
    study_name: str | None = None


ConfigStore.instance().store(
    group="hydra/sweeper", name="binventory_optuna", node=OptunaSweeperConf, provider="binventory"
)


class OptunaSweeper(Sweeper):
    """Searches with Optuna; any launcher runs the trials."""

    def __init__(self, **settings: Any) -> None:
        self._settings = OptunaSweeperConf(**settings)
        self._setup: tuple[HydraContext, TaskFunction, DictConfig] | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives to every sweeper."""
        self._setup = (hydra_context, task_function, config)

    def sweep(self, arguments: list[str]) -> list[Sequence[JobReturn]]:
        """Run the trials that are missing.

        Args:
            arguments: the task's overrides of the command line, sweeps among them.

        Returns:
            Batches of what the jobs of this process returned; one batch, in job order, where the launcher refills.
            The process ends with exit code 1 if a job failed, with 130 or 143 when it was stopped.

        Raises:
            ConfigError: a setting or the search space cannot be used; nothing was started.
        """
        from binventory.launch.sweep import one_line_errors

        assert self._setup is not None
        is_ours = hasattr(self._setup[1], "task_name")
        with one_line_errors() if is_ours else nullcontext():
            if importlib.util.find_spec("optuna") is None:
                raise ConfigError(
                    "hydra/sweeper=binventory_optuna: optuna is not installed; pip install 'binventory[optuna]'"
                )
        from hydra_plugins.binventory_optuna_sweeper._core import run_sweep

        return run_sweep(self._settings, *self._setup, arguments)
