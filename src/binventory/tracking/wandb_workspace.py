"""The saved view and the report that a W&B project is looked at through: which run is best, and why.

Needs the package wandb-workspaces. What it shows goes by the names under which runs are logged: `epoch` is the x axis,
`test/confusion_matrix` and `test/per_count` are charts whose data lie in tables of these names with `_table` behind.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import wandb
from wandb.sdk.lib.service.service_connection import WandbApiFailedError
from wandb_workspaces import expr
from wandb_workspaces.reports.v2 import interface as wr  # the package re-exports it in a way that mypy cannot follow
from wandb_workspaces.workspaces import interface as ws

from binventory.config.capture import one_line
from binventory.errors import ConfigError
from binventory.tracking.wandb_key import has_key

TIMEOUT_S = 10.0
PANELS_PER_ROW = 3
FULL_WIDTH = 24  # of a report, in units of its grid; a panel is 8 by 6 of them unless it says otherwise

COLUMNS = [
    "run:displayName", "summary:test/accuracy", "summary:test/rmse", "summary:val/accuracy", "summary:best_epoch",
    "run:state", "config:model.value.name", "config:optimizer.value.lr", "config:data.value.batch_size",
    "config:seed.value",
]  # fmt: skip

INTRODUCTION = (
    "Runs of `train.py logger=wandb`, the best on the test photos first; a sweep is a group. Figures"
    " under val/ are of the validation photos after each epoch: the best epoch, and every sweep, goes by them. Figures"
    " under test/ are of that epoch, taken once. Accuracies are fractions; rmse is of the most probable count."
)
EXPLANATIONS = {
    "Headline": "Learning curves by epoch, the test figures as bars, and below them the values in which runs differ.",
    "Sweeps": "Each line is a run: from its learning rate, network and batch size to the validation accuracy it"
    " reached. Then how much each setting mattered over all runs shown, and the learning rate by itself.",
    "Errors": "Which counts are taken for which, how accurate each count is, and the photos to look at first: those the"
    " model got most wrong, and those it was least certain of.",
    "Speed": "Photos per second in training, the seconds that training took, and what accuracy they bought.",
}


def save_workspace(project: str, entity: str | None, name: str, *, with_report: bool) -> list[str]:
    """Save a new view of a project, and a report on it.

    Args:
        project: W&B project; it must be there.
        entity: whose project; None: the default one of the account.
        name: what both are called.
        with_report: whether there is to be a report.

    Returns:
        Their URLs, the view's first.

    Raises:
        ConfigError: there is no key or no such project, W&B takes no such name, or the server cannot be reached or
            refuses.
    """
    base_url = _configure_client()
    with _explained(base_url):
        api = wandb.Api()
        owner = entity or api.default_entity
        if owner is None:
            raise ConfigError(f"--entity: the account at {base_url} has no default one; name a team or user")
        if not any(known.name == project for known in api.projects(owner)):
            raise ConfigError(
                f"--project {project}: {owner} has no such project at {base_url};"
                " train with logger=wandb first, or name another --project or --entity"
            )
        try:
            made: list[Any] = [make_view(project, owner, name)]
            if with_report:
                made.append(make_report(project, owner, name))
        except ValueError as error:  # the library checks what it is given
            raise ConfigError(f"--name {name}: W&B takes at most 128 characters, and no emoji") from error
        return [str(page.save().url) for page in made]


def make_view(project: str, entity: str, name: str) -> ws.Workspace:
    """Return the view, not saved yet: a section for each question, the runs beside them sorted."""
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[
            ws.Section(
                name=title,
                panels=panels,
                is_open=True,
                pinned=title == "Headline",
                layout_settings=ws.SectionLayoutSettings(
                    columns=PANELS_PER_ROW, rows=-(-len(panels) // PANELS_PER_ROW)
                ),
                panel_settings=ws.SectionPanelSettings(x_axis="epoch"),
            )
            for title, panels in make_panels().items()
        ],
        settings=ws.WorkspaceSettings(x_axis="epoch", max_runs=50),
        runset_settings=ws.RunsetSettings(
            order=[expr.Ordering(expr.Summary("test/accuracy"), ascending=False)],
            pinned_columns=COLUMNS,
        ),
    )


def make_report(project: str, entity: str, name: str) -> wr.Report:
    """Return the report, not saved yet: the sections of the view, each with what it says."""
    blocks: list[Any] = [wr.P(text=INTRODUCTION)]
    for title, panels in make_panels().items():
        runs = wr.Runset(
            entity=entity,
            project=project,
            name="Runs, best first",
            order=[wr.OrderBy(wr.SummaryMetric("test/accuracy"), ascending=False)],
            pinned_columns=COLUMNS,
        )
        blocks += [wr.H1(text=title), wr.P(text=EXPLANATIONS[title]), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(
        project=project, entity=entity, title=name, description="Which run is best, and why.", blocks=blocks
    )


def make_panels() -> dict[str, list[Any]]:
    """Return new panels by the title of their section."""
    lr, network = wr.Config("optimizer.lr"), wr.Config("model.name")
    batch_size, accuracy = wr.Config("data.batch_size"), wr.SummaryMetric("val/accuracy")
    coordinates = [
        wr.ParallelCoordinatesPlotColumn(metric=lr, display_name="optimizer.lr", log=True),
        wr.ParallelCoordinatesPlotColumn(metric=network, display_name="model.name"),
        wr.ParallelCoordinatesPlotColumn(metric=batch_size, display_name="data.batch_size"),
        wr.ParallelCoordinatesPlotColumn(metric=accuracy, display_name="val/accuracy"),
    ]
    return {
        "Headline": [
            wr.LinePlot(title="Validation accuracy", x="epoch", y=["val/accuracy"]),
            wr.LinePlot(title="Validation RMSE (items)", x="epoch", y=["val/rmse"]),
            wr.LinePlot(title="Loss", x="epoch", y=["val/loss", "train/loss"]),
            wr.BarPlot(title="Test accuracy", metrics=["test/accuracy"]),
            wr.BarPlot(title="Test RMSE (items)", metrics=["test/rmse"]),
            wr.RunComparer(diff_only="split"),
        ],
        "Sweeps": [
            wr.ParallelCoordinatesPlot(title="What led to which validation accuracy", columns=coordinates),
            wr.ParameterImportancePlot(with_respect_to="val/accuracy"),
            wr.ScatterPlot(title="Learning rate", x=lr, y=accuracy, log_x=True),
        ],
        "Errors": [
            _chart("test/confusion_matrix", "wandb/confusion_matrix/v1", ["Actual", "Predicted", "nPredictions"],
                   title="Test: recorded and predicted counts"),
            _chart("test/per_count", "wandb/bar/v0", {"label": "count", "value": "accuracy"},
                   title="Test accuracy per count"),
            wr.WeavePanelSummaryTable(table_name="test/photos", layout=wr.Layout(w=FULL_WIDTH, h=12)),
        ],
        "Speed": [
            wr.BarPlot(title="Training images per second", metrics=["images_per_second"]),
            wr.BarPlot(title="Training time (s)", metrics=["train_seconds"]),
            wr.ScatterPlot(
                title="Accuracy for time", x=wr.SummaryMetric("train_seconds"), y=wr.SummaryMetric("test/accuracy")
            ),
        ],
    }  # fmt: skip


def _chart(key: str, preset: str, fields: list[str] | dict[str, str], *, title: str) -> wr.CustomChart:
    """Return the panel of a chart that a run logged under `key` by one of W&B's own presets."""
    return wr.CustomChart(
        query={"id": {}, "name": {}, "_defaultColorIndex": {}, "summaryTable": {"tableKey": f"{key}_table"}},
        chart_name=preset,
        chart_fields=fields if isinstance(fields, dict) else {field: field for field in fields},
        chart_strings={"title": title},
    )


def _configure_client() -> str:
    """Keep the client quiet, and see that it has a key, so that it need not ask for one; return the server's URL."""
    settings = wandb.setup(wandb.Settings(silent=True)).settings
    base_url = str(settings.base_url)
    if not has_key():
        raise ConfigError(f"there is no key for {base_url}; set WANDB_API_KEY, or run `wandb login`")
    try:  # the client itself would try for 20 s and not say what was wrong
        urllib.request.urlopen(base_url, timeout=TIMEOUT_S).close()  # noqa: S310  the user's own server
    except urllib.error.HTTPError:
        pass  # it answers
    except OSError as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise ConfigError(f"WANDB_BASE_URL={base_url}: cannot be reached ({one_line(str(reason))})") from error
    return base_url


@contextmanager
def _explained(base_url: str) -> Iterator[None]:
    """Make one line of what the server refuses."""
    try:
        yield
    except (wandb.errors.Error, WandbApiFailedError) as error:
        raise ConfigError(
            f"{base_url}: {one_line(str(error))}; are WANDB_API_KEY (or `wandb login`) and --entity right?"
        ) from error
