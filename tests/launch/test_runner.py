"""Every way a job can end has its exit code and leaves a true status.json; real signals to real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from binventory.launch.spec import JobSpec

HERE = Path(__file__).resolve().parent
PYTHONPATH = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))  # jobs.py


def write_spec(tmp_path: Path, task: str, **config: Any) -> Path:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    path = run_dir / "job.json"
    JobSpec(f"jobs:{task}", {"value": 3, "token": "hush", **config, "hydra": {}}, str(run_dir), ["a=1"]).save(path)
    return path


def start(spec: Path, *code: str) -> subprocess.Popen[str]:
    command = [sys.executable, *(code or ("-m", "binventory.launch")), str(spec)]
    given = {"BINVENTORY_ALLOW_TARGETS": "jobs.", "BINVENTORY_JOB_SECRETS": '{"token": "hush"}'}
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, **given}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


RANKS = ("-c", "import sys; from pathlib import Path; from binventory.launch.ranks import run_ranks;"
         "from binventory.launch.spec import JobSpec; sys.exit(run_ranks(JobSpec.load(Path(sys.argv[1])), 2))")  # fmt: skip


def status(spec: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((spec.parent / "status.json").read_text())
    return read


def wait_for(*paths: Path, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not all(path.exists() for path in paths):
        assert time.monotonic() < deadline, f"not there in time: {paths}"
        time.sleep(0.02)


def test_done(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, "succeed")
    process = start(spec)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    written = status(spec)
    assert written["state"] == "done"
    assert written["exit_code"] == 0
    assert written["error"] is None
    assert written["started"] <= written["ended"]
    config = (spec.parent / "config.yaml").read_text()
    assert "value: 3" in config
    assert "hush" not in config
    assert json.loads((spec.parent / "provenance.json").read_text())["overrides"] == ["a=1"]


@pytest.mark.parametrize(
    ("task", "exit_code", "kind", "said"),
    [("fail", 1, "RuntimeError", "something broke"), ("refuse", 2, "InputError", "data.source=x: no such folder")],
)
def test_failed(tmp_path: Path, task: str, exit_code: int, kind: str, said: str) -> None:
    spec = write_spec(tmp_path, task)
    process = start(spec)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == exit_code
    written = status(spec)
    assert written["state"] == "failed"
    assert written["exit_code"] == exit_code
    assert written["error"]["type"] == kind
    assert "Traceback" in written["error"]["traceback"]
    assert said in stderr
    assert ("Traceback" in stderr) == (exit_code == 1), "a user's mistake is one line, a defect keeps its traceback"
    assert "hidden" not in stderr + json.dumps(written)


@pytest.mark.parametrize(
    ("signum", "exit_code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 143), (signal.SIGUSR1, 143)],
)
def test_stopped(tmp_path: Path, signum: signal.Signals, exit_code: int) -> None:
    spec = write_spec(tmp_path, "wait")
    process = start(spec)
    wait_for(spec.parent / "ready0")
    assert status(spec)["state"] == "running"
    process.send_signal(signum)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == exit_code
    assert status(spec)["state"] == "preempted"
    assert status(spec)["exit_code"] == exit_code
    assert "Traceback" not in stderr


def test_under_nohup_a_terminal_may_close(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, "wait")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a process inherits what is ignored
    process = start(spec)
    signal.signal(signal.SIGHUP, before)
    wait_for(spec.parent / "ready0")
    process.send_signal(signal.SIGHUP)
    time.sleep(0.1)
    assert status(spec)["state"] == "running"
    process.send_signal(signal.SIGUSR1)  # nobody ignores this one
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 143
    assert "stopped by SIGUSR1" in stderr


def test_second_writer_is_refused_and_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, "wait")
    first = start(spec)
    wait_for(spec.parent / "ready0")
    second = start(spec)
    _, stderr = second.communicate(timeout=60)
    assert second.returncode == 2
    assert str(first.pid) in stderr
    assert status(spec)["state"] == "running", "the refused writer must not touch the run"
    first.kill()
    first.communicate()
    JobSpec("jobs:succeed", {"value": 1}, str(spec.parent), []).save(spec)
    third = start(spec)
    third.communicate(timeout=60)
    assert third.returncode == 0


def test_two_ranks_share_one_run_folder(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, "succeed")
    process = start(spec, *RANKS)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr
    assert {path.name for path in spec.parent.glob("rank*")} == {"rank0.txt", "rank1.txt"}
    assert status(spec)["state"] == "done"


@pytest.mark.parametrize(
    ("task", "said"),
    [("fail_on_rank_1", "rank 1 ended with exit code 1"), ("killed_on_rank_1", "rank 1 was killed by SIGKILL")],
)
def test_a_rank_that_dies_takes_the_others_along(tmp_path: Path, task: str, said: str) -> None:
    spec = write_spec(tmp_path, task)
    process = start(spec, *RANKS)
    _, stderr = process.communicate(timeout=45)
    assert process.returncode == 1
    assert said in stderr
    assert status(spec)["state"] == "failed"
    assert said in status(spec)["error"]["message"]


@pytest.mark.parametrize("repeats", [1, 5])
@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_many_signals_are_one(tmp_path: Path, signum: signal.Signals, exit_code: int, repeats: int) -> None:
    spec = write_spec(tmp_path, "wait")
    process = start(spec)
    wait_for(spec.parent / "ready0")
    for _ in range(repeats):
        process.send_signal(signum)
        time.sleep(0.003)
    process.communicate(timeout=30)
    assert process.returncode == exit_code
    assert status(spec)["state"] == "preempted"


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_reach_all_ranks(tmp_path: Path, signum: signal.Signals, exit_code: int) -> None:
    spec = write_spec(tmp_path, "wait")
    process = start(spec, *RANKS)
    wait_for(spec.parent / "ready0", spec.parent / "ready1")
    process.send_signal(signum)
    process.communicate(timeout=30)
    assert process.returncode == exit_code
    assert status(spec)["state"] == "preempted"


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"version": 99}', '{"version": 1, "task": "x"}'])
def test_broken_spec_is_one_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "job.json"
    path.write_text(content)
    process = start(path)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert stderr.count("\n") == 1
    assert "job.json" in stderr
