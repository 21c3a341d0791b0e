"""The pool: who runs when, and on what."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from binventory.launch.pool import Job, Pool, Share, Work

pytestmark = pytest.mark.usefixtures("job_server")


def note(share: Share, path: str, seconds: float) -> None:
    """Say what this job has, and for how long."""
    os.setsid()
    started = time.time()
    time.sleep(seconds)
    Path(path).write_text(
        json.dumps({"gpus": share.gpus, "threads": share.threads, "from": started, "to": time.time()})
    )


def hang(share: Share, path: str) -> None:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path(path).touch()
    time.sleep(60)


def run(pool: Pool, folder: Path, needs: list[int], seconds: float = 0.3) -> list[dict]:
    def job(number: int, num_gpus: int) -> Job:
        work = Work(note, (str(folder / f"{number}.json"), seconds), num_gpus)
        return Job(number, lambda: work, lambda: None)

    for number, num_gpus in enumerate(needs):
        pool.submit(job(number, num_gpus))
    ended = list(pool.as_completed(60))
    assert [job.exit_code for job in ended] == [0] * len(needs)
    return [json.loads((folder / f"{number}.json").read_text()) for number in range(len(needs))]


def overlaps(told: list[dict]) -> list[tuple[int, int]]:
    pairs = [(a, b) for a in range(len(told)) for b in range(a)]
    return [(a, b) for a, b in pairs if told[a]["from"] < told[b]["to"] and told[b]["from"] < told[a]["to"]]


def test_jobs_that_run_together_share_no_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,2,5,7")
    told = run(Pool(None, None, []), tmp_path, [2, 1, 1, 4, 2], seconds=1)
    assert [len(one["gpus"]) for one in told] == [2, 1, 1, 4, 2]
    assert {gpu for one in told for gpu in one["gpus"]} == {"0", "2", "5", "7"}
    together = overlaps(told)
    assert together, "nothing ran side by side"
    assert all(not set(told[a]["gpus"]) & set(told[b]["gpus"]) for a, b in together)


def test_n_jobs_bounds_jobs_on_gpus_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    assert overlaps(run(Pool(1, None, []), tmp_path, [1, 1, 1])) == []


def test_more_gpus_than_there_are_is_the_jobs_own_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It starts with what there is, and says so itself; the pool does not wait for ever."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert run(Pool(None, None, []), tmp_path, [2])[0]["gpus"] == ["0"]


def test_cores_are_divided(tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    for n_jobs, asked, threads in ((None, None, cores), (2, None, max(1, cores // 2)), (64, None, 1), (2, 5, 5)):
        assert run(Pool(n_jobs, asked, []), tmp_path, [0], seconds=0)[0]["threads"] == threads


def test_what_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("binventory.launch.pool.GRACE_S", 0.5)
    pool = Pool(1, None, [])
    ready = tmp_path / "ready"
    job = Job(0, lambda: Work(hang, (str(ready),)), lambda: None)
    waiting = Job(1, lambda: Work(hang, (str(ready),)), lambda: None)
    pool.submit(job)
    pool.submit(waiting)
    while not ready.exists():
        time.sleep(0.02)
    pool.stop()
    assert job.exit_code == -signal.SIGKILL
    assert waiting.exit_code is None
    assert list(pool.as_completed()) == [job]
