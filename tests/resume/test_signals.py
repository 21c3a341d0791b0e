"""Signals at awkward moments, and the exit code of every way to end."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from binventory.callbacks.checkpoint_file import find_damage
from tests.resume.cover import Case
from tests.resume.jobs import Job
from tests.resume.runs import Lab, Series
from tests.resume.trap import TARGET

TWO_RANKS = Case("SIGTERM", "middle", 0, 2, ema=False, accumulate=1, scheduler="constant", times=1)
CODES = {"SIGTERM": 143, "SIGINT": 130}


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.batch_size=0"], "data.batch_size"),
        (["data=imagefolder", "data.source=nowhere"], "data.source=nowhere"),
        (["resume=nowhere"], "resume=nowhere"),
    ],
    ids=["bad config", "bad input", "no run to resume"],
)
def test_mistakes_are_exit_2_and_one_line(overrides: list[str], said: str, lab: Lab) -> None:
    """The other codes: 0 done, 1 exception, 130, 143 and -9 by signal are asserted where the cover stops its runs."""
    job = lab.jobs.start(lab.folder, "train", [*overrides, TARGET])
    assert job.wait() == 2
    assert job.stderr.startswith("error: ")
    assert job.stderr.count("\n") == 1, job.stderr
    assert said in job.stderr


# What clusters tell the processes that they start: this one is the second of two, on another machine.
CLUSTERS = {
    "Slurm": {"JOB_ID": "1", "NTASKS": "2", "JOB_NAME": "x", "PROCID": "1", "LOCALID": "1", "NODEID": "1",
              "NODELIST": "far"},
    "torchrun": {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "GROUP_RANK": "1", "MASTER_ADDR": "192.0.2.1",
                 "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x", "TORCHELASTIC_USE_AGENT_STORE": "True"},
    "LSF": {"LSB_JOBID": "1", "LSB_DJOB_RANKFILE": "/nowhere", "JSM_NAMESPACE_RANK": "1", "JSM_NAMESPACE_SIZE": "2",
            "JSM_NAMESPACE_LOCAL_RANK": "1"},
}  # fmt: skip
CLUSTERS["Slurm"] = {f"SLURM_{name}": value for name, value in CLUSTERS["Slurm"].items()}


@pytest.mark.parametrize(
    ("cluster", "num_ranks", "signum"),
    [("Slurm", 2, "SIGUSR1"), ("torchrun", 1, "SIGHUP"), pytest.param("LSF", 1, "SIGUSR1", marks=pytest.mark.long),
     pytest.param("torchrun", 2, "SIGHUP", marks=pytest.mark.long)],
)  # fmt: skip
def test_on_a_cluster_our_own_ranks_decide(cluster: str, num_ranks: int, signum: str, lab: Lab) -> None:
    """A batch system's warning ends the run as SIGTERM does; the same command goes on, to the undisturbed figures."""
    overrides = TWO_RANKS.overrides if num_ranks == 2 else []
    series = lab.series(*overrides, num_ranks=num_ranks)
    series.variables = CLUSTERS[cluster]
    job = series.start("resume=auto", plan={"phase": "train", "call": 13, "do": signum})
    assert job.wait() == 143, job.stderr
    assert f"stopped by {signum}" in job.stderr
    assert series.status["state"] == "preempted"
    assert [path.name for path in (series.run / "checkpoints").glob("*.ckpt")]
    job = series.start("resume=auto")
    assert job.wait() == 0, job.stderr
    series.check_equals(lab.undisturbed(*overrides, num_ranks=num_ranks))


@pytest.mark.parametrize("signum", ["SIGTERM", pytest.param("SIGHUP", marks=pytest.mark.long)])
def test_loader_workers_outlive_a_signal_to_all_processes(signum: str, lab: Lab) -> None:
    """As scancel, systemd and a terminal that closes send it: photos are read until the run has saved."""
    series = lab.series("data.num_workers=2", "data.cache=false", "trainer.max_epochs=500")
    job = series.start()
    while not list(series.output_dir.glob("train/*/checkpoints/last.ckpt")):
        assert job.poll(timeout_s=0.02) is None, job.stderr
    job.signal(signal.Signals[signum], group=True)
    assert job.wait() == 143, job.stderr
    assert series.status["state"] == "preempted"
    assert "Traceback" not in job.stderr


@pytest.mark.parametrize("signum", CODES)
def test_before_the_first_step(signum: str, lab: Lab) -> None:
    """No checkpoint yet: the run is started over in the same folder."""
    series = lab.series()
    job = series.start(plan={"phase": "init", "call": 1, "do": signum})
    assert job.wait() == CODES[signum], job.stderr
    assert series.status["state"] == "preempted"
    assert not list((series.run / "checkpoints").glob("*"))
    before = series.run
    job = series.start("resume=auto")
    assert job.wait() == 0, job.stderr
    assert series.run == before
    series.check_equals(lab.undisturbed())


@pytest.mark.parametrize(("signum", "num_ranks"), [("SIGTERM", 1), ("SIGINT", 1), ("SIGTERM", 2)])
def test_many_signals_in_a_row_are_one(signum: str, num_ranks: int, lab: Lab) -> None:
    series = lab.series(*TWO_RANKS.overrides, num_ranks=num_ranks)
    job = series.start(plan={"phase": "train", "call": 13, "do": signum})
    while job.poll(timeout_s=0.002) is None:
        if "trap:" in job.stdout:
            job.signal(signal.Signals[signum], group=True)
    assert job.exit_code == CODES[signum], job.stderr
    assert series.status["state"] == "preempted"
    assert series.status["exit_code"] == CODES[signum]
    assert 13 <= series.position()["step"] <= (13 if num_ranks == 1 else 16), "ranks agree every few steps"
    assert "Traceback" not in job.stderr
    job = series.start("resume=auto")
    assert job.wait() == 0, job.stderr
    series.check_equals(lab.undisturbed(*TWO_RANKS.overrides, num_ranks=num_ranks))


def test_during_a_save(lab: Lab) -> None:
    """Signals that come while a checkpoint is being written, one of each kind in turn, and a kill."""
    series = lab.series("callbacks.checkpoint.every_n_steps=1")
    for number, signum in enumerate((signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL)):
        job = series.start("resume=auto")
        seen = signal_during_save(job, series, signum, saves=number + 2)
        assert seen, f"no save was met: {job.stderr}"
        code = job.wait()
        assert code == {signal.SIGTERM: 143, signal.SIGINT: 130, signal.SIGKILL: -9}[signum], job.stderr
        whole = [path for path in (series.run / "checkpoints").glob("*.ckpt") if find_damage(path) is None]
        assert len(whole) == len(list((series.run / "checkpoints").glob("*.ckpt"))) > 0
    job = series.start("resume=auto")
    assert job.wait() == 0, job.stderr
    series.check_equals(lab.undisturbed())


def signal_during_save(job: Job, series: Series, signum: int, saves: int) -> bool:
    """Send a signal while the n-th save of a job goes on; False if the job ended first."""
    seen: set[str] = set()
    while job.poll() is None:
        # Whole paths: a killed attempt may have left one, which is not a save of this job.
        mine = [path.name for path in series.output_dir.glob(f"train/*/checkpoints/.last.ckpt.{job.pid}.*.tmp")]
        if set(mine) - seen and len(seen | set(mine)) == saves:
            job.signal(signum)
            return True
        seen |= set(mine)
        time.sleep(0.0005)
    return False


@pytest.mark.parametrize(
    ("to", "rank", "is_forked"),
    [pytest.param("group", 0, False, marks=pytest.mark.long), ("self", 0, True), ("self", 1, True)],
    ids=["to the group, ranks are new processes", "to rank 0", "to rank 1"],
)
def test_ranks_leave_together(to: str, rank: int, is_forked: bool, lab: Lab) -> None:
    undisturbed = lab.undisturbed(*TWO_RANKS.overrides, num_ranks=2)
    series = lab.series(*TWO_RANKS.overrides, num_ranks=2)
    series.forks_ranks = is_forked
    job = series.start(plan={"phase": "train", "call": 13, "do": "SIGTERM", "to": to, "rank": rank})
    while "trap:" not in job.stdout and job.poll(timeout_s=0.05) is None:
        pass  # new processes take their time to start
    stopped = time.monotonic()
    assert job.wait() == 143, job.stderr
    assert time.monotonic() - stopped < 50, "ranks that hang are killed after a minute"
    assert series.status["state"] == "preempted"
    assert 13 <= series.position()["step"] <= 16, "ranks agree every few steps, and at the end of the epoch"
    assert job.stderr.count("stopped by SIGTERM") == 1
    series.forks_ranks = True
    job = series.start("resume=auto")
    assert job.wait() == 0, job.stderr
    series.check_equals(undisturbed)


def test_a_second_process_is_refused_while_the_first_runs(lab: Lab) -> None:
    """resume=auto passes over a run that somebody writes; resume=DIR is refused."""
    series = lab.series()
    first = series.start()
    while not list(series.output_dir.glob("train/*/checkpoints/last.ckpt")):
        assert first.poll(timeout_s=0.01) is None, first.stderr
    first.signal(signal.SIGSTOP)  # so that it is still there when the second comes, however busy the machine
    run = series.run
    second = series.resume_by_folder()
    assert second.wait() == 2, second.stderr
    assert str(first.pid) in second.stderr
    first.signal(signal.SIGCONT)
    assert first.wait() == 0, first.stderr
    series.check_equals(lab.undisturbed())
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    again = series.resume_by_folder()
    assert again.wait() == 0
    assert "nothing is left to do" in again.stdout
    assert [path.name for path in Path(series.output_dir).glob("train/*")] == [run.name]
