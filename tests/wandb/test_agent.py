"""W&B's own sweep agent, a real process, runs train.py as the shipped sweep says."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from binventory.config.compose import compose_checked
from tests.running import ROOT, TINY
from tests.wandb.server import ENTITY, SeenRun, SeenSweep, WandbServer

SWEEP = ROOT / "sweeps" / "wandb.yaml"
WANDB = str(Path(sys.executable).with_name("wandb"))
# The agent looks after its jobs every 5 s. This is `wandb agent` with that one number changed.
QUICK = (
    sys.executable,
    "-c",
    "from wandb.wandb_agent import Agent; from wandb.cli.cli import cli; Agent.POLL_INTERVAL = 0.2; cli()",
)
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Start]:
    """Start an agent for a sweep in `tmp_path`; none of its processes outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def start(sweep: SeenSweep, *options: str, command: tuple[str, ...] = QUICK) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        process = subprocess.Popen(
            [*command, "agent", *options, f"{sweep.entity}/{sweep.project}/{sweep.id}"],
            cwd=tmp_path,
            env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "WANDB_AGENT_DISABLE_FLAPPING": "true"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
            process.communicate()


def shipped(*overrides: str) -> dict[str, Any]:
    """The shipped sweep, with its program found from anywhere, and smaller runs."""
    config: dict[str, Any] = yaml.safe_load(SWEEP.read_text())
    config["program"] = str(ROOT / config["program"])
    config["command"][-1:-1] = [*TINY, *overrides]
    return config


def parameters(lr: float, **more: Any) -> dict[str, Any]:
    return {"optimizer.lr": lr, "data.batch_size": 32, "model.name": "test_resnet", **more}


def folders(folder: Path) -> dict[str, dict[str, Any]]:
    """Status, config and place of the run folders, by learning rate."""
    found = {}
    for path in folder.glob("outputs/train/*/status.json"):
        config = yaml.safe_load(path.with_name("config.yaml").read_text())
        found[str(config["optimizer"]["lr"])] = {
            **json.loads(path.read_text()),
            "folder": path.parent,
            "config": config,
        }
    return found


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str], timeout_s: float = 90) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.1)


def test_the_shipped_sweep_is_taken_as_it_is(wandb_server: WandbServer) -> None:
    done = subprocess.run([WANDB, "sweep", str(SWEEP)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    (sweep,) = wandb_server.sweeps.values()
    assert sweep.config == yaml.safe_load(SWEEP.read_text())
    assert (sweep.entity, sweep.project) == (ENTITY, "binventory")
    assert f"wandb agent {ENTITY}/binventory/{sweep.id}" in done.stderr
    assert wandb_server.unknown == []


def test_the_shipped_values_are_right() -> None:
    """Whatever the server chooses fits, also with the lines for real photos that are commented out."""
    config = yaml.safe_load(SWEEP.read_text())
    assert config["parameters"].keys() == parameters(0.1).keys()
    assert config["command"][-1] == "${args_no_hyphens}"
    stated = [word for word in config["command"] if "=" in word]
    commented = re.findall(r"^  # - (\S+=\S+)$", SWEEP.read_text(), re.MULTILINE)
    assert {"data=abid", "trainer=gpu"} <= set(commented)
    on_real_photos = [word.replace("trainer=gpu", "trainer=cpu") for word in commented]
    ranges = config["parameters"].values()
    rates, sizes, networks = (among.get("values", [among.get("min"), among.get("max")]) for among in ranges)
    chosen = [*zip(rates, sizes, networks, strict=False), (rates[0], sizes[-1], networks[0])]
    for values, more in [*((values, []) for values in chosen), ((rates[0], sizes[0], "resnet50"), on_real_photos)]:
        drawn = [f"{name}={value}" for name, value in zip(config["parameters"], values, strict=True)]
        (composed,) = compose_checked("train", [*stated, *more, *drawn])
        assert composed.objective_metric == config["metric"]["name"]
        assert config["early_terminate"]["min_iter"] < composed.trainer.max_epochs
        assert composed.model.weights == ("resnet50.tv_in1k" if more else "none")


def check_done(server: WandbServer, run_id: str, folder: Path, sweep: SeenSweep) -> None:
    """A run of the sweep came to its end under the id that the agent was given, and all of it arrived."""
    run = server.runs[run_id]
    assert (run.state, run.exit_code, run.num_starts) == ("finished", 0, 1)
    assert (run.sweep, run.project, run.entity) == (sweep.id, "binventory", ENTITY)
    lr = run.config["optimizer.lr"]
    seen = folders(folder)[str(lr)]
    assert seen["state"] == "done"
    # What the sweep set, and our own config beside it, whole
    assert run.config["model.name"] == "test_resnet"
    assert run.config["model"] == seen["config"]["model"]
    assert run.config["optimizer"]["lr"] == lr
    figures = json.loads((seen["folder"] / "metrics.json").read_text())
    assert run.summary["test/accuracy"] == pytest.approx(figures["test"]["accuracy"])
    epochs = [row["epoch"] for row in run.history if "val/accuracy" in row]
    assert epochs == sorted(set(epochs))
    assert len(epochs) == figures["epochs"]


@pytest.mark.long
def test_an_agent_runs_jobs_sees_failures_and_stops_what_it_is_told_to(
    wandb_server: WandbServer, agent: Start, tmp_path: Path
) -> None:
    jobs = [
        parameters(0.01, **{"optimiser.lr": 0.01}),  # no such key
        parameters(0.02),
        parameters(0.03, **{"trainer.max_epochs": 1000}),  # until hyperband stops it
        parameters(-1),
        parameters(0.05),  # never handed out: two failures, one after the other, end the agent
    ]
    sweep = wandb_server.add_sweep(shipped(), jobs)
    process = agent(sweep, "--max-consecutive-failed-runs", "2")
    wait_until(lambda: len(sweep.run_ids) > 2 and wandb_server.runs[sweep.run_ids[2]].history != [], process)
    sweep.stop.add(sweep.run_ids[2])
    output, _ = process.communicate(timeout=60)
    assert "Detected 2 consecutive failed runs" in output
    assert [job["optimizer.lr"] for job in sweep.jobs] == [0.05]
    wrong_key, done, stopped, wrong_value = sweep.run_ids
    # What is wrong ends its job before a run is started; the agent goes on.
    assert "error: optimiser.lr=0.01: no such key; did you mean optimizer.lr?" in output
    assert "error: optimizer.lr=-1" in output
    assert "Traceback" not in output
    assert [wandb_server.runs[run_id].num_starts for run_id in (wrong_key, wrong_value)] == [0, 0]
    assert folders(tmp_path).keys() == {"0.02", "0.03"}
    check_done(wandb_server, done, tmp_path, sweep)
    check_stopped(wandb_server.runs[stopped], folders(tmp_path)["0.03"], output, "SIGTERM", 143)
    assert wandb_server.unknown == []


def check_stopped(run: SeenRun, seen: dict[str, Any], output: str, signal_name: str, exit_code: int) -> None:
    """A run was stopped by a signal and says so, here and there."""
    assert f"stopped by {signal_name}: {seen['folder']}; resume={seen['folder']} goes on with it" in output
    assert (seen["state"], seen["exit_code"]) == ("preempted", exit_code)
    assert (seen["folder"] / "checkpoints" / "last.ckpt").is_file()
    assert (run.exit_code, run.summary["state"]) == (exit_code, "preempted")
    assert not run.is_preempting, "else the sweep would start again what it has stopped"


@pytest.mark.long
def test_an_agent_as_it_is_runs_two_jobs_and_is_sent_home(
    wandb_server: WandbServer, agent: Start, tmp_path: Path
) -> None:
    """The plain `wandb agent`, as the documentation says: about 50 s."""
    sweep = wandb_server.add_sweep(shipped(), [parameters(0.02), parameters(0.03)])
    process = agent(sweep, command=(WANDB,))
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    assert len(sweep.run_ids) == len(folders(tmp_path)) == 2
    for run_id in sweep.run_ids:
        check_done(wandb_server, run_id, tmp_path, sweep)
    assert wandb_server.unknown == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "sent", "signal_name", "exit_code"),
    [
        ((), [signal.SIGINT, signal.SIGINT], "SIGTERM", 143),  # the first Ctrl-C only makes the agent wait
        (("--forward-signals",), [signal.SIGINT], "SIGINT", 130),
        (("--forward-signals",), [signal.SIGTERM], "SIGTERM", 143),
    ],
)
def test_an_agent_that_is_stopped_ends_its_job(
    wandb_server: WandbServer, agent: Start, tmp_path: Path, options: tuple[str, ...], sent: list[signal.Signals],
    signal_name: str, exit_code: int,
) -> None:  # fmt: skip
    """Ctrl-C and SIGTERM to the agent: about 12 s each."""
    sweep = wandb_server.add_sweep(shipped(), [parameters(0.02, **{"trainer.max_epochs": 1000}), parameters(0.03)])
    process = agent(sweep, *options)
    wait_until(lambda: sweep.run_ids != [] and wandb_server.runs[sweep.run_ids[0]].history != [], process)
    for signum in sent:
        process.send_signal(signum)
        time.sleep(1)
    output, _ = process.communicate(timeout=60)
    assert len(sweep.jobs) == 1, "no further job is started"
    check_stopped(wandb_server.runs[sweep.run_ids[0]], folders(tmp_path)["0.02"], output, signal_name, exit_code)
    assert wandb_server.unknown == []
