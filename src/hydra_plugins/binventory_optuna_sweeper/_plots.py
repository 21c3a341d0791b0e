"""`optuna.html`: what a search found, as one page that needs no network."""

from __future__ import annotations

import html
import math
from pathlib import Path
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna.trial import FrozenTrial, TrialState
from plotly.offline import get_plotlyjs

from binventory.files import write_text
from hydra_plugins.binventory_optuna_sweeper._results import ERROR, RUN_DIR, best_trial

MIN_IMPORTANCES = 10  # different values; below that chance decides
MARGIN = {"l": 60, "r": 20, "t": 24, "b": 50}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem }
p { margin: .3rem 0; color: #52606d } table { border-collapse: collapse; width: 100%; font-size: .85rem }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #e4e7eb; font-variant-numeric: tabular-nums }
.best td { background: #e3f8ef; font-weight: 600 } .scroll { overflow-x: auto }
td:last-child { min-width: 14rem } td:not(:last-child) { white-space: nowrap }
code { background: #f5f7fa; padding: .1rem .3rem; border-radius: 3px }
"""


def write_page(study: optuna.Study, path: Path, metric: str) -> None:
    """Write the page of a study.

    Args:
        study: with any number of trials.
        path: of the page; written atomically, about 5 MB, most of it plotly.js.
        metric: what the values are.
    """
    parts = [_head(study, metric)]
    for title, explanation, figure in _figures(study, metric):
        plot = figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False})
        parts.append(f"<h2>{title}</h2><p>{html.escape(explanation)}</p><div class=scroll>{plot}</div>")
    parts.append(_table(study, metric))
    name = html.escape(study.study_name)
    write_text(
        path,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Search {name}</title>'
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body>{''.join(parts)}</body></html>\n",
    )


def _figures(study: optuna.Study, metric: str) -> list[tuple[str, str, go.Figure]]:
    """Return title, explanation and figure of what the trials so far allow to be drawn."""
    show = optuna.visualization
    trials = study.get_trials(deepcopy=False)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        return []
    history = show.plot_optimization_history(study, target_name=metric)
    history.update_traces(line_shape="hv", selector={"mode": "lines"})
    figures = [("History", "The value of each complete trial, and the best so far.", history, 380)]
    if len({trial.value for trial in complete if math.isfinite(trial.values[0])}) >= MIN_IMPORTANCES:
        said = (
            "How much the values of each parameter differ between the best tenth of the trials and all of them"
            f" (PED-ANOVA, {len(complete)} complete trials)."
        )
        figures.append(("Importances", said, show.plot_param_importances(study, target_name=metric), 300))
    if names := {name for trial in complete for name in trial.params}:
        slices = _unquoted(show.plot_slice(study, target_name=metric))
        slices.update_layout(width=max(1060, 210 * len(names)))
        figures.append(("Slices", f"{metric} against each parameter; darker trials came later.", slices, 380))
    if any(trial.intermediate_values for trial in trials):
        epochs = show.plot_intermediate_values(study)
        epochs.update_layout(xaxis_title="epoch", yaxis_title=metric)
        figures.append(
            ("Epochs", f"{metric} of each trial after each epoch; where one ends, it was stopped.", epochs, 380)
        )
    for _, _, figure, height in figures:
        figure.update_layout(template="plotly_white", title=None, height=height, margin=MARGIN)
    return [(title, explanation, figure) for title, explanation, figure, _ in figures]


def _unquoted(figure: go.Figure) -> go.Figure:
    """Optuna writes a choice as Python does: 'resnet18'; here it is as on the command line."""
    for trace in figure.data:
        trace.x = [value.strip("'") if isinstance(value, str) else value for value in trace.x]
    for axis in figure.select_xaxes():
        if axis.categoryarray:
            axis.categoryarray = [str(value).strip("'") for value in axis.categoryarray]
    return figure


def _head(study: optuna.Study, metric: str) -> str:
    trials = study.get_trials(deepcopy=False)
    counts = ", ".join(
        f"{count} {_state(state)}" for state in TrialState if (count := sum(t.state == state for t in trials))
    )
    best = best_trial(study)
    found = "No trial is complete yet."
    if best is not None:
        values = " ".join(
            f"<code>{html.escape(f'{name}={_shown(value)}')}</code>" for name, value in best.params.items()
        )
        found = (
            f"Best: trial {best.number}, {html.escape(metric)} {best.value:.6g},"
            f" run folder <code>{html.escape(best.user_attrs[RUN_DIR])}</code><br>{values}"
        )
    return (
        f"<h1>Hyperparameter search {html.escape(study.study_name)}</h1>"
        f"<p>{html.escape(metric)}, {study.direction.name.lower()}d; {len(trials)} trials: {counts}.</p><p>{found}</p>"
    )


def _table(study: optuna.Study, metric: str) -> str:
    names = sorted({name for trial in study.get_trials(deepcopy=False) for name in trial.params})
    titles = ["trial", "state", metric, *names, "run folder", "note"]
    head = "".join(f"<th>{html.escape(title)}</th>" for title in titles)
    best = best_trial(study)
    rows = []
    for trial in study.get_trials(deepcopy=False):
        cells = "".join(f"<td>{html.escape(cell)}</td>" for cell in _cells(trial, names))
        is_best = best is not None and trial.number == best.number
        rows.append(f"<tr{' class=best' if is_best else ''}>{cells}</tr>")
    return f"<h2>Trials</h2><div class=scroll><table><tr>{head}</tr>{''.join(rows)}</table></div>"


def _cells(trial: FrozenTrial, names: list[str]) -> list[str]:
    value = "" if trial.value is None else _shown(trial.value)
    params = [_shown(trial.params[name]) if name in trial.params else "" for name in names]
    attrs = trial.user_attrs
    note = str(attrs.get(ERROR, "")).splitlines()
    return [str(trial.number), _state(trial.state), value, *params, attrs.get(RUN_DIR, ""), *(note[-1:] or [""])]


def _state(state: TrialState) -> str:
    return "failed" if state == TrialState.FAIL else state.name.lower()


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
