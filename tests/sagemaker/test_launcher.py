"""Sweeps on SageMaker, end to end: boto3 over HTTP to the local control plane, and AWS's own toolkit runs the jobs."""

from __future__ import annotations

import hashlib
import json
import signal
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from binventory.launch.ranks import returned_value
from binventory.sagemaker.attach import attach
from binventory.sagemaker.local.faults import Interruption
from binventory.sagemaker.local.server import LocalSageMaker
from binventory.tracking.run_folder import request_prune
from tests.running import TINY
from tests.sagemaker.conftest import BUCKET
from tests.sagemaker.test_outputs import member, tar_gz
from tests.sweeps.running import UNRULY, Outcome, meanwhile, signal_self, sweep_here

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

SAGEMAKER = ["hydra/launcher=sagemaker", "hydra.launcher.poll_s=0.3", "hydra.launcher.instance_type=ml.m5.large"]
SMALL = [*TINY, "trainer.max_epochs=1"]
SLOW = [*TINY, UNRULY, "+objective.does=slow", "trainer.max_epochs=12"]


def launch(folder: Path, *overrides: str) -> Outcome:
    return sweep_here(folder, "-m", *SAGEMAKER, *overrides)


def launch_here(folder: Path, *overrides: str) -> Outcome:
    """The same on this machine. As many threads as a job there has: sums over more of them differ in the last bit."""
    return sweep_here(folder, "-m", "hydra.launcher.threads_per_job=1", *overrides)


def jobs_of(outcome: Outcome, plane: LocalSageMaker) -> list[Any]:
    sweep = (outcome.folder / "sagemaker-name.txt").read_text().strip()
    return [job for job in plane.jobs.values() if job.name.startswith(sweep.replace("_", "--"))]


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def weights(run: Path) -> str:
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return hashlib.sha256(b"".join(state[name].numpy().tobytes() for name in sorted(state))).hexdigest()


def epochs(run: Path) -> list[str]:
    return [line.split(",")[0] for line in (run / "metrics.csv").read_text().splitlines()[1:]]


def test_a_grid_with_a_failing_job_among_good_ones(
    workplace: Path, plane: LocalSageMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four jobs, two at once. What came back is what a sweep on this machine leaves."""
    grid = ["optimizer.lr=0.1,0.01", "+objective.does=calm,raise", UNRULY, "hydra.launcher.max_parallel=2"]
    there = launch(workplace, *SMALL, *grid)
    said = capsys.readouterr().out
    assert there.exit_code == 1
    assert there.states == ["done", "failed", "done", "failed"]
    assert [row["state"] for row in there.rows] == there.states
    jobs = jobs_of(there, plane)
    assert len(jobs) == 4
    assert max(_at_once(jobs)) == 2

    here = launch_here(workplace, *SMALL, UNRULY, "+objective.does=calm", "optimizer.lr=0.1,0.01")
    for number, its in ((0, 0), (2, 1)):
        run, other = there.folder / str(number), here.folder / str(its)
        assert read(run / "metrics.json")["test"] == read(other / "metrics.json")["test"]
        assert weights(run) == weights(other)
        assert (run / "predictions.csv").read_bytes() == (other / "predictions.csv").read_bytes()
        assert _config(run) == _config(other)
        names = {path.name for path in other.iterdir()} - {"train.log"}  # Hydra's, which runs no job there
        assert {path.name for path in run.iterdir()} - {"sagemaker.json"} == names
        assert there.jobs[number]["value"] == returned_value(run, read(run / "job.json")["config"])
        assert read(run / "provenance.json")["git"]["commit"] == read(other / "provenance.json")["git"]["commit"]

    failed = there.folder / "1"
    assert there.jobs[1]["error"] == "RuntimeError: something broke"
    assert 'raise RuntimeError("something broke")' in there.status(1)["error"]["traceback"]
    assert "something broke" in (failed / "output.log").read_text()
    record = read(failed / "sagemaker.json")
    assert record["ended"]["status"] == "Failed"
    assert "something broke" in record["ended"]["failure_reason"]
    assert read(failed / "provenance.json")["sagemaker"]["training_jobs"] == record["names"]
    assert "job 1: RuntimeError: something broke; see" in said
    assert len({job.request["HyperParameters"]["sagemaker_submit_directory"] for job in jobs}) == 1
    assert not plane.unknown


def _at_once(jobs: list[Any]) -> list[int]:
    """How many jobs ran at the moment when each was created."""
    return [
        sum(other.created <= job.created < other.transitions[-1]["StartTime"] for other in jobs) for job in jobs
    ]  # fmt: skip


def _config(run: Path) -> str:
    return (run / "config.yaml").read_text()


def test_an_optuna_search(workplace: Path, plane: LocalSageMaker) -> None:
    """Six trials, two in parallel; the search gets each one's value."""
    search = [
        "hydra/sweeper=binventory_optuna", "hydra.sweeper.n_trials=6", "hydra.launcher.max_parallel=2",
        "optimizer.lr=tag(log, interval(0.001, 0.1))",
    ]  # fmt: skip
    outcome = launch(workplace, *SMALL, *search)
    assert outcome.exit_code == 0
    assert outcome.states == ["done"] * 6
    values = [job["value"] for job in outcome.jobs]
    assert values == [read(outcome.folder / str(number) / "metrics.json")["val"]["accuracy"] for number in range(6)]


def test_a_spot_job_that_is_interrupted_twice_ends_with_the_same_weights(
    workplace: Path, plane: LocalSageMaker
) -> None:
    """Once with SIGTERM, once without and with an upload that is cut off."""
    run = [*TINY, "trainer.max_epochs=10", UNRULY, "+objective.does=slow", "callbacks.checkpoint.every_n_steps=2"]
    plain = launch(workplace, *run)
    plane.faults.interrupt(
        "*",
        Interruption(when_file="**/metrics.csv", grace_s=120),
        Interruption(after_s=20, sigterm=False, upload_limit=1),
        jobs=1,
    )
    spot = sweep_here(workplace, "-m", "hydra/launcher=sagemaker_spot", *SAGEMAKER[1:], *run)
    assert (plain.exit_code, spot.exit_code) == (0, 0)
    assert weights(spot.folder / "0") == weights(plain.folder / "0")
    assert spot.metrics(0)["test"] == plain.metrics(0)["test"]
    assert epochs(spot.folder / "0") == [str(number) for number in range(1, 11)]
    ended = read(spot.folder / "0/sagemaker.json")["ended"]
    assert ended["transitions"].count("Interrupted") == 2
    attempts = read(spot.folder / "0/provenance.json")["earlier_attempts"]
    assert len(attempts) in (1, 2)  # on a slow machine the second interruption comes before the run goes on


def test_two_hosts_train_as_two_processes_do(workplace: Path, plane: LocalSageMaker, namespaces: None) -> None:
    ddp = [*SMALL, "trainer=ddp_cpu"]
    there = sweep_here(
        workplace, "-m", "hydra/launcher=sagemaker_dist", *SAGEMAKER[1:], *ddp, "trainer.devices=1"
    )  # fmt: skip
    here = launch_here(workplace, *ddp, "trainer.devices=2")
    assert (there.exit_code, here.exit_code) == (0, 0), there.status(0)
    assert there.metrics(0)["test"] == here.metrics(0)["test"]
    assert weights(there.folder / "0") == weights(here.folder / "0")
    assert "[algo-2]" in (there.folder / "0/output.log").read_text()


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_the_jobs_save_and_resume_sweep_goes_on(
    workplace: Path, plane: LocalSageMaker, signum: signal.Signals, code: int
) -> None:
    watch = at_epoch(workplace, 2, send(signum))
    first = launch(workplace, *SLOW, "optimizer.lr=0.1,0.01", "hydra.launcher.max_parallel=1")
    watch.join()
    assert first.exit_code == code
    assert first.states == ["preempted", "queued"]
    begun = len(epochs(first.folder / "0"))
    assert 2 <= begun < 12
    assert read(first.folder / "0/sagemaker.json")["ended"]["secondary_status"] == "Stopped"
    if signum != signal.SIGINT:
        return
    again = sweep_here(workplace, f"resume_sweep={first.folder}")
    assert again.exit_code == 0
    assert again.states == ["done", "done"]
    names = read(first.folder / "0/sagemaker.json")["names"]
    assert [name[-2:] for name in names] == ["-0", "r1"]
    assert epochs(first.folder / "0") == [str(number) for number in range(1, 13)]


def at_epoch(workplace: Path, number: int, act: Callable[[Path], None]) -> threading.Thread:
    """Do something with the next sweep's first run, once it has told of an epoch through the checkpoint prefix."""
    known = set(workplace.glob("outputs/sweeps/*"))

    def runs() -> list[Path]:
        new = [sweep / "0" for sweep in set(workplace.glob("outputs/sweeps/*")) - known]
        return [run for run in new if (run / "metrics.csv").exists() and len(epochs(run)) >= number]

    return meanwhile(lambda: bool(runs()), lambda: act(runs()[0]))


def send(signum: signal.Signals) -> Callable[[Path], None]:
    return lambda _: signal_self(signum)()


def test_detached_the_jobs_run_on_and_attach_collects_them(
    workplace: Path, plane: LocalSageMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    watch = at_epoch(workplace, 1, send(signal.SIGINT))
    run = [*SLOW, "trainer.max_epochs=6", "optimizer.lr=0.1,0.01", "hydra.launcher.max_parallel=2"]
    left = launch(workplace, *run, "hydra.launcher.on_interrupt=detach")
    watch.join()
    assert left.exit_code == 130
    assert left.states == ["running", "running"]
    assert f"binventory sagemaker attach {left.folder}" in capsys.readouterr().out
    assert attach(left.folder, 0.3) == 0
    assert left.states == ["done", "done"]
    assert epochs(left.folder / "1") == ["1", "2", "3", "4", "5", "6"]
    assert left.jobs[0]["value"] == left.metrics(0)["val"]["accuracy"]
    assert attach(left.folder, 0.3) == 0  # nothing is left to collect


def test_a_job_that_is_asked_to_is_pruned(workplace: Path, plane: LocalSageMaker) -> None:
    """What a pruner does: there is no way into a training job but its end."""
    watch = at_epoch(workplace, 1, request_prune)
    outcome = launch(workplace, *SLOW)
    watch.join()
    assert (outcome.exit_code, outcome.states) == (0, ["pruned"])
    assert outcome.status(0)["exit_code"] == 0
    assert 1 <= len(epochs(outcome.folder / "0")) < 12
    assert read(outcome.folder / "0/sagemaker.json")["ended"]["status"] == "Stopped"


def test_nobody_has_to_wait(workplace: Path, plane: LocalSageMaker) -> None:
    """wait=false sends the jobs; resume_sweep waits for those that run instead of sending them again."""
    sent = launch(
        workplace, *SMALL, "optimizer.lr=0.1,0.01", "hydra.launcher.wait=false", "hydra.launcher.max_parallel=null"
    )  # fmt: skip
    assert sent.exit_code == 0
    assert sent.states == ["running", "running"]
    again = sweep_here(workplace, f"resume_sweep={sent.folder}", "hydra.launcher.wait=true")
    assert again.exit_code == 0
    assert again.states == ["done", "done"]
    assert [len(read(sent.folder / str(number) / "sagemaker.json")["names"]) for number in (0, 1)] == [1, 1]


def test_an_archive_that_leads_out_of_its_folder_is_one_failed_run(
    workplace: Path, plane: LocalSageMaker, capsys: pytest.CaptureFixture[str]
) -> None:
    """And nothing of it is unpacked."""
    sent = launch(workplace, *SMALL, "hydra.launcher.wait=false", "hydra.launcher.max_parallel=null")
    (name,) = read(sent.folder / "0/sagemaker.json")["names"]
    job = plane.wait(name, 120)
    key = job.output_uri("output.tar.gz").removeprefix(f"s3://{BUCKET}/")
    link = tarfile.TarInfo("run/metrics.csv")
    link.type, link.linkname = tarfile.SYMTYPE, "../../status.json"
    for bad, said in ((tar_gz([member("../outside", b"1")]), "leads out"), (tar_gz([(link, b"")]), "is a link")):
        plane.client("s3").put_object(Bucket=BUCKET, Key=key, Body=bad)
        assert attach(sent.folder, 0.3) == 1
        assert sent.states == ["failed"]
        assert said in sent.jobs[0]["error"]
        assert sent.jobs[0]["error"].startswith(f"s3://{BUCKET}/")
        assert not list(workplace.rglob("outside"))
        assert not (sent.folder / "0/predictions.csv").exists()
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.abid
def test_exp1_on_a_slice_that_is_uploaded(workplace: Path, plane: LocalSageMaker, abid: Path) -> None:
    """The bins and the weights' file are sent once for both jobs, and the figures are those of this machine."""
    exp1 = [
        "experiment=exp1", "data=abid", f"data.source={abid}/udacity224", "data.limit=250", "trainer.max_epochs=1",
        f"model.weights={abid.parent}/weights/resnet18_imagenet_fp16.safetensors", "data.max_bad_fraction=1", "trainer=cpu",
    ]  # fmt: skip
    there = launch(workplace, *exp1, "optimizer.lr=0.001,0.01")
    here = launch_here(workplace, *exp1, "optimizer.lr=0.01")
    assert (there.exit_code, here.exit_code) == (0, 0)
    assert there.metrics(1)["test"] == here.metrics(0)["test"]
    assert there.states == ["done", "done"]
    assert there.jobs[1]["value"] == here.jobs[0]["value"]
    uris = [
        channel["DataSource"]["S3DataSource"]["S3Uri"]
        for job in jobs_of(there, plane)
        for channel in job.request["InputDataConfig"] if channel["ChannelName"] != "job"
    ]  # fmt: skip
    assert len(uris) == 4
    assert len(set(uris)) == 2
    assert (there.folder / "1/predictions.csv").read_bytes() == (here.folder / "0/predictions.csv").read_bytes()
