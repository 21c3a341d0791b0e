"""What a search has found so far, as `optimization_results.json` and as lines for the terminal."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from binventory.files import write_json

RUN_DIR, ERROR = "run_dir", "error"  # user attributes of a trial


def write_results(study: optuna.Study, folder: Path, metric: str) -> None:
    """Write `optimization_results.json` into the sweep folder, atomically."""
    best = best_trial(study)
    states = Counter(trial.state.name.lower() for trial in study.get_trials(deepcopy=False))
    results: dict[str, Any] = {
        "study_name": study.study_name,
        "metric": metric,
        "direction": study.direction.name.lower(),
        "num_trials": dict(sorted(states.items())),
        "best_value": None,
        "best_params": None,
        "best_trial": None,
        "best_run_dir": None,
    }
    if best is not None:
        assert best.value is not None
        results["best_value"] = best.value if math.isfinite(best.value) else str(best.value)
        results["best_params"] = best.params
        results["best_trial"] = best.number
        results["best_run_dir"] = best.user_attrs[RUN_DIR]
    write_json(folder / "optimization_results.json", results)


def best_trial(study: optuna.Study) -> FrozenTrial | None:
    """Return the complete trial with the best value; None before there is one."""
    if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
        return None
    return study.best_trial


def describe_best(study: optuna.Study, folder: Path, metric: str) -> str:
    """Say which trial is the best: value, run folder and parameters."""
    best = best_trial(study)
    if best is None:
        return "best: no trial is complete"
    values = " ".join(f"{name}={value}" for name, value in best.params.items())
    return f"best: trial {best.number}, {metric} {best.value:.6g}, {folder / best.user_attrs[RUN_DIR]}\n  {values}"
