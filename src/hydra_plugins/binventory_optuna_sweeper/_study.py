"""The study: its storage, its sampler and its pruner, by name."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, check_distribution_compatibility
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, CmaEsSampler, RandomSampler, TPESampler
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.engine import URL
from sqlalchemy.exc import SQLAlchemyError

from binventory.config.capture import redact_text
from binventory.config.suggest import did_you_mean
from binventory.errors import ConfigError
from hydra_plugins.binventory_optuna_sweeper.optuna_sweeper import OptunaSweeperConf

SAMPLERS = ("tpe", "random", "grid", "cmaes")
PRUNERS = ("none", "median", "asha")
DIRECTIONS = ("minimize", "maximize")
NUM_TRIALS = 20


def check_settings(settings: OptunaSweeperConf) -> None:
    """Refuse names and numbers that nothing stands for.

    Raises:
        ConfigError: names the key, the value and what it can be.
    """
    for key, value, known in (
        ("sampler", settings.sampler, SAMPLERS),
        ("pruner", settings.pruner, PRUNERS),
        ("direction", settings.direction, (*DIRECTIONS, None)),
    ):
        if value not in known:
            names = [name for name in known if name is not None]
            hint = did_you_mean(str(value), names) or f"; choose one of {', '.join(names)}"
            raise ConfigError(f"hydra.sweeper.{key}={value}: no such {key}{hint}")
    for key, number, least in (
        ("n_trials", settings.n_trials, 1),
        ("n_jobs", settings.n_jobs, 1),
        ("seed", settings.seed, 0),
        ("pruner_min_epochs", settings.pruner_min_epochs, 1),
        ("pruner_startup_trials", settings.pruner_startup_trials, 0),
        ("pruner_reduction_factor", settings.pruner_reduction_factor, 2),
    ):
        if number is not None and number < least:
            raise ConfigError(f"hydra.sweeper.{key}={number}: at least {least}")


def check_searchable(settings: OptunaSweeperConf, distributions: Mapping[str, BaseDistribution]) -> None:
    """Refuse a space that the sampler cannot search.

    Raises:
        ConfigError: there is nothing to draw, or too little for CMA-ES.
    """
    if settings.sampler == "grid":
        return
    if not distributions:
        raise ConfigError(
            "hydra.sweeper.params: nothing to search over; add e.g. 'optimizer.lr=tag(log,interval(0.001,0.1))'"
        )
    num_numbers = sum(not isinstance(values, CategoricalDistribution) for values in distributions.values())
    if settings.sampler == "cmaes" and num_numbers < 2:
        raise ConfigError(
            f"hydra.sweeper.sampler=cmaes: searches over two or more intervals or ranges, here are {num_numbers};"
            " choose tpe"
        )


def make_sampler(settings: OptunaSweeperConf, number: int) -> BaseSampler:
    """Return the sampler that draws the next trial of a study that has `number` of them.

    What it draws is a function of the seed, `number` and the trials so far, not of how often the sweep was resumed.
    """
    seed = None
    if settings.seed is not None:
        seed = int(np.random.SeedSequence([settings.seed, number]).generate_state(1)[0])
    if settings.sampler == "tpe":
        return TPESampler(seed=seed)
    if settings.sampler == "cmaes":
        return CmaEsSampler(seed=seed, warn_independent_sampling=False)
    return RandomSampler(seed=seed)  # of a grid every value is enqueued


def make_pruner(settings: OptunaSweeperConf) -> BasePruner:
    """Return the pruner that a sweep asks for; its steps are epochs from 1."""
    if settings.pruner == "median":
        return MedianPruner(settings.pruner_startup_trials, n_warmup_steps=settings.pruner_min_epochs)
    if settings.pruner == "asha":
        return SuccessiveHalvingPruner(settings.pruner_min_epochs, settings.pruner_reduction_factor)
    return NopPruner()


def open_study(settings: OptunaSweeperConf, folder: Path, direction: str, *, is_resumed: bool) -> optuna.Study:
    """Make the study of a sweep, or open that of a resumed one.

    Raises:
        ConfigError: the storage cannot be used, or what it holds does not fit.
    """
    url = settings.storage or URL.create("sqlite", database=str(folder / "optuna.db")).render_as_string()
    try:
        storage = optuna.storages.get_storage(url)
        names = optuna.get_all_study_names(storage)
        name = _study_name(settings, folder, names, is_resumed=is_resumed)
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            direction=StudyDirection[direction.upper()],
            load_if_exists=True,
            pruner=make_pruner(settings),
            sampler=make_sampler(settings, 0),
        )
    except (optuna.exceptions.OptunaError, SQLAlchemyError, ImportError, RuntimeError) as error:
        reason = redact_text((str(error) or type(error).__name__).strip().splitlines()[0])
        shown = redact_text(f"hydra.sweeper.storage={url}")
        raise ConfigError(f"{shown}: cannot be used ({reason}); mend it or name another") from error
    if study.direction.name.lower() != direction:
        raise ConfigError(f"hydra.sweeper.direction={direction}: study {name} goes the other way; start a new sweep")
    return study


def _study_name(settings: OptunaSweeperConf, folder: Path, names: list[str], *, is_resumed: bool) -> str:
    """Return the name to open or make; two sweeps in one study would take each other's trials for their own."""
    given = settings.study_name
    if is_resumed:
        if settings.storage is None and given is None:
            return names[-1] if names else folder.name  # the folder may have been renamed
        return given or folder.name
    if given in names:
        raise ConfigError(
            f"hydra.sweeper.study_name={given}: is there already; go on with its sweep (resume_sweep=DIR), or choose"
            " another name"
        )
    if given is not None:
        return given
    again = (f"{folder.name}-{number}" for number in itertools.count(2))  # another program's, run in one folder again
    return next(name for name in itertools.chain([folder.name], again) if name not in names)


def choices_so_far(study: optuna.Study) -> dict[str, Sequence[Any]]:
    """Return the choices that a resumed study drew from, by the parameters' names."""
    return {
        name: values.choices
        for trial in study.get_trials(deepcopy=False)
        for name, values in trial.distributions.items()
        if isinstance(values, CategoricalDistribution)
    }


def check_same_space(study: optuna.Study, distributions: Mapping[str, BaseDistribution]) -> None:
    """Refuse a space that the trials of a resumed study do not fit.

    Raises:
        ConfigError: names the first parameter that has changed.
    """
    for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.RUNNING)):
        if trial.state == TrialState.COMPLETE and trial.distributions.keys() != distributions.keys():
            changed = sorted(trial.distributions.keys() ^ distributions.keys())[0]
            raise ConfigError(f"{changed}: the study was searched with other keys; start a new sweep")
        for name, before in trial.distributions.items():
            try:
                check_distribution_compatibility(before, distributions[name])
            except (KeyError, ValueError) as error:
                raise ConfigError(f"{name}: the study drew from {before} so far; start a new sweep") from error
