"""Stopped and resumed equals trained through, to the last bit, over every way to stop.

`make test` runs a pairwise cover; `TEST_RESUME_FULL=1 pytest -m long tests/resume/test_cover.py` all 1,152 cases.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests.resume.cover import EVERY_CASE, Case, pairs, pairwise
from tests.resume.jobs import Job
from tests.resume.runs import BATCHES, EPOCHS, Lab, Series

# A signal inside an accumulation window is no pair but a triple.
IN_WINDOW = Case("SIGTERM", "middle", 0, 1, ema=False, accumulate=3, scheduler="cosine", times=1)
COVER = [*pairwise(EVERY_CASE), IN_WINDOW]
EXIT_CODES = {"SIGTERM": 143, "SIGINT": 130, "raise": 1, "SIGKILL": -9}


def test_cover_has_every_pair() -> None:
    assert set().union(*map(pairs, COVER)) == set().union(*map(pairs, EVERY_CASE))
    assert len(COVER) <= 18
    two_ranks = [case for case in COVER if case.ranks == 2]
    assert {case.way for case in two_ranks} == set(EXIT_CODES)


@pytest.mark.parametrize("case", COVER, ids=str)
def test_stopped_and_resumed_equals_trained_through(case: Case, lab: Lab) -> None:
    check(case, lab)


@pytest.mark.long
@pytest.mark.timeout(6 * 3600)
def test_every_case(lab: Lab) -> None:
    """All combinations, when TEST_RESUME_FULL is set; TEST_RESUME_FULL=3/8 takes the third eighth of them."""
    asked = os.environ.get("TEST_RESUME_FULL")
    if not asked:
        pytest.skip("TEST_RESUME_FULL is not set")
    part, _, parts = asked.partition("/")
    first, step = (int(part) - 1, int(parts)) if parts else (0, 1)
    failed = []
    for case in EVERY_CASE[first::step]:
        try:
            check(case, lab)
        except AssertionError as error:
            failed.append(f"{case}: {error}")
            print(failed[-1], flush=True)
    assert not failed, f"{len(failed)} cases failed, first {failed[0]}"


def check(case: Case, lab: Lab) -> None:
    """Stop and resume a run as the case says and compare it with the undisturbed one."""
    undisturbed = lab.undisturbed(*case.overrides, num_ranks=case.ranks)
    every = 2 if case.accumulate == 1 else 1
    # A signal saves by itself; what follows a crash hangs on the periodic checkpoints.
    extra = [] if case.way.startswith("SIG") and case.way != "SIGKILL" else [f"every_n_steps={every}"]
    # Worker processes decode where the photos are not kept decoded.
    loader = [f"data.num_workers={case.workers}", f"data.cache={str(not case.workers).lower()}"]
    overrides = [*case.overrides, *loader, *(f"callbacks.checkpoint.{one}" for one in extra)]
    series = lab.series(*overrides, num_ranks=case.ranks)
    number = EVERY_CASE.index(case)
    for stop in range(case.times):
        plan = plan_of(case, stop, series, number)
        job = series.start(plan=plan) if stop == 0 else series.start("resume=auto", plan=plan)
        check_stop(case, stop, series, job, plan)
    last = series.start("resume=auto") if number % 2 else series.resume_by_folder()
    assert last.wait() == 0, last.stderr
    assert f"going on with {series.output_dir}" in last.stdout
    series.check_equals(undisturbed)


def plan_of(case: Case, stop: int, series: Series, number: int) -> dict[str, Any]:
    """Say where the trap springs: the first time in epoch 2, the second time in epoch 3."""
    there = series.position() if stop else {"epoch": 0, "batches": 0}
    epoch = stop + 1  # complete by then
    done = there["epoch"] * BATCHES + there["batches"]
    place: dict[str, Any] = {
        "middle": {"phase": "train", "call": epoch * BATCHES + 5 - done},
        "last": {"phase": "train", "call": (epoch + 1) * BATCHES - done},
        "validation": {"phase": "eval", "call": epoch + 1 - there["epoch"]},
    }[case.place]
    to = ("self", "group")[number % 2] if case.ranks == 2 and case.way.startswith("SIG") else "self"
    return {**place, "do": case.way, "to": to, "rank": number // 2 % 2 if case.ranks == 2 else 0}


def check_stop(case: Case, stop: int, series: Series, job: Job, plan: dict[str, Any]) -> None:
    """Check the exit code, the status and where the checkpoint lies."""
    code = job.wait()
    assert f"trap: {case.way}" in job.stdout, "the trap never sprang:\n" + job.stderr
    there, status = series.position(), series.status
    if case.way == "SIGKILL":
        # Of two ranks one is killed, and the parent says so; a killed group says nothing.
        is_told = case.ranks == 2 and plan["to"] == "self"
        assert code == (1 if is_told else -9), job.stderr
        assert status["state"] == ("failed" if is_told else "running")
    else:
        assert code == EXIT_CODES[case.way], job.stderr
        assert status["state"] == ("failed" if case.way == "raise" else "preempted")
        assert status["exit_code"] == code
    epoch = stop + 1
    middle = 6 if case.accumulate == 3 else 5
    stopped_at = {"middle": (epoch, middle), "last": (epoch, BATCHES), "validation": (epoch + 1, 0)}[case.place]
    if case.way in ("SIGTERM", "SIGINT"):
        if case.ranks == 2 and case.place == "middle":  # ranks agree every few steps, and at the end of the epoch
            assert (epoch, BATCHES) >= (there["epoch"], there["batches"]) >= stopped_at
        else:
            assert (there["epoch"], there["batches"]) == stopped_at, "saved where it stopped, between two steps"
    else:
        assert (0, 0) < (there["epoch"], there["batches"]) < stopped_at
        if case.place == "middle":
            assert there["batches"] > 0, "the periodic checkpoint lies in the middle of the epoch"
    assert there["batches"] % case.accumulate == 0 or there["batches"] == BATCHES, "never inside a window"
    assert there["epoch"] < EPOCHS or case.place == "validation"
