"""Searches with real trainings: the sweep's process is killed, hopeless trials are stopped early."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial

from binventory.launch.entry import main
from tests.running import ROOT, TINY

SWEEP = ["hydra/launcher=local", "hydra/sweeper=binventory_optuna", *TINY]


@contextmanager
def started(workplace: Path, *overrides: str) -> Iterator[Path]:
    """Start a sweep in a process of its own and give its folder; kill -9 that process, and it alone, at the end."""
    known = set(workplace.glob("outputs/sweeps/*"))
    command = [sys.executable, str(ROOT / "train.py"), "-m", *SWEEP, *overrides]
    process = subprocess.Popen(command, cwd=workplace, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        wait_until(lambda: bool(_sweeps(workplace) - known), process)
        (folder,) = _sweeps(workplace) - known
        yield folder
        assert process.poll() is None, "it ended before it could be killed"
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _sweeps(workplace: Path) -> set[Path]:
    return {path.parent for path in workplace.glob("outputs/sweeps/*/sweep.json")}


def wait_until(
    is_so: Callable[[], bool], process: subprocess.Popen[bytes] | None = None, timeout_s: float = 120
) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert process is None or process.poll() is None, "the sweep ended early"
        assert time.monotonic() < deadline
        time.sleep(0.05)


def resume(workplace: Path, monkeypatch: pytest.MonkeyPatch, folder: Path, *overrides: str) -> None:
    monkeypatch.chdir(workplace)
    main("train", [f"resume_sweep={folder}", *overrides])


def jobs(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "sweep.json").read_text())["jobs"]
    return found


def epochs(run: Path) -> list[int]:
    if not (run / "metrics.csv").exists():
        return []
    with (run / "metrics.csv").open(newline="") as file:
        return [int(row["epoch"]) for row in csv.DictReader(file)]


def trials_of(folder: Path) -> list[FrozenTrial]:
    storage = f"sqlite:///{folder / 'optuna.db'}"
    return optuna.load_study(study_name=optuna.get_all_study_names(storage)[0], storage=storage).trials


@pytest.mark.long
@pytest.mark.usefixtures("trained")  # its photos are there
def test_a_killed_search_goes_on_and_stops_the_hopeless(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a learning rate of 0.1 and one that learns nothing, the second is stopped; a kill of the sweep changes nothing."""
    options = ["optimizer.lr=0.1,1e-9", "hydra.sweeper.sampler=grid", "hydra.sweeper.pruner=median"]
    options += ["hydra.sweeper.pruner_startup_trials=1", "objective_metric=val/cross_entropy", "trainer.max_epochs=16"]
    with started(workplace, *options, "hydra.launcher.n_jobs=1") as folder:
        wait_until(lambda: len(epochs(folder / "0")) >= 2)
    left = trials_of(folder)
    assert [trial.state.name for trial in left] == ["RUNNING"]
    assert left[0].user_attrs["job"] == 0
    resume(workplace, monkeypatch, folder)
    good, bad = trials_of(folder)
    assert (good.state.name, bad.state.name) == ("COMPLETE", "PRUNED")
    assert epochs(folder / "0") == list(range(1, 17)), "it went on in its own run folder, from where it was"
    assert len(json.loads((folder / "0" / "provenance.json").read_text())["earlier_attempts"]) == 1
    assert good.value == json.loads((folder / "0" / "metrics.json").read_text())["val"]["cross_entropy"]
    assert list(good.intermediate_values) == list(range(1, 17))
    assert 1 <= len(epochs(folder / "1")) < 16, "nobody stopped the one that learns nothing"
    status = json.loads((folder / "1" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("pruned", 0)
    results = json.loads((folder / "optimization_results.json").read_text())
    assert (results["best_trial"], results["direction"], results["best_run_dir"]) == (0, "minimize", "0")
    assert "<h2>Epochs</h2>" in (folder / "optuna.html").read_text()


APP = """
import time
from pathlib import Path

import hydra


@hydra.main(version_base="1.3", config_path=None)
def app(config):
    Path("started.txt").touch()
    while not Path("go.txt").exists():
        time.sleep(0.05)
    return config.x


if __name__ == "__main__":
    app()
"""


def test_a_stopped_search_leaves_what_waited_to_the_next(tmp_path: Path) -> None:
    """One trial runs and one waits for the launcher, which says no number; that one is run when the sweep goes on."""
    (tmp_path / "app.py").write_text(APP)
    command = [
        sys.executable,
        "app.py",
        "-m",
        "+x=interval(0,1)",
        *SWEEP[:2],
        "hydra.sweeper.n_trials=3",
        "hydra.sweep.dir=here",
    ]
    process = subprocess.Popen(command, cwd=tmp_path)
    try:
        wait_until((tmp_path / "started.txt").exists, process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=30) == 130
    finally:
        process.kill()
    before = [trial.params for trial in trials_of(tmp_path / "here")]
    assert [trial.state.name for trial in trials_of(tmp_path / "here")][1:] == ["RUNNING"]
    (tmp_path / "go.txt").touch()
    subprocess.run([*command, "+resume_sweep=here"], cwd=tmp_path, timeout=60, check=False)
    assert [trial.params for trial in trials_of(tmp_path / "here")][:2] == before
    assert [trial.state.name for trial in trials_of(tmp_path / "here")][1:] == ["COMPLETE"] * 2


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["hydra.sweeper.sampler=gird"], "hydra.sweeper.sampler=gird: no such sampler; did you mean grid?"),
        (["+hydra.sweeper.params={optimizer.lrr: 'interval(0,1)'}"], "optimizer.lrr=0.0"),
        (
            ["+hydra.sweeper.params={trainer.accumulate_grad_batches: 'choice(1,-1)'}"],
            "trainer.accumulate_grad_batches=-1",
        ),
    ],
)
def test_a_wrong_search_is_one_line(
    workplace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(workplace)
    with pytest.raises(SystemExit) as caught:
        main("train", ["-m", *SWEEP, "optimizer.lr=0.1,0.2", *overrides])
    assert caught.value.code == 2
    stderr = capsys.readouterr().err
    assert stderr.count("\n") == 1
    assert said in stderr


@pytest.mark.long
@pytest.mark.usefixtures("trained")
def test_twelve_trials_killed_at_the_fifth(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["optimizer.lr=tag(log,interval(0.001,0.5))", "optimizer.momentum=interval(0.5,0.9)"]
    options += ["hydra.sweeper.n_trials=12", "hydra.launcher.n_jobs=2", "trainer.max_epochs=3"]
    with started(workplace, *options) as folder:
        wait_until(lambda: sum(job["state"] == "done" for job in jobs(folder)) >= 4, timeout_s=300)
        wait_until(lambda: any(job["state"] == "running" for job in jobs(folder)))
    before = {
        job["job"]: (folder / job["run_dir"] / "status.json").read_bytes()
        for job in jobs(folder)
        if job["state"] == "done"
    }
    resume(workplace, monkeypatch, folder)
    trials = trials_of(folder)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 12
    assert len({str(trial.params) for trial in trials}) == 12
    assert sorted(trial.user_attrs["job"] for trial in trials) == list(range(12))
    assert {run.name for run in folder.iterdir() if run.is_dir()} == {str(number) for number in range(12)}
    assert all(epochs(folder / str(number)) == [1, 2, 3] for number in range(12))
    for number, status in before.items():
        assert (folder / str(number) / "status.json").read_bytes() == status, "what was done was run again"
    for trial in trials:
        run = folder / trial.user_attrs["run_dir"]
        assert trial.value == json.loads((run / "metrics.json").read_text())["val"]["accuracy"]
        assert f"lr: {trial.params['optimizer.lr']}" in (run / "config.yaml").read_text()
