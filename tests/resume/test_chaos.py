"""Processes that are killed at random moments until they are done lose nothing.

The moments are drawn from a seed, but where a process is at that moment is up to the machine: a failure tells what to
look at, not how to see it again. `make test` kills a dozen times; TEST_CHAOS_KILLS=300 and TEST_CHAOS_SEED=1 are options.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.resume.jobs import Job, Jobs
from tests.resume.runs import Lab
from tests.s3 import FaultProxy, draw_bins, upload

KILLS = int(os.environ.get("TEST_CHAOS_KILLS", "12"))
SEED = int(os.environ.get("TEST_CHAOS_SEED", "0"))
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# Of one that came before the process had its handlers, of one that it saw, and of one that came too late.
EXIT_CODES = {
    signal.SIGKILL: (-signal.SIGKILL, 0),
    signal.SIGTERM: (143, -signal.SIGTERM, 0),
    signal.SIGINT: (130, -signal.SIGINT, 0),
}


def kill(job: Job, draw: random.Random, came: Counter[str]) -> None:
    """Send a random signal and check the exit code."""
    signum = draw.choice(SIGNALS)
    was_alive = job.poll() is None
    job.signal(signum)
    code = job.wait()
    assert code in EXIT_CODES[signum], f"{signum.name} -> {code}:\n{job.stdout}\n{job.stderr}"
    if was_alive and code != 0:
        came[signum.name] += 1


def phase_of(stdout: str) -> str:
    for phase, said in (("test", "epoch 3/3 done"), ("epoch", "epoch 1/3 step"), ("start of training", "synthetic:")):
        if said in stdout:
            return phase
    return "start"


@pytest.mark.long
def test_killed_trainings_lose_nothing(lab: Lab) -> None:
    """One command with resume=auto, killed until it is done; then the next run, until there were KILLS kills."""
    draw = random.Random(SEED)
    undisturbed = lab.undisturbed()
    longest_s = 0.9 * lab.seconds(undisturbed)  # a resumed attempt has less to do, so that kills come in its end too
    came: Counter[str] = Counter()
    phases: Counter[str] = Counter()
    num_runs = 0
    while came.total() < KILLS:
        num_runs += 1
        assert num_runs <= KILLS, "kills that always come too late show nothing"
        series = lab.series("callbacks.checkpoint.every_n_steps=1", "resume=auto")
        while not series.is_done():
            job = series.start()
            if came.total() < KILLS:
                time.sleep(draw.uniform(0, longest_s))
                kill(job, draw, came)
                phases[phase_of(job.stdout)] += 1
            else:
                assert job.wait() == 0, job.stderr
        series.check_equals(undisturbed)
    print(f"{num_runs} runs, {came.total()} kills: {dict(came)} {dict(phases)}")


@pytest.mark.long
def test_killed_downloads_lose_nothing(jobs: Jobs, s3_server: str, s3_faults: FaultProxy, tmp_path: Path) -> None:
    """`binventory prepare` from an S3 server, killed until it is done: every photo whole, the index as undisturbed."""
    draw = random.Random(SEED)
    seed = tmp_path / "seed"
    draw_bins(seed, {f"{100_000 + 10 * number}": number % 3 + 1 for number in range(90)})
    upload(s3_server, "chaos", seed)
    overrides = ["data=abid", "data.source=s3://chaos", "data.counts=[1,2,3]", "s3.max_concurrency=4"]
    overrides += [f"s3.endpoint_url={s3_faults.url}"]
    s3_faults.delay_s = 0.02
    undisturbed = tmp_path / "undisturbed"
    undisturbed.mkdir()
    job = jobs.start(undisturbed, "prepare", overrides)
    assert job.wait() == 0, job.stderr
    came: Counter[str] = Counter()
    met = []
    num_runs = 0
    while came.total() < KILLS // 3:
        num_runs += 1
        assert num_runs <= KILLS, "kills that always come too late show nothing"
        folder = tmp_path / f"killed{num_runs}"
        folder.mkdir()
        for _ in range(4):
            job = jobs.start(folder, "prepare", overrides)
            wait_for_requests(job, s3_faults, draw.randrange(1, 110))
            kill(job, draw, came)
            met.append(len(check_photos(folder, seed)))
        job = jobs.start(folder, "prepare", overrides)
        assert job.wait() == 0, job.stderr
        assert len(check_photos(folder, seed)) == 90
        assert not [path for path in folder.rglob("*") if path.suffix in (".part", ".tmp")]
        assert results_of(folder) == results_of(undisturbed)
    print(f"{num_runs} downloads, {came.total()} kills: {dict(came)}, photos that were there: {met}")
    assert any(0 < num_photos < 90 for num_photos in met)


def wait_for_requests(job: Job, proxy: FaultProxy, number: int) -> None:
    """Wait until a job has sent so many requests, or ended."""
    before = proxy.gets.total()
    while proxy.gets.total() - before < number and job.poll(timeout_s=0.005) is None:
        pass


def check_photos(folder: Path, seed: Path) -> list[Path]:
    """Return the photos that are there; each is whole."""
    photos = list(folder.glob(".cache/data/s3/**/bin-images/*.jpg"))
    for photo in photos:
        assert photo.read_bytes() == (seed / "bin-images" / photo.name).read_bytes(), photo
    return photos


def results_of(folder: Path) -> tuple[object, ...]:
    """Return the index, the items and the newest summary of a folder where `prepare` ran."""
    (index,) = folder.glob(".cache/index/*/*/index.parquet")
    rows = pq.read_table(index).drop_columns(["path", "mtime_ns"]).to_pylist()
    items = pq.read_table(index.with_name("items.parquet")).to_pylist()
    newest = max(folder.glob("outputs/prepare/*/summary.json"))
    return rows, items, json.loads(newest.read_text())


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
def test_ranks_killed_at_random(lab: Lab) -> None:
    """Two ranks, a signal to the whole process group; KILLS kills."""
    draw = random.Random(SEED)
    undisturbed = lab.undisturbed(num_ranks=2)
    longest_s = 1.2 * lab.seconds(undisturbed)
    for _ in range(KILLS // 4):
        series = lab.series("callbacks.checkpoint.every_n_steps=1", "resume=auto", num_ranks=2)
        kills = 4
        while not series.is_done():
            job = series.start()
            if kills:
                kills -= 1
                time.sleep(draw.uniform(0, longest_s))
                job.signal(draw.choice(SIGNALS), group=True)
                job.wait()
            else:
                assert job.wait() == 0, job.stderr
        series.check_equals(undisturbed)
