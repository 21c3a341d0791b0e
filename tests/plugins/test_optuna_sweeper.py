"""The sweeper on tasks that cost nothing: what is drawn, what is told, and what a killed sweep leaves."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobReturn
from hydra.test_utils.test_utils import SweepTaskFunction
from omegaconf import DictConfig
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from binventory.errors import ConfigError
from hydra_plugins.binventory_optuna_sweeper._plots import write_page
from hydra_plugins.binventory_optuna_sweeper._study import make_sampler
from hydra_plugins.binventory_optuna_sweeper.optuna_sweeper import OptunaSweeperConf

pytestmark = pytest.mark.usefixtures("hydra_restore_singletons")

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(autouse=True)
def _working_directory() -> Iterator[None]:
    before = Path.cwd()
    yield
    os.chdir(before)


def parabola(config: DictConfig) -> float:
    return float((config.x - 2) ** 2 + config.get("y", 0))


def sweep(folder: Path, *overrides: str, task: Callable[[DictConfig], Any] = parabola) -> list[list[JobReturn]]:
    """Run a sweep of a task of another application in this process, through Hydra's basic launcher."""
    runner = SweepTaskFunction()
    runner.calling_module, runner.config_path, runner.config_name = "hydra.test_utils.a_module", "configs", "compose"
    runner.task_function, runner.temp_dir = task, str(folder)
    runner.overrides = ["hydra/sweeper=binventory_optuna", "hydra/launcher=basic", "hydra.job.chdir=false", *overrides]
    try:
        runner.__enter__()
    finally:
        GlobalHydra.instance().clear()
    assert runner.returns is not None
    return runner.returns


def study_of(folder: Path) -> optuna.Study:
    storage = f"sqlite:///{folder / 'optuna.db'}"
    return optuna.load_study(study_name=optuna.get_all_study_names(storage)[-1], storage=storage)


def trials_of(folder: Path) -> list[FrozenTrial]:
    return study_of(folder).trials


def params_of(folder: Path) -> list[dict[str, Any]]:
    return [trial.params for trial in trials_of(folder)]


SEARCH = ("+x=interval(0,5)", "+y=1,2")


def test_results(tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    batches = sweep(tmp_path, *SEARCH, "hydra.sweeper.n_trials=5", "hydra.sweeper.n_jobs=2")
    assert [len(batch) for batch in batches] == [2, 2, 1], "the basic launcher blocks, so trials come in batches"
    values = [returned.return_value for batch in batches for returned in batch]
    results = json.loads((tmp_path / "optimization_results.json").read_text())
    best = values.index(min(values))
    assert results["best_value"] == pytest.approx(min(values))
    assert results["best_trial"] == best
    assert results["best_params"] == params_of(tmp_path)[best]
    assert results["best_run_dir"] == str(best)
    assert results["num_trials"] == {"complete": 5}
    assert [trial.value for trial in trials_of(tmp_path)] == pytest.approx(values)
    assert (tmp_path / "multirun.yaml").is_file()
    assert "<h2>Slices</h2>" in (tmp_path / "optuna.html").read_text()
    assert caplog.text.count("trials run in batches of 2") == 1
    assert f"best: trial {best}, value {min(values):.6g}, {tmp_path / str(best)}" in capsys.readouterr().out


def test_the_page_needs_no_network(tmp_path: Path) -> None:
    study = optuna.create_study()
    assert page_of(study, tmp_path).count("<h2>") == 1, "with no trial there is an empty table"
    for number in range(12):
        trial = study.ask({"x": FloatDistribution(0, 5), "z": CategoricalDistribution(["'<b>'", "a"])})
        trial.set_user_attr("run_dir", str(number))
        trial.report(1, step=1)
        study.tell(trial, trial.params["x"] if number else float("inf"))
    page = page_of(study, tmp_path)
    assert re.findall("<h2>(.*?)</h2>", page) == ["History", "Importances", "Slices", "Epochs", "Trials"]
    assert "<script src" not in page
    assert "<link" not in page.split("</script>")[-1]
    assert "&lt;b&gt;" in page
    assert "<b>" not in page.split("<h2>Trials")[1], "values are text, not markup"


def page_of(study: optuna.Study, folder: Path) -> str:
    write_page(study, folder / "optuna.html", "val/accuracy")
    return (folder / "optuna.html").read_text()


def drawn(sampler: str, seed: int | None, num_trials: int) -> list[dict[str, Any]]:
    """What a sampler draws when every trial is told at once."""
    settings = OptunaSweeperConf(sampler=sampler, seed=seed)
    study = optuna.create_study()
    space = {"x": FloatDistribution(0, 50), "y": FloatDistribution(0, 1), "z": CategoricalDistribution(["a", "b"])}
    for number in range(num_trials):
        study.sampler = make_sampler(settings, number)
        trial = study.ask(space)
        study.tell(trial, parabola(DictConfig({"x": trial.params["x"]})))
    return [trial.params for trial in study.trials]


@pytest.mark.parametrize("sampler", ["tpe", "random", "cmaes"])
def test_seed(sampler: str) -> None:
    first = drawn(sampler, 1, 20)
    assert drawn(sampler, 1, 20) == first
    assert drawn(sampler, 2, 20)[0] != first[0]
    assert drawn(sampler, None, 1) != drawn(sampler, None, 1)
    assert len({params["x"] for params in first}) == 20, "no draw comes twice"


@pytest.mark.parametrize("sampler", ["tpe", "cmaes"])
def test_samplers_learn(sampler: str) -> None:
    misses = [abs(params["x"] - 2) for params in drawn(sampler, 0, 40)]
    assert sum(misses[-10:]) < sum(misses[:10]) / 3


def test_grid_goes_in_product_order_and_ends(tmp_path: Path) -> None:
    batches = sweep(tmp_path, "+x=1,2", "+y=range(0,3)", "bar=5", "hydra.sweeper.sampler=grid")
    overrides = [list(returned.overrides or []) for batch in batches for returned in batch]
    assert overrides == [[f"+x={x}", f"+y={y}", "bar=5"] for x in (1, 2) for y in (0, 1, 2)]


def test_n_trials_cuts_a_grid(tmp_path: Path) -> None:
    sweep(tmp_path, "+x=1,2,3", "hydra.sweeper.sampler=grid", "hydra.sweeper.n_trials=2")
    assert params_of(tmp_path) == [{"x": 1}, {"x": 2}]


def test_group_choices(tmp_path: Path) -> None:
    batches = sweep(tmp_path, "group1=glob(file*)", "hydra.sweeper.sampler=grid", task=lambda config: config.foo)
    assert [returned.return_value for batch in batches for returned in batch] == [10, 20]


def test_direction(tmp_path: Path) -> None:
    sweep(tmp_path / "max", "+x=1,5", "hydra.sweeper.sampler=grid", "hydra.sweeper.direction=maximize")
    assert json.loads((tmp_path / "max" / "optimization_results.json").read_text())["best_params"] == {"x": 5}
    sweep(tmp_path / "metric", "+x=1,5", "hydra.sweeper.sampler=grid", "+objective_metric=val/accuracy")
    results = json.loads((tmp_path / "metric" / "optimization_results.json").read_text())
    assert (results["direction"], results["metric"]) == ("maximize", "val/accuracy")


def test_failed_trials(tmp_path: Path) -> None:
    def task(config: DictConfig) -> float | None:
        if config.x == 1:
            raise RuntimeError("x is 1")
        return {2: None, 3: 3.0, 4: math.inf, 5: math.nan}[config.x]

    with pytest.raises(SystemExit, match="1"):
        sweep(tmp_path, "+x=1,2,3,4,5", "hydra.sweeper.sampler=grid", "hydra.sweeper.direction=maximize", task=task)
    told = [(trial.state.name, trial.user_attrs.get("error", "")) for trial in trials_of(tmp_path)]
    assert [state for state, _ in told] == ["FAIL", "FAIL", "COMPLETE", "FAIL", "FAIL"]
    assert "x is 1" in told[0][1]
    assert "None" in told[1][1]
    results = json.loads((tmp_path / "optimization_results.json").read_text())
    assert results["num_trials"] == {"complete": 1, "fail": 4}
    assert (results["best_trial"], results["best_value"]) == (2, 3.0), "infinity is no value"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["hydra.sweeper.sampler=tpee"], "hydra.sweeper.sampler=tpee: no such sampler; did you mean tpe?"),
        (["hydra.sweeper.pruner=hyperband"], "choose one of none, median, asha"),
        (["hydra.sweeper.direction=up"], "choose one of minimize, maximize"),
        (["hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: at least 1"),
        (["hydra.sweeper.pruner_reduction_factor=1"], "at least 2"),
        (["hydra.sweeper.sampler=grid"], "a grid has no intervals"),
        (["hydra.sweeper.sampler=cmaes"], "two or more intervals or ranges, here are 1"),
        (["hydra.sweeper.storage=nothing://x"], "hydra.sweeper.storage=nothing://x: cannot be used"),
        (["hydra.sweeper.storage='postgresql://me:hush@localhost/x'"], "cannot be used"),
        (["+objective_metric=null"], "a search needs a metric"),
        (["nokey=1,2"], "nokey=1: cannot be composed"),
        (["group1=file1,file9"], "group1=file9: cannot be composed"),
    ],
)
def test_refused_before_anything_starts(tmp_path: Path, overrides: list[str], said: str) -> None:
    started = []
    with pytest.raises(ConfigError) as caught:
        sweep(tmp_path, "+x=interval(0,5)", *overrides, task=started.append)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "hush" not in str(caught.value)
    assert not started
    assert not (tmp_path / "sweep.json").exists()


def test_nothing_to_search(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to search over"):
        sweep(tmp_path, "+x=1")


def test_without_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "optuna" else find(name))
    with pytest.raises(ConfigError, match=r"pip install 'binventory\[optuna\]'"):
        sweep(tmp_path, *SEARCH)


# Going on with a sweep


def resumed(folder: Path, *overrides: str, **options: Any) -> list[list[JobReturn]]:
    return sweep(folder, *overrides, f"+resume_sweep={folder}", **options)


def test_a_resumed_sweep_runs_what_is_missing_and_draws_what_it_would_have_drawn(tmp_path: Path) -> None:
    sweep(tmp_path / "whole", *SEARCH, "hydra.sweeper.n_trials=4")
    sweep(tmp_path / "parts", *SEARCH, "hydra.sweeper.n_trials=2")
    more = resumed(tmp_path / "parts", *SEARCH, "hydra.sweeper.n_trials=4")
    assert [len(returned.overrides or []) for batch in more for returned in batch] == [2, 2], "x and y, nothing else"
    assert resumed(tmp_path / "parts", *SEARCH, "hydra.sweeper.n_trials=4") == []
    assert params_of(tmp_path / "parts") == params_of(tmp_path / "whole")


def test_failed_trials_count(tmp_path: Path) -> None:
    def fail(config: DictConfig) -> None:
        raise RuntimeError

    for run, num_trials in ((sweep, 1), (resumed, 2)):
        with pytest.raises(SystemExit, match="1"):
            run(tmp_path, *SEARCH, f"hydra.sweeper.n_trials={num_trials}", task=fail)
    assert [trial.state.name for trial in trials_of(tmp_path)] == ["FAIL", "FAIL"]


def test_a_renamed_sweep_is_still_its_own(tmp_path: Path) -> None:
    sweep(tmp_path / "before", *SEARCH, "hydra.sweeper.n_trials=2")
    (tmp_path / "before").rename(tmp_path / "after")
    assert len(resumed(tmp_path / "after", *SEARCH, "hydra.sweeper.n_trials=3")) == 1
    assert len(trials_of(tmp_path / "after")) == 3


def test_another_program_may_use_a_folder_again(tmp_path: Path) -> None:
    """Hydra's own sweepers run all jobs again; only a program with the key `resume_sweep` can go on."""
    for _ in range(2):
        assert len(sweep(tmp_path, "+x=1,2", "hydra.sweeper.sampler=grid")) == 2


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["+x=1,2,3"], "x: the study drew from"),
        (["+x=1,2", "+y=1,2"], "y: the study was searched with other keys"),
        (["+x=1,2", "hydra.sweeper.direction=maximize"], "goes the other way"),
    ],
)
def test_another_search_is_refused(tmp_path: Path, changed: list[str], said: str) -> None:
    sweep(tmp_path, "+x=1,2", "hydra.sweeper.n_trials=2")
    with pytest.raises(ConfigError, match=said):
        resumed(tmp_path, *changed, "hydra.sweeper.n_trials=3")


def test_a_storage_of_many_sweeps(tmp_path: Path) -> None:
    storage = f"hydra.sweeper.storage='sqlite:///{tmp_path / 'all.db'}'"
    options = (*SEARCH, storage, "hydra.sweeper.study_name=mine")
    sweep(tmp_path / "a", *options, "hydra.sweeper.n_trials=2")
    with pytest.raises(ConfigError, match=r"study_name=mine: is there already"):
        sweep(tmp_path / "b", *options)
    resumed(tmp_path / "a", *options, "hydra.sweeper.n_trials=3")
    assert len(optuna.load_study(study_name="mine", storage=f"sqlite:///{tmp_path / 'all.db'}").trials) == 3


class Killed:
    """Runs a sweep in a fork of this process, which is killed at one of its statements to the database."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder = folder
        self.overrides = overrides

    def at(self, statement: str, nth: int) -> None:
        """Kill it at the nth statement that starts so."""
        pid = os.fork()
        if pid == 0:
            count = 0

            @sqlalchemy.event.listens_for(sqlalchemy.Engine, "before_cursor_execute")
            def _(_connection: Any, _cursor: Any, text: str, *_: Any) -> None:
                nonlocal count
                count += text.startswith(statement)
                if count == nth:
                    os.kill(os.getpid(), signal.SIGKILL)

            code = 1
            try:
                sweep(self.folder, *self.overrides, task=self.task)
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL

    def task(self, config: DictConfig) -> float:
        with (self.folder / "ran.txt").open("a") as file:
            file.write(f"{config.x} {config.y}\n")
        return parabola(config)


NUM_KILLS = int(os.environ.get("TEST_SEARCH_KILLS", "1"))


@pytest.mark.parametrize("sampler", ["tpe", "grid"])
def test_a_kill_at_any_moment_loses_and_doubles_nothing(tmp_path: Path, sampler: str) -> None:
    """At two moments of note, and spread over the statements to the database: TEST_SEARCH_KILLS says at how many."""
    space = ["+x=1,2", "+y=1,2,3"] if sampler == "grid" else ["+x=interval(0,5)", "+y=1,2"]
    options = (*space, f"hydra.sweeper.sampler={sampler}", "hydra.sweeper.n_trials=3")
    # The second value of a trial that was killed between its two is drawn anew; of a grid point it is kept.
    keys = ("x", "y") if sampler == "grid" else ("x",)

    def drawn(folder: Path) -> list[list[Any]]:
        return [[trial.params[key] for key in keys] for trial in trials_of(folder)]

    first, last = num_statements(tmp_path / "whole", *options)
    killed_with = []
    kills = [("", first + (last - first) * (kill + 1) // (NUM_KILLS + 1)) for kill in range(NUM_KILLS)]
    # When the first trial is given its job, and before the first value of the second is kept.
    kills += [("INSERT INTO trial_user_attributes", 1), ("INSERT INTO trial_params", 3)]
    for kill in kills:
        folder = tmp_path / f"{kill[0][12:]}{kill[1]}"
        killed = Killed(folder, *options)
        killed.at(*kill)
        killed_with.append(len(trials_of(folder)))
        ended = [job["overrides"] for job in json.loads((folder / "sweep.json").read_text())["jobs"] if job["ended"]]
        resumed(folder, *options, task=killed.task)
        assert drawn(folder) == drawn(tmp_path / "whole"), f"killed at {kill}"
        assert [trial.state.name for trial in trials_of(folder)] == ["COMPLETE"] * 3
        assert all(trial.value == pytest.approx(parabola(DictConfig(trial.params))) for trial in trials_of(folder))
        assert sorted(trial.user_attrs["job"] for trial in trials_of(folder)) == [0, 1, 2]
        assert len(json.loads((folder / "sweep.json").read_text())["jobs"]) == 3
        ran = (folder / "ran.txt").read_text().splitlines()
        assert len(set(ran)) == 3
        assert len(ran) <= 4, "at most the one that ran was run again"
        assert all(ran.count(f"{x[3:]} {y[3:]}") == 1 for x, y in ended), "what had ended was run again"
    assert set(killed_with) >= {1, 2}


def num_statements(folder: Path, *options: str) -> tuple[int, int]:
    """Run a sweep; return how many statements went to the database until it was on record, and in all."""
    count, first = 0, 0

    def listen(*_: Any) -> None:
        nonlocal count, first
        count += 1
        first = first or (count if (folder / "sweep.json").exists() else 0)

    sqlalchemy.event.listen(sqlalchemy.Engine, "before_cursor_execute", listen)
    try:
        sweep(folder, *options)
    finally:
        sqlalchemy.event.remove(sqlalchemy.Engine, "before_cursor_execute", listen)
    return first, count
