"""`binventory wandb workspace` saves a view and a report that show what the runs logged."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb
from typer.testing import CliRunner

from binventory.cli import app
from tests.wandb.server import API_KEY, ENTITY, SeenView, WandbServer, stop_client

BINVENTORY = str(Path(sys.executable).with_name("binventory"))
PER_COUNT = {"1": {"accuracy": 0.5}, "2": {"accuracy": 1.0}}
ROWS = [
    {"id": "01000", "quantity": 1, "predicted": 2, "expected": 1.6, "p_1": 0.4, "p_2": 0.6, "error": None},
    {"id": "1000", "quantity": 2, "predicted": 2, "expected": 1.9, "p_1": 0.1, "p_2": 0.9, "error": None},
]
# What the library asks a server for while it saves these two, and nothing more
OPERATIONS = {
    "Viewer", "GetDefaultEntity", "GetProjects", "ProjectInternalId", "UpsertView2", "upsertView",
}  # fmt: skip


def command(*arguments: str) -> tuple[int, list[str], str]:
    """Run the command in this process; return its exit code, the lines of stdout, and stderr."""
    result = CliRunner().invoke(app, ["wandb", "workspace", *arguments], catch_exceptions=False)
    return result.exit_code, result.stdout.splitlines(), result.stderr


def refused(*arguments: str) -> str:
    """The one line with which the command refuses."""
    exit_code, stdout, stderr = command(*arguments)
    assert (exit_code, stdout) == (2, [])
    assert stderr.startswith("error: ")
    assert stderr.count("\n") == 1
    return stderr


def saved(server: WandbServer, kind: str) -> SeenView:
    (view,) = (view for view in server.views.values() if view.type == kind)
    return view


def panels_of_view(view: SeenView) -> dict[str, list[dict[str, Any]]]:
    return {section["name"]: section["panels"] for section in view.spec["section"]["panelBankConfig"]["sections"]}


def panels_of_report(report: SeenView) -> dict[str, list[dict[str, Any]]]:
    """Panels by the heading above them."""
    headings = [b["children"][0]["text"] for b in report.spec["blocks"] if b["type"] == "heading"]
    grids = [b["metadata"] for b in report.spec["blocks"] if b["type"] == "panel-grid"]
    return {
        heading: grid["panelBankSectionConfig"]["panels"] for heading, grid in zip(headings, grids, strict=True)
    }  # fmt: skip


def shown(panels: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """What each panel shows: its kind, its x axis, its metrics."""
    described: list[tuple[Any, ...]] = []
    for panel in panels:
        config = panel["config"]
        columns = [column["accessor"] for column in config.get("columns", [])]
        found = (config.get("metrics"), columns, config.get("yAxis"), config.get("targetKey"))
        described.append((panel["viewType"], config.get("xAxis"), next(filter(None, found), None)))
    return described


EXPECTED: dict[str, list[tuple[Any, ...]]] = {
    "Headline": [
        ("Run History Line Plot", "epoch", ["val/accuracy"]),
        ("Run History Line Plot", "epoch", ["val/rmse"]),
        ("Run History Line Plot", "epoch", ["val/loss", "train/loss"]),
        ("Bar Chart", None, ["test/accuracy"]),
        ("Bar Chart", None, ["test/rmse"]),
        ("Run Comparer", None, None),
    ],
    "Sweeps": [
        ("Parallel Coordinates Plot", None, ["config:optimizer.value.lr", "config:model.value.name",
                                             "config:data.value.batch_size", "summary:val/accuracy"]),
        ("Parameter Importance", None, "val/accuracy"),
        ("Scatter Plot", "config:optimizer.value.lr", "summary:val/accuracy"),
    ],
    "Errors": [("Vega2", None, None), ("Vega2", None, None), ("Weave", None, None)],
    "Speed": [
        ("Bar Chart", None, ["images_per_second"]),
        ("Bar Chart", None, ["train_seconds"]),
        ("Scatter Plot", "summary:train_seconds", "summary:test/accuracy"),
    ],
}  # fmt: skip


def test_the_view_and_the_report_that_are_saved(wandb_server: WandbServer) -> None:
    wandb_server.add_project(ENTITY, "bins")
    exit_code, stdout, stderr = command("--project", "bins", "--name", "July")
    assert (exit_code, stderr) == (0, "")
    view, report = saved(wandb_server, "project-view"), saved(wandb_server, "runs")
    for page, panels in ((view, panels_of_view(view)), (report, panels_of_report(report))):
        assert (page.entity, page.project, page.display_name) == (ENTITY, "bins", "July")
        assert {title: shown(section) for title, section in panels.items()} == EXPECTED
        photos = panels["Errors"][2]["config"]["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"]
        assert photos == "test/photos"
    sections = view.spec["section"]["panelBankConfig"]["sections"]
    assert all(section["isOpen"] and section["localPanelSettings"]["xAxis"] == "epoch" for section in sections)
    for runs in (view.spec["section"]["runSets"][0], *report_run_sets(report)):
        assert runs["grouping"] == [], "runs without a sweep would come to one"
        assert runs["sort"]["keys"] == [{"key": {"section": "summary", "name": "test/accuracy"}, "ascending": False}]
        assert runs["runFeed"]["columnOrder"][:3] == ["run:displayName", "summary:test/accuracy", "summary:test/rmse"]
        assert runs["runFeed"]["columnPinned"]["config:optimizer.value.lr"] is True
    assert "text" in report.spec["blocks"][1]["children"][0]
    assert set(wandb_server.requests) == OPERATIONS
    assert wandb_server.unknown == []
    check_the_library_reads_them(stdout)


def report_run_sets(report: SeenView) -> list[dict[str, Any]]:
    grids = [block["metadata"] for block in report.spec["blocks"] if block["type"] == "panel-grid"]
    assert all(grid["runSets"][0]["project"]["name"] == "bins" for grid in grids)
    for grid in grids:
        places = [panel["layout"] for panel in grid["panelBankSectionConfig"]["panels"]]
        taken = [(p["x"] + x, p["y"] + y) for p in places for x in range(p["w"]) for y in range(p["h"])]
        assert len(taken) == len(set(taken)), "no panel lies on another"
        assert max(x for x, _ in taken) < 24
    assert grids[2]["panelBankSectionConfig"]["panels"][2]["layout"]["w"] == 24, "the photos have room"
    return [grid["runSets"][0] for grid in grids]


def check_the_library_reads_them(stdout: list[str]) -> None:
    """The URLs that were printed lead to what was saved."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    assert [line.split(": ")[0] for line in stdout] == ["view", "report"]
    view_url, report_url = (line.split(": ", 1)[1] for line in stdout)
    view: Any = ws.Workspace.from_url(view_url)
    assert (view.entity, view.project, view.name) == (ENTITY, "bins", "July")
    assert [section.name for section in view.sections] == list(EXPECTED)
    assert view.settings.x_axis == "epoch"
    report: Any = wr.Report.from_url(report_url)
    assert report.title == "July"
    grids = [block for block in report.blocks if isinstance(block, wr.PanelGrid)]
    assert [len(grid.panels) for grid in grids] == [len(panels) for panels in EXPECTED.values()]


def test_the_charts_are_those_that_runs_log(wandb_server: WandbServer) -> None:
    from binventory.data.preprocess import Preprocessing
    from binventory.tracking.wandb_media import test_media as media_of_test_set

    with wandb.init(project="bins", settings=wandb.Settings(silent=True, console="off")) as run:
        run.log(media_of_test_set(ROWS, ["", ""], PER_COUNT, 0, Preprocessing(224)))
    logged = wandb_server.runs[run.id].internal["visualize"]
    command("--project", "bins", "--no-report")
    panels = panels_of_view(saved(wandb_server, "project-view"))["Errors"]
    for key, panel in zip(("test/confusion_matrix", "test/per_count"), panels, strict=False):
        assert (panel["viewType"], summary_of(panel["config"])) == ("Vega2", summary_of(logged[key]["panel_config"]))
        assert f"{key}_table" in wandb_server.runs[run.id].summary


def summary_of(chart: dict[str, Any]) -> tuple[Any, ...]:
    """A chart's preset, its title, what it takes for what, and the table that it is drawn from."""
    fields = chart["userQuery"]["queryFields"][0]["fields"]
    table = next(field["args"] for field in fields if field["name"] == "summaryTable")
    asked = sorted(field["name"] for field in fields)
    return chart["panelDefId"], chart["stringSettings"], chart["fieldSettings"], table, asked


def test_a_view_alone_in_a_project_of_a_team(wandb_server: WandbServer) -> None:
    wandb_server.add_project("team", "binventory")
    exit_code, stdout, _ = command("--entity", "team", "--no-report")
    assert exit_code == 0
    assert len(stdout) == 1
    assert stdout[0].startswith(f"view: {wandb_server.url}/team/binventory?nw=")
    (view,) = wandb_server.views.values()
    assert (view.type, view.entity, view.project) == ("project-view", "team", "binventory")


def test_a_project_that_is_not_there(wandb_server: WandbServer) -> None:
    said = refused("--project", "bin")
    assert "--project bin: " in said
    assert ENTITY in said
    assert wandb_server.url in said
    assert wandb_server.views == {}


def test_an_account_without_a_default_entity(wandb_server: WandbServer) -> None:
    wandb_server.default_entity = None
    assert "--entity: " in refused()


@pytest.mark.parametrize("name", ["July \N{PARTY POPPER}", "x" * 129])
def test_a_name_that_the_library_does_not_take(wandb_server: WandbServer, name: str) -> None:
    wandb_server.add_project(ENTITY, "binventory")
    assert f"--name {name}: " in refused("--name", name)
    assert wandb_server.views == {}


def test_no_key_is_one_line_and_no_question(wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", os.devnull)
    leader, terminal = os.openpty()  # the client asks where it has somebody to ask
    done = subprocess.run(
        [BINVENTORY, "wandb", "workspace"], stdin=terminal, stdout=terminal, stderr=terminal, timeout=30, check=False
    )
    said = os.read(leader, 10_000).decode()
    os.close(terminal)
    os.close(leader)
    assert done.returncode == 2
    assert said.count("\n") == 1
    assert said.startswith(f"error: there is no key for {wandb_server.url}; set WANDB_API_KEY, or run `wandb login`")
    assert wandb_server.requests == []


def test_a_key_that_cannot_be_one(wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "short")
    said = refused()
    assert "WANDB_API_KEY" in said
    assert "wandb login" in said
    assert wandb_server.requests == []


def test_a_key_of_wandb_login(wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    host = wandb_server.url.removeprefix("http://")
    netrc = tmp_path / "netrc"
    netrc.write_text(f"machine {host}\n  login user\n  password {API_KEY}\n")
    netrc.chmod(0o600)
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(netrc))
    wandb_server.add_project(ENTITY, "binventory")
    assert command("--no-report")[0] == 0
    netrc.write_text(f"machine {host}\n  login user\n  password short\n")
    stop_client()
    assert "wandb login" in refused()


def test_a_server_that_refuses_the_key(wandb_server: WandbServer) -> None:
    wandb_server.refuse_with = 401
    said = refused()
    assert wandb_server.url in said
    assert "refused by the test" in said
    assert "WANDB_API_KEY" in said


def test_a_server_that_refuses_the_view(wandb_server: WandbServer) -> None:
    wandb_server.add_project(ENTITY, "binventory")
    wandb_server.errors["UpsertView2"] = "permission denied"
    said = refused()
    assert wandb_server.url in said
    assert "permission denied" in said


def test_a_server_that_is_not_there(wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("WANDB_BASE_URL", url := f"http://127.0.0.1:{free.getsockname()[1]}")
        stop_client()
        said = refused()
    assert f"WANDB_BASE_URL={url}: cannot be reached" in said
    assert "refused" in said


@pytest.mark.parametrize("package", ["wandb", "wandb_workspaces"])
def test_a_package_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.delitem(sys.modules, "binventory.tracking.wandb_workspace", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    said = refused()
    assert f"{package} is not installed; pip install 'binventory[wandb]'" in said
