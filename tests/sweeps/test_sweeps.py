"""A sweep loses nothing: whatever happens to a job, the others go on, and what is missing can be done later."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from binventory.tracking.run_folder import RunFolder
from tests.running import ROOT, TINY
from tests.sweeps.running import SMALL, UNRULY, Outcome, fails_in_one_line, meanwhile, signal_self, sweep_here
from tests.wandb.read_back import attempts_of

pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("job_server")]


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BINVENTORY_ALLOW_TARGETS", "tests.sweeps.")


def sweeps(folder: Path) -> list[Path]:
    return sorted(folder.glob("outputs/sweeps/*"))


def test_a_failed_job_is_one_row_and_resume_sweep_does_what_is_missing(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Raising, sys.exit, os._exit and SIGKILL; the calm jobs before and after them are done."""
    does = "+objective.does=calm,raise,exit,leave,kill,tell"
    command = [*SMALL, does, f"+objective.folder={tmp_path}", "hydra.launcher.n_jobs=2"]
    first = sweep_here(workplace, "-m", *command)
    assert first.exit_code == 1
    assert first.states == ["done", "failed", "failed", "failed", "failed", "done"]
    assert [row["state"] for row in first.rows] == first.states
    assert first.jobs[1]["error"] == "RuntimeError: something broke"
    assert "RuntimeError: something broke" in first.status(1)["error"]["traceback"]
    assert first.status(2)["error"]["type"] == "SystemExit"
    assert "unruly.py" in first.status(2)["error"]["traceback"]
    assert "before it was done" in first.jobs[3]["error"]
    assert "SIGKILL" in first.jobs[4]["error"]
    assert [first.status(job)["state"] for job in range(6)] == first.states
    said = capsys.readouterr().out
    assert "6 jobs" in said
    assert said.count("something broke") >= 1
    assert "SIGKILL" in said
    assert first.record["exit_code"] == 1
    assert first.rows[0]["test/accuracy"] == str(first.metrics(0)["test"]["accuracy"])
    assert first.rows[0]["run_dir"] == "0"

    before = {job: (first.folder / str(job) / "metrics.json").stat().st_mtime_ns for job in (0, 5)}
    again = sweep_here(workplace, f"resume_sweep={first.folder}")
    assert again.exit_code == 0
    assert again.states == ["done"] * 6
    assert {job: (again.folder / str(job) / "metrics.json").stat().st_mtime_ns for job in (0, 5)} == before
    assert sorted(path.name for path in again.folder.iterdir() if path.is_dir()) == list("012345")
    # All six are the same training but for what happened on the way.
    assert all(again.metrics(job) == again.metrics(0) for job in range(6))
    third = sweep_here(workplace, f"resume_sweep={first.folder}")
    assert third.exit_code == 0
    assert "started" not in capsys.readouterr().out.split("Sweep, 6 jobs")[-2]


def test_on_failure_stop_starts_no_more(workplace: Path, tmp_path: Path) -> None:
    command = [*SMALL, "+objective.does=kill,calm,tell", f"+objective.folder={tmp_path}"]
    outcome = sweep_here(workplace, "-m", *command, "hydra.launcher.on_failure=stop")
    assert outcome.exit_code == 1
    assert outcome.states == ["failed", "queued", "queued"]
    again = sweep_here(workplace, f"resume_sweep={outcome.folder}")
    assert (again.exit_code, again.states) == (0, ["done"] * 3)


@pytest.mark.parametrize(
    ("signum", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)]
)
def test_a_stopped_sweep_saves_and_goes_on(
    workplace: Path, signum: signal.Signals, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*TINY, UNRULY, "+objective.does=slow", "seed=0,1,2", "hydra.launcher.n_jobs=2", "trainer.max_epochs=3"]
    known = set(sweeps(workplace))

    def two_epochs_begun() -> bool:
        made = [folder for folder in sweeps(workplace) if folder not in known]
        return bool(made) and all((made[0] / job / "metrics.csv").exists() for job in "01")

    meanwhile(two_epochs_begun, signal_self(signum))
    stopped = sweep_here(workplace, "-m", *command)
    assert stopped.exit_code == code
    assert stopped.states == ["preempted", "preempted", "queued"]
    assert "Sweep, 3 jobs" in capsys.readouterr().out
    assert all((stopped.folder / job / "checkpoints" / "last.ckpt").exists() for job in "01")
    again = sweep_here(workplace, f"resume_sweep={stopped.folder}")
    assert (again.exit_code, again.states) == (0, ["done"] * 3)
    assert all((again.folder / job / "output.log").read_text().count("epoch 1/3 done") == 1 for job in "01")
    provenance = json.loads((again.folder / "0" / "provenance.json").read_text())
    assert len(provenance["earlier_attempts"]) == 1
    # As many threads: how sums are split over them shows in the last bits.
    through = sweep_here(workplace, "-m", *("+objective.does=calm" if "does=" in word else word for word in command))
    assert [again.metrics(job) for job in range(3)] == [through.metrics(job) for job in range(3)]


def test_a_waiting_job_starts_as_soon_as_one_ends(workplace: Path) -> None:
    outcome = sweep_here(workplace, "-m", *SMALL, "+objective.does=slow,calm", "seed=0,1", "hydra.launcher.n_jobs=2")
    assert outcome.exit_code == 0
    times = [[datetime.fromisoformat(job[name]) for name in ("started", "ended")] for job in outcome.jobs]
    # Jobs 0 and 1 are the slow ones; 2 and 3 wait. At no time do more than two run.
    assert times[2][0] >= min(times[0][1], times[1][1])
    assert times[1][0] < times[0][1], "two at once"
    assert max(sum(a <= t < b for a, b in times) for t, _ in times) == 2


def test_every_job_is_a_wandb_run_of_its_own_in_the_group_of_the_sweep(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "one-for-all")  # left over from something else
    outcome = sweep_here(workplace, "-m", *TINY, "debug=fast", "seed=0,1", "logger=wandb", "hydra.launcher.n_jobs=2")
    assert outcome.states == ["done", "done"]
    attempts = [attempt for job in (0, 1) for attempt in attempts_of(outcome.folder / str(job))]
    assert [attempt.run.run_group for attempt in attempts] == [outcome.folder.name] * 2
    assert [attempt.run.display_name for attempt in attempts] == [f"{outcome.folder.name}/{job}" for job in (0, 1)]
    assert [attempt.config["seed"] for attempt in attempts] == [0, 1]
    assert len({attempt.run.run_id for attempt in attempts} - {"one-for-all"}) == 2


@pytest.mark.long
def test_ranks_of_a_job_share_its_hyperparameters_and_its_folder(workplace: Path, tmp_path: Path) -> None:
    outcome = sweep_here(
        workplace, "-m", *SMALL, "trainer=ddp_cpu", "trainer.max_epochs=1", "objective.label_smoothing=0.1,0.2",
        "+objective.does=tell", f"+objective.folder={tmp_path}", "hydra.launcher.n_jobs=2",
    )  # fmt: skip
    assert (outcome.exit_code, outcome.states) == (0, ["done", "done"])
    names = [f"{smoothing}_rank{rank}.json" for smoothing in (0.1, 0.2) for rank in (0, 1)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    assert len(sweeps(workplace)) == len({path.resolve() for path in sweeps(workplace)})
    assert sorted(path.name for path in outcome.folder.iterdir() if path.is_dir()) == ["0", "1"]


def test_threads_are_shared_out(workplace: Path, tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    for asked, expected in (
        (["hydra.launcher.n_jobs=2"], max(1, cores // 2)),
        (["hydra.launcher.threads_per_job=3"], 3),
    ):
        folder = tmp_path / str(expected) / asked[0]
        folder.mkdir(parents=True)
        outcome = sweep_here(workplace, "-m", *SMALL, "+objective.does=tell", f"+objective.folder='{folder}'", *asked)
        assert outcome.exit_code == 0
        assert json.loads((folder / "0.0_rank0.json").read_text())["threads"] == expected


def test_a_job_that_is_asked_to_is_pruned(workplace: Path) -> None:
    known = set(sweeps(workplace))

    def folder() -> Path | None:
        return next((path for path in sweeps(workplace) if path not in known), None)

    meanwhile(
        lambda: (made := folder()) is not None and (made / "0" / "metrics.csv").exists(),
        lambda: (sweeps(workplace)[-1] / "0" / ".prune").touch(),
    )
    outcome = sweep_here(workplace, "-m", *TINY, UNRULY, "+objective.does=slow", "trainer.max_epochs=50")
    assert (outcome.exit_code, outcome.states) == (0, ["pruned"])
    assert outcome.status(0)["exit_code"] == 0
    assert len((outcome.folder / "0" / "metrics.csv").read_text().splitlines()) < 10


def test_a_combination_that_does_not_fit_is_one_failed_row(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than so many combinations only single values are checked before the start."""
    monkeypatch.setattr("binventory.config.compose.MAX_CHECKED_COMBINATIONS", 7)
    outcome = sweep_here(
        workplace, "-m", *TINY[:-1], "debug=fast", "seed=0,1", "trainer.max_epochs=4,2",
        "scheduler.warmup_epochs=0,3", "hydra.launcher.on_failure=stop",
    )  # fmt: skip
    assert outcome.exit_code == 1
    assert outcome.states[:5] == ["done", "done", "done", "failed", "queued"]
    assert "warmup_epochs" in outcome.jobs[3]["error"]
    assert outcome.jobs[3]["exit_code"] == 2


def test_other_launchers_run_in_batches(workplace: Path, tmp_path: Path) -> None:
    """Hydra's basic launcher runs jobs in this process; a failed one is one row, and only those are done again."""
    outcome = sweep_here(
        workplace, "-m", *SMALL, "+objective.does=raise,calm,exit", f"+objective.folder={tmp_path}",
        "hydra/launcher=basic",
    )  # fmt: skip
    assert (outcome.exit_code, outcome.states) == (1, ["failed", "done", "failed"])
    assert outcome.jobs[0]["error"] == "RuntimeError: something broke"
    assert outcome.jobs[1]["value"] == outcome.metrics(1)["val"]["accuracy"]
    done = outcome.folder / "1" / "metrics.json"
    before = done.stat().st_mtime_ns
    again = sweep_here(workplace, f"resume_sweep={outcome.folder}")
    assert (again.exit_code, again.states) == (0, ["done"] * 3)
    assert done.stat().st_mtime_ns == before
    assert [job["run_dir"] for job in again.jobs] == ["0", "1", "2"]


def test_a_launcher_that_blocks_is_stopped_too(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    known = set(sweeps(workplace))
    meanwhile(
        lambda: any((made / "0" / "metrics.csv").exists() for made in sweeps(workplace) if made not in known),
        signal_self(signal.SIGTERM),
    )
    command = [*TINY, UNRULY, "+objective.does=slow", "seed=0,1", "hydra/launcher=basic", "trainer.max_epochs=50"]
    stopped = sweep_here(workplace, "-m", *command)
    assert (stopped.exit_code, stopped.states) == (143, ["preempted", "queued"])
    assert stopped.status(0)["state"] == "preempted"
    assert "Sweep, 2 jobs" in capsys.readouterr().out


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # the latter: it ended while it was read
        return False


@pytest.mark.long
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_sweep_whose_whole_process_group_is_signalled_waits_for_its_jobs(tmp_path: Path, signum: int) -> None:
    """The server that jobs are forked from is in the group too."""
    command = [
        sys.executable, str(ROOT / "train.py"), "-m", *TINY, "seed=0,1", "hydra.launcher.n_jobs=2",
        "trainer.max_epochs=3000", "hydra.sweep.dir=sweep",
    ]  # fmt: skip
    process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True, stdout=subprocess.DEVNULL)
    folders, deadline = [tmp_path / "sweep" / job for job in "01"], time.monotonic() + 200
    while not all((folder / "checkpoints" / "last.ckpt").exists() for folder in folders):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(process.pid, signum)
    assert process.wait(timeout=100) == 143
    assert [RunFolder(folder).read_state() for folder in folders] == ["preempted", "preempted"]


@pytest.mark.long
def test_jobs_end_with_a_sweep_that_is_killed(workplace: Path) -> None:
    """SIGKILL to the sweep's own process: its jobs save and leave; nothing is lost. It ran on a terminal."""
    known = set(sweeps(workplace))
    command = [
        sys.executable, str(ROOT / "train.py"), "-m", *TINY, UNRULY, "+objective.does=slow", "seed=0,1,2",
        "hydra.launcher.n_jobs=2", "trainer.max_epochs=6",
    ]  # fmt: skip
    main_end, its_end = os.openpty()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}", "TERM": "xterm", "COLUMNS": "150"}
    process = subprocess.Popen(command, cwd=workplace, env=environment, stdin=its_end, stdout=its_end, stderr=its_end)
    os.close(its_end)
    os.set_blocking(main_end, False)
    seen, pids, deadline = b"", [], time.monotonic() + 120
    while len(pids) < 2:
        assert time.monotonic() < deadline, seen.decode()
        assert process.poll() is None, seen.decode()
        time.sleep(0.1)
        try:
            seen += os.read(main_end, 1_000_000)
        except BlockingIOError:
            continue
        made = [folder for folder in sweeps(workplace) if folder not in known]
        started = [made[0] / job for job in "01" if made and (made[0] / job / "metrics.csv").exists()]
        pids = [int((folder / ".lock").read_text()) for folder in started]
    process.kill()
    process.wait()
    for pid in pids:
        while alive(pid):
            assert time.monotonic() < deadline, "a job outlived its sweep"
            time.sleep(0.05)
    os.close(main_end)
    text = seen.decode()
    assert "running" in text, "the live table"
    assert "/6" in text
    outcome = Outcome(0, made[0])
    assert [outcome.status(job)["state"] for job in (0, 1)] == ["preempted", "preempted"]
    assert outcome.record["state"] == "running"
    again = sweep_here(workplace, f"resume_sweep={outcome.folder}")
    assert (again.exit_code, again.states) == (0, ["done"] * 3)
    assert all(
        len(json.loads((again.folder / job / "provenance.json").read_text())["earlier_attempts"]) == 1 for job in "01"
    )


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["-m", "seed=0,1", "hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs=0: must be at least 1"),
        (["-m", "seed=0,1", "hydra.launcher.threads_per_job=-1"], "threads_per_job=-1"),
        (["-m", "seed=0,1", "hydra.launcher.on_failure=abort"], "continue, stop"),
        (["-m", "seed=0,1", "hydra.sweeper.max_batch_size=0"], "max_batch_size=0"),
        (["-m", "optimizer.lr=interval(0.1,0.2)"], "optimizer.lr=interval(0.1,0.2): a grid needs single values"),
        (["-m", "seed=0,1", "hydra.launcher.njobs=2"], "njobs"),
        (["-m", "seed=0,1", "hydra/launcher=locl"], "locl"),
        (["resume_sweep=nowhere"], "resume_sweep"),
        (["resume=.", "-m"], "names one run"),
        (["--cfg", "job", "-m", "seed=0,1"], "--cfg"),
        (["hparams_search=report_space"], "add -m"),
        (["-m", "seed=0,1", "hydra.sweep.subdir=x"], "hydra.sweep.subdir=x: this folder is that of job 0 and of job 1"),
        (["-m", "seed=0,1", "model=tiny", "hydra.sweep.subdir='${model.name}'", "hydra/launcher=basic"], "of job 1"),
        (["-m", "seed=0,1", "hydra.sweep.subdir='${now:%f}'", "hydra/sweeper=basic"], "of job 1"),
        (["-m", "+hydra.sweeper.params={seed:'1,2'}", "hydra.sweep.subdir=x"], "of job 1"),
        (["-m", "hydra/sweeper=binventory_optuna", "optimizer.lr=interval(0.1,0.2)", "hydra.sweep.subdir=x"], "job 1"),
        (["-m", "hydra.sweep.subdir=."], "the sweep's own"),
        (["-m", "hydra.sweep.dir=/proc/mine"], "hydra.sweep.dir=/proc/mine: "),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], overrides: list[str], said: str
) -> None:
    assert said in fails_in_one_line(capsys, tmp_path, *overrides)


def test_a_sweep_is_not_mixed_with_another(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = "hydra.sweep.dir=outputs/sweeps/named"
    outcome = sweep_here(workplace, "-m", *TINY, "debug=fast", place)
    assert outcome.exit_code == 0
    assert "holds a sweep" in fails_in_one_line(capsys, workplace, "-m", *TINY, "debug=fast", place)
    line = fails_in_one_line(capsys, workplace, f"resume_sweep={outcome.folder}", "seed=3")
    assert "seed=3" in line
    assert "new sweep" in line
    assert sweep_here(workplace, f"resume_sweep={outcome.folder}", "debug=fast").exit_code == 0, "what it was anyway"
    other = RunFolder(outcome.folder).open()
    try:
        line = fails_in_one_line(capsys, workplace, f"resume_sweep={outcome.folder}")
        assert f"process {os.getpid()} writes this" in line
    finally:
        other.close()


@pytest.mark.parametrize(
    "planted",
    [
        "hydra.callbacks.x._target_=os.system",
        "hydra.launcher._target_=os.system",
        "hydra.sweeper._target_=os.system",
        "+hydra.sweeper.params={x:{_target_:os.system}}",
        "hydra.searchpath=[file:///tmp]",
        "objective._target_=os.system",
        "data.source=${oc.env:HOME}",
    ],
)
def test_a_sweep_that_somebody_sent_runs_no_code(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], planted: str
) -> None:
    record = {"version": 1, "task": "train", "started": "2026-01-01T00:00:00+00:00", "overrides": [planted], "jobs": []}
    (tmp_path / "sweep.json").write_text(json.dumps(record))
    line = fails_in_one_line(capsys, workplace, f"resume_sweep={tmp_path}")
    assert "sweep.json" in line


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 2}', '{"version": 1, "task": "train"}'])
def test_a_damaged_record_is_one_line(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "sweep.json").write_text(text)
    assert "sweep.json" in fails_in_one_line(capsys, workplace, f"resume_sweep={tmp_path}")
