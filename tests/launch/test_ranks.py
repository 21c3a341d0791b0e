"""Ranks never outlive the process that started them, and get from it what the job file does not say."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.launch.test_runner import PYTHONPATH, RANKS, start, status, wait_for, write_spec

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")


def pids(*ready: Path) -> list[int]:
    wait_for(*ready)
    return [int(path.read_text()) for path in ready]


def is_alive(pid: int) -> bool:
    """A process that ended and that nobody waited for is still listed, as a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(*processes: int, timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while any(is_alive(pid) for pid in processes):
        assert time.monotonic() < deadline, "a rank outlived its parent"
        time.sleep(0.02)


def test_ranks_end_in_order_when_their_parent_is_killed(tmp_path: Path) -> None:
    spec = write_spec(tmp_path, "wait_with_pid")
    parent = start(spec, *RANKS)
    ranks = pids(spec.parent / "pid0", spec.parent / "pid1")
    assert all(is_alive(pid) for pid in ranks)
    parent.kill()
    parent.wait(timeout=10)
    wait_until_gone(*ranks)
    assert status(spec)["state"] == "preempted", "SIGTERM, so that a rank can save"
    assert status(spec)["exit_code"] == 143
    lock = os.open(spec.parent / ".lock", os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free
    os.close(lock)


@pytest.mark.parametrize("inherited", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_rank_whose_parent_was_gone_before_it_looked_does_nothing(tmp_path: Path, inherited: signal.Handlers) -> None:
    spec = write_spec(tmp_path, "succeed")
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    environment = {
        **os.environ, "PYTHONPATH": PYTHONPATH, "BINVENTORY_ALLOW_TARGETS": "jobs.", "BINVENTORY_JOB_SECRETS": '{"token": "x"}',
        "BINVENTORY_PARENT_PID": str(done.pid),
    }  # fmt: skip
    command = [sys.executable, "-m", "binventory.launch", str(spec)]
    signal.signal(signal.SIGTERM, inherited)
    rank = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=60)
    assert rank.returncode == -signal.SIGTERM
    assert not (spec.parent / "rank0.txt").exists()


def test_what_the_parent_trusts_its_ranks_trust_and_the_file_holds_no_secret(tmp_path: Path) -> None:
    """The parent composed the config from a command line: nobody has to set a variable for one's own targets."""
    program = (
        "import sys; from binventory.launch.ranks import run_ranks; from binventory.launch.spec import JobSpec\n"
        "config = {'value': 3, 'token': 'hunter2', 'objective': {'_target_': 'mine.Objective'}}\n"
        "sys.exit(run_ranks(JobSpec('jobs:tell', config, sys.argv[1], ['token=hunter2']), 2))"
    )
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    environment.pop("BINVENTORY_ALLOW_TARGETS", None)
    done = subprocess.run(
        [sys.executable, "-c", program, str(run_dir)], env=environment, capture_output=True, text=True, check=False, timeout=60
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for rank in (0, 1):
        told: dict[str, Any] = json.loads((run_dir / f"told{rank}.json").read_text())
        assert told["token"] == "hunter2"
        assert not {name for name in told["variables"] if name in ("BINVENTORY_JOB_SECRETS", "BINVENTORY_PARENT_PID")}
    assert "hunter2" not in (run_dir / "job.json").read_text() + (run_dir / "config.yaml").read_text()
    assert json.loads((run_dir / "job.json").read_text())["config"]["token"] == "<redacted>"


def test_ranks_import_nothing_from_the_working_directory(tmp_path: Path) -> None:
    """It may be a folder of files that somebody sent; what the parent can import, its ranks can."""
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "mine.py").write_text("from jobs import succeed\n")
    script = tmp_path / "scripts" / "train.py"
    script.write_text(
        "import sys; from binventory.launch.ranks import run_ranks; from binventory.launch.spec import JobSpec\n"
        "sys.exit(run_ranks(JobSpec('mine:succeed', {'value': 1}, sys.argv[1], []), 2))"
    )
    (tmp_path / "sent").mkdir()
    for name in ("omegaconf", "mine", "json"):
        (tmp_path / "sent" / f"{name}.py").write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()\n")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)], cwd=tmp_path / "sent", env={**os.environ, "PYTHONPATH": PYTHONPATH},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "rank1.txt").read_text() == "1"
    assert not (tmp_path / "canary").exists()
