"""`binventory compare` as a user runs it: what it finds, what it tells apart, what it says of broken runs."""

from __future__ import annotations

import csv
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from binventory.cli import app
from binventory.compare.find import find_runs
from binventory.compare.page import best_runs
from binventory.compare.table import compare
from binventory.errors import ConfigError
from binventory.files import write_json
from tests.compare.folders import make_run, predictions_of, write_state

QUANTITIES = [1, 2, 3, 4, 5, 1, 2, 3, 4, 5]


def right(number: int) -> list[dict[str, Any]]:
    """Predictions of which so many are right and the others one too few or one too many."""
    off = [count - 1 if count == 5 else count + 1 for count in QUANTITIES]
    return predictions_of(QUANTITIES, [*QUANTITIES[:number], *off[number:]])


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)], env={"COLUMNS": "200"})


def refused(*arguments: object) -> str:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")
    assert result.stdout == ""
    return result.stderr


@pytest.fixture
def outputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two trainings, and a sweep of three jobs: done, without a folder yet, killed before it wrote a status."""
    monkeypatch.chdir(tmp_path)
    train, sweep = tmp_path / "outputs" / "train", tmp_path / "outputs" / "sweeps" / "2026-11-22_12-00-00-51ee"
    make_run(train / "2026-11-22_10-00-00-a1b2", right(6))
    make_run(train / "2026-11-22_11-00-00-a1c3", right(8), config={"optimizer": {"lr": 0.5}})
    make_run(sweep / "0", right(4), config={"seed": 1})
    (sweep / "2").mkdir()
    job = {"overrides": [], "exit_code": None, "value": None, "metrics": {}, "started": None, "ended": None}
    jobs = [
        {**job, "job": 0, "state": "done", "run_dir": "0", "error": None},
        {**job, "job": 1, "state": "queued", "run_dir": None, "error": None},
        {**job, "job": 2, "state": "failed", "run_dir": "2", "error": "killed by SIGKILL"},
    ]
    head = {"version": 1, "task": "train", "overrides": [], "started": "2026-11-22T12:00:00+00:00"}
    write_json(sweep / "sweep.json", {**head, "jobs": jobs})
    return tmp_path / "outputs"


@pytest.mark.parametrize(
    ("places", "names"),
    [
        (["outputs/train/2026-11-22_10-00-00-a1b2"], ["a1b2"]),
        (["outputs/train"], ["a1b2", "a1c3"]),
        (["outputs"], ["/0", "/1", "/2", "a1b2", "a1c3"]),
        (["outputs/sweeps/2026-11-22_12-00-00-51ee"], ["/0", "/1", "/2"]),
        (["outputs/sweeps/2026-11-22_12-00-00-51ee/0"], ["/0"]),
        (["outputs/train/*-a1?3"], ["a1c3"]),
        (["*-a1?3"], ["a1c3"]),
        (["a1b2"], ["a1b2"]),
        (["a1"], ["a1b2", "a1c3"]),
        (["51"], ["/0", "/1", "/2"]),
        (["2026-11-22_11"], ["a1c3"]),
        (["a1c3", "outputs/train", "a1b2"], ["a1c3", "a1b2"]),
    ],
)
def test_runs_are_found_by_folder_sweep_glob_and_id(outputs: Path, places: list[str], names: list[str]) -> None:
    found = [run.name for run in find_runs(places)]
    assert len(found) == len(names)
    assert all(name.endswith(end) for name, end in zip(found, names, strict=True)), found


def test_what_lies_inside_of_a_run_or_hidden_is_no_run(outputs: Path) -> None:
    make_run(outputs / "train" / "2026-11-22_10-00-00-a1b2" / "inner", right(6))
    make_run(outputs / "train" / ".hidden", right(6))
    assert len(find_runs(["outputs/train"])) == 2


def test_places_without_runs_are_refused_in_one_line(outputs: Path) -> None:
    (outputs / "empty").mkdir()
    assert "outputs/empty: holds no run" in refused("outputs/empty")
    assert "ffff: no such folder" in refused("a1b2", "ffff")
    assert "is an empty path" in refused("")
    assert "no such folder" in refused("nothing/*")
    assert "a file; name the run folder, e.g. outputs/train/" in refused(
        "outputs/train/2026-11-22_10-00-00-a1b2/metrics.json"
    )
    assert "did you mean test/accuracy?" in refused("outputs", "--metric", "test/acuracy")
    assert "--csv /proc/none/x.csv: cannot be written" in invoke("outputs", "--csv", "/proc/none/x.csv").stderr


def test_jobs_of_a_sweep_are_rows_whatever_became_of_them(outputs: Path) -> None:
    runs = {run.name[-2:]: run for run in find_runs(["51ee"])}
    assert {name: run.state for name, run in runs.items()} == {"/0": "done", "/1": "queued", "/2": "failed"}
    assert runs["/2"].problem == "killed by SIGKILL"
    sweep = outputs / "sweeps" / "2026-11-22_12-00-00-51ee"
    (sweep / "2" / "config.yaml").write_text("seed: 3\n")
    assert [run.state for run in find_runs(["51ee"])] == ["done", "queued", "failed"]
    write_state(sweep / "2", "failed", {"type": "ValueError", "message": "bad\nluck", "traceback": ""})
    make_run(sweep / "10", right(1))
    make_run(sweep / "9", right(1))
    known = ["/0", "/1", "/2", "/9", "/10"]
    assert [run.name.removeprefix(sweep.name) for run in find_runs(["51ee"])] == known
    assert "ValueError: bad luck" in str(find_runs(["51ee"])[2].problem)
    (sweep / "sweep.json").write_text("{")
    assert [run.name.removeprefix(sweep.name) for run in find_runs(["51ee"])] == ["/0", "/2", "/9", "/10"]


BROKEN_FILES = [
    ("status.json", "{", "broken"), ("status.json", "[]", "broken"), ("status.json", "{}", "broken"),
    ("status.json", '{"state": ["done"]}', "broken"), ("status.json", '{"state": "well"}', "broken"),
    ("status.json", '{"state": "failed", "error": 3}', "failed"), ("status.json", None, "broken"),
    ("metrics.json", "{", "done"), ("metrics.json", "[1]", "done"), ("metrics.json", None, "done"),
    ("metrics.json", "[" * 100_000, "done"), ("provenance.json", '"x"', "done"), ("provenance.json", None, "done"),
    ("config.yaml", "a: [", "done"), ("config.yaml", "- 1", "done"), ("config.yaml", "a: ${oc.env:HOME}", "done"),
    ("config.yaml", None, "done"), ("predictions.csv", "x", "done"), ("predictions.csv", None, "done"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "state"), BROKEN_FILES)
def test_a_broken_run_is_a_row_with_its_state_and_problem(
    tmp_path: Path, name: str, content: str | None, state: str
) -> None:
    make_run(tmp_path / "good", right(6))
    bad = make_run(tmp_path / "bad", right(8))
    (bad / name).unlink()
    if content is not None:
        (bad / name).write_text(content)
    comparison = compare([str(tmp_path)], "test/accuracy")
    run = next(run for run in comparison.runs if run.name == "bad")
    assert run.state == state
    assert run.problem
    assert "\n" not in run.problem
    said = invoke(tmp_path, "--csv", tmp_path / "t.csv", "--markdown", tmp_path / "t.md").stdout
    assert f"bad: {state}: " in said
    if name == "metrics.json":
        assert "test/accuracy" not in run.figures


def test_figures_that_are_no_numbers_are_none(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", right(6))
    odd = '{"test": {"accuracy": NaN, "rmse": "1", "mae": true, "ece": 1e999, "x": %s, "loss": 0.5}, "val": [1]}'
    (run / "metrics.json").write_text(odd % ("9" * 400))
    (found,) = find_runs([str(run)])
    assert found.figures == {"test/loss": 0.5}


def test_a_running_run_that_no_process_writes_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", right(6))
    write_state(run, "running")
    (found,) = find_runs([str(run)])
    assert (found.state, found.problem) == ("running", "no process on this machine writes it")


def test_only_what_differs_in_the_configs_is_shown(tmp_path: Path) -> None:
    make_run(tmp_path / "a", right(6))
    make_run(tmp_path / "b", right(7), config={"optimizer": {"lr": 0.10, "momentum": 0.9}})
    make_run(tmp_path / "c", right(8), config={"data": {"counts": [1, 2], "batch_size": 32}})
    comparison = compare([str(tmp_path)], "test/accuracy")
    assert set(comparison.differing) == {"optimizer.momentum", "data.counts"}
    other = make_run(tmp_path / "d", right(5), config={"source": "elsewhere"})
    write_state(other, "done", task="binventory.tasks.evaluate:run")
    assert set(compare([str(tmp_path)], "test/accuracy").differing) == {"optimizer.momentum", "data.counts"}


SYNTHETIC = {"_target_": "binventory.data.sources.synthetic.SyntheticSource", "num_bins": 240, "photo_size": 96}
TABLE = {"_target_": "binventory.data.sources.table.TableSource"}


def over_sources(folder: Path) -> None:
    """Four jobs that differ in source, learning rate and seed, and in keys that hang on the source."""
    for job, (reader, lr, seed) in enumerate(
        [(SYNTHETIC, 0.1, 0), (SYNTHETIC | {"num_bins": 480}, 0.1, 1), (TABLE, 0.2, 0), (TABLE, 0.2, 1)]
    ):
        data = {"reader": reader, "source": f"source{job // 2}", "split": ["grouped", "report"][job // 2]}
        config = {"data": data, "optimizer": {"lr": lr}, "seed": seed, "paths": {"output_dir": f"out{job}"}}
        varied = [f"seed={seed}", f"optimizer.lr={lr}", "trainer.max_epochs=3"]
        make_run(folder / f"job{job}", right(5), config=config, provenance={"overrides": varied})


def test_each_key_that_differs_is_a_column_and_what_was_varied_comes_first(tmp_path: Path) -> None:
    over_sources(tmp_path / "runs")
    columns = ["seed", "optimizer.lr", "data.source", "data.reader", "data.split", "paths.output_dir"]
    result = invoke(tmp_path / "runs", "--csv", tmp_path / "t.csv", "--markdown", tmp_path / "t.md")
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert [name.removeprefix("config.") for name in rows[0] if name.startswith("config.")] == columns
    assert {row["run"]: row["config.data.reader"] for row in rows} == {
        "job0": "SyntheticSource num_bins=240", "job1": "SyntheticSource num_bins=480",
        "job2": "TableSource", "job3": "TableSource",
    }  # fmt: skip
    header = (tmp_path / "t.md").read_text().splitlines()[2]
    assert header.replace("\\", "").split(" | ")[2:8] == columns
    narrow = CliRunner().invoke(app, ["compare", str(tmp_path / "runs")], env={"COLUMNS": "80"}).stdout
    for said in (result.stdout, narrow):
        shown = [
            cell.strip() for line in said.splitlines() if "run" in line and "┃" in line for cell in line.split("┃")
        ]
        assert [name for name in shown if name in columns] == columns, said
    assert max(map(len, narrow.splitlines())) <= 80


def test_options_of_one_class_and_of_many_are_told_apart(tmp_path: Path) -> None:
    """A class with an option of its own has it in the class's column, an option of all classes is a column."""
    sgd, adamw = ({"_target_": f"torch.optim.{name}"} for name in ("SGD", "AdamW"))
    for name, optimizer in (
        ("a", sgd | {"lr": 0.1, "momentum": 0.9}), ("b", sgd | {"lr": 0.1, "momentum": 0.5}),
        ("c", adamw | {"lr": 0.2, "betas": [0.9, 0.99]}),
    ):  # fmt: skip
        make_run(tmp_path / "two" / name, right(5), config={"optimizer": optimizer})
        if name != "c":
            make_run(tmp_path / "one" / name, right(5), config={"optimizer": optimizer})
    comparison = compare([str(tmp_path / "two")], "test/accuracy")
    by_name = {column.name: column for column in comparison.columns}
    assert list(by_name) == ["optimizer.lr", "optimizer"]
    assert {run.name: by_name["optimizer"].text(run) for run in comparison.runs} == {
        "a": "SGD momentum=0.9", "b": "SGD momentum=0.5", "c": "AdamW"
    }  # fmt: skip
    alone = compare([str(tmp_path / "one")], "test/accuracy")
    assert [column.name for column in alone.columns] == ["optimizer.momentum"]


def test_the_best_is_one_of_runs_on_the_same_photos(tmp_path: Path) -> None:
    """Validation figures, too: a is better than b, c better than d, on other photos; e says not on which."""
    for name, accuracy in (("a", 0.6), ("b", 0.5), ("c", 0.9), ("d", 0.8), ("e", 0.95)):
        fingerprint = None if name == "e" else ("1" if name in "ab" else "2") * 64
        run = make_run(tmp_path / "runs" / name, right(5), fingerprint=fingerprint)
        figures = json.loads((run / "metrics.json").read_text())
        write_json(run / "metrics.json", {**figures, "val": {"accuracy": accuracy, "num_images": 20}})
    comparison = compare([str(tmp_path / "runs")], "val/accuracy")
    best = {comparison.runs[place].name for place in best_runs(comparison, "val/accuracy")}
    assert best == {"a", "c"}


def test_runs_are_best_first_and_those_without_a_figure_last(tmp_path: Path) -> None:
    for name, number in (("low", 2), ("high", 9), ("middle", 5)):
        make_run(tmp_path / name, right(number))
    stopped = make_run(tmp_path / "stopped", right(10))
    write_state(stopped, "preempted")
    order = ["high", "middle", "low", "stopped"]
    assert [run.name for run in compare([str(tmp_path)], "test/accuracy").runs] == order
    assert [run.name for run in compare([str(tmp_path)], "test/rmse").runs] == order
    with pytest.raises(ConfigError, match="no run has it"):
        compare([str(tmp_path)], "epoch")


def test_seeds_are_averaged_and_nothing_else_is(tmp_path: Path) -> None:
    for seed, number in enumerate((4, 6, 9)):
        make_run(tmp_path / f"slow-{seed}", right(number), config={"seed": seed})
        make_run(tmp_path / f"fast-{seed}", right(2), config={"seed": seed, "optimizer": {"lr": 1.0}})
    again = make_run(tmp_path / "again", right(5), config={"seed": 1}, started="2026-11-23T10:00:00.000+00:00")
    make_run(tmp_path / "other data", right(10), config={"seed": 7}, fingerprint="c" * 64)
    failed = make_run(tmp_path / "failed", right(10), config={"seed": 8})
    write_state(failed, "failed", {"type": "X", "message": "y", "traceback": ""})
    comparison = compare([str(tmp_path)], "test/accuracy")
    groups = {tuple(sorted(comparison.runs[place].name for place in group.runs)): group for group in comparison.groups}
    assert set(groups) == {("again", "slow-0", "slow-2"), ("fast-0", "fast-1", "fast-2"), ("other data",)}
    slow = groups[("again", "slow-0", "slow-2")]
    assert slow.means["test/accuracy"] == pytest.approx((0.4 + 0.5 + 0.9) / 3)
    assert slow.stds["test/accuracy"] == pytest.approx(statistics.stdev([0.4, 0.5, 0.9]))
    assert sorted(slow.seeds) == [0, 1, 2]
    assert not groups[("other data",)].stds
    assert [group.means["test/accuracy"] for group in comparison.groups] == pytest.approx([1.0, 0.6, 0.2])
    assert again.name in {run.name for run in comparison.runs}


def test_runs_of_other_test_sets_are_marked(tmp_path: Path) -> None:
    make_run(tmp_path / "a", right(6))
    make_run(tmp_path / "b", right(7))
    make_run(tmp_path / "c", right(8)[:9])
    result = invoke(tmp_path, "--csv", tmp_path / "t.csv")
    assert "The test sets differ (A of 10 photos, B of 9 photos)" in result.stdout
    assert "2 pairs of runs not compared" in result.stdout
    rows = list(csv.DictReader((tmp_path / "t.csv").open()))
    assert {row["run"]: row["test_set"] for row in rows} == {"a": "A", "b": "A", "c": "B"}
    pairs = list(csv.DictReader((tmp_path / "t.pairs.csv").open()))
    assert [(row["first"], row["second"]) for row in pairs] == [("b", "a")]
    make_run(tmp_path / "d", right(6), fingerprint=None)
    make_run(tmp_path / "e", right(6), fingerprint=None)
    assert "matched by ids and quantities only" in invoke(tmp_path).stdout
    assert "matched by ids and quantities only" not in result.stdout


def test_labels_are_short_where_they_tell_runs_apart(tmp_path: Path) -> None:
    for parent, name in (
        ("x", "2026-11-22_10-00-00-a1b2"),
        ("y", "2026-11-22_11-00-00-a1b2"),
        ("x", "best"),
        ("y", "best"),
    ):
        make_run(tmp_path / parent / name, right(5))
    make_run(tmp_path / "2026-11-22_10-00-00-c0de", right(5))
    labels = set(compare([str(tmp_path)], "test/accuracy").labels)
    assert labels == {
        "c0de", "2026-11-22_10-00-00-a1b2", "2026-11-22_11-00-00-a1b2", f"{tmp_path}/x/best", f"{tmp_path}/y/best"
    }  # fmt: skip


def test_markdown_and_terminal_hold_no_markup_of_others(tmp_path: Path) -> None:
    make_run(tmp_path / "a", right(6), config={"note": "[red]<b>x|y</b>\x1b[2J"})
    make_run(tmp_path / "b", right(7), config={"note": "plain"})
    result = invoke(tmp_path, "--markdown", tmp_path / "t.md")
    assert "[red]<b>x|y</b>\\x1b[2J" in result.stdout
    assert "\x1b" not in result.stdout
    text = (tmp_path / "t.md").read_text()
    assert "\\[red\\]&lt;b&gt;x\\|y&lt;/b&gt;" in text
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in tables[:4]}) == 1


def test_a_device_or_a_pipe_is_written_to_and_not_replaced(tmp_path: Path) -> None:
    make_run(tmp_path / "a", right(6))
    make_run(tmp_path / "b", right(7))
    reader, writer = os.pipe()
    terminal, its_end = os.openpty()
    written = ["--csv", f"/dev/fd/{writer}", "--markdown", os.ttyname(its_end), "--html", tmp_path / "x.html"]
    assert invoke(tmp_path, *written).exit_code == 0
    assert os.read(reader, 10).startswith(b"run,")
    assert os.read(terminal, 10)
    os.close(reader)
    assert invoke(tmp_path, *written).exit_code == 0, "its reader left"
    assert Path(os.ttyname(its_end)).is_char_device()
    for descriptor in (writer, terminal, its_end):
        os.close(descriptor)


def test_compare_imports_neither_torch_nor_scipys_tests(outputs: Path) -> None:
    """They would take seconds."""
    code = (
        "import json, sys\nfrom binventory.cli import app\n"
        "app(['compare', 'outputs'], standalone_mode=False)\n"
        "print(json.dumps([name for name in ('torch', 'scipy.stats', 'pandas', 'sklearn') if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1]) == []
