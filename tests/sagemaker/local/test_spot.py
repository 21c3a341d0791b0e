"""Spot interruptions: what comes back is the checkpoint prefix, as much of it as was uploaded, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from binventory.sagemaker.local.faults import Interruption
from binventory.sagemaker.local.jobs import Job
from binventory.sagemaker.local.life import Plant
from binventory.sagemaker.local.server import LocalSageMaker
from binventory.sagemaker.local.transfer import ORDERS
from tests.sagemaker.local.conftest import CACHE, TIME_SCALE
from tests.sagemaker.local.lab import MARK, Lab, fresh_mark, states, wait_until

pytestmark = pytest.mark.long

# Counts its starts in the checkpoint directory; waits for the interruption in all but the last of them
COUNTS = """
found = sorted(str(path.relative_to(checkpoints)) for path in checkpoints.rglob("*") if path.is_file())
attempt = 1 + sum(name.startswith("started-") for name in found)
(checkpoints / f"started-{attempt}").touch()
(model / "left").touch()
def stop(*_):
    (checkpoints / f"term-{attempt}").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, stop)
if attempt < %d:
    (checkpoints / "deep").mkdir(exist_ok=True)
    (checkpoints / "deep" / f"ready-{attempt}").touch()
    while True: time.sleep(0.02)
say("found", found)
say("model", sorted(path.name for path in model.iterdir()))
"""


def test_interrupted_twice(lab: Lab) -> None:
    """First with SIGTERM and time to save, then without."""
    lab.plane.faults.interrupt(
        "spot-twice",
        Interruption(when_file="deep/ready-1"),
        Interruption(when_file="deep/ready-2", sigterm=False, upload_limit=100),
    )
    described = lab.run(lab.spot("spot-twice"), COUNTS % 3)
    assert described["TrainingJobStatus"] == "Completed", described.get("FailureReason")
    again = ["Interrupted", "Restarting", "Downloading", "Training"]
    assert states(described) == [
        "Starting",
        "Pending",
        "Downloading",
        "Training",
        *again,
        *again,
        "Uploading",
        "Completed",
    ]
    said = {name: json.loads(text) for name, text in lab.unpacked("spot-twice", "output.tar.gz").items()}
    assert {"started-1", "term-1", "deep/ready-1", "started-2"} <= set(said["found.json"])
    assert "term-2" not in said["found.json"]
    assert said["model.json"] == ["left"]  # of this attempt: instances are new
    assert lab.job("spot-twice").num_attempts == 3
    assert described["BillableTimeInSeconds"] <= described["TrainingTimeInSeconds"]


def test_no_interruption_without_spot(lab: Lab) -> None:
    lab.plane.faults.interrupt("on-demand", Interruption(after_s=0))
    described = lab.run(lab.request("on-demand"), "time.sleep(0.3)")
    assert described["TrainingJobStatus"] == "Completed"
    assert lab.job("on-demand").num_attempts == 1


def test_the_grace_ends_with_sigkill(lab: Lab) -> None:
    lab.plane.faults.interrupt("deaf", Interruption(when_file="ready", grace_s=0.5 * TIME_SCALE))
    script = """
if (checkpoints / "ready").exists(): sys.exit(0)
signal.signal(signal.SIGTERM, lambda *_: [(checkpoints / "heard").touch(), time.sleep(600)])
(checkpoints / "ready").touch()
while True: time.sleep(0.02)
"""
    described = lab.run(lab.spot("deaf"), script)
    assert described["TrainingJobStatus"] == "Completed"
    assert lab.keys("checkpoints/deaf/") == ["heard", "ready"]
    training, interrupted = described["SecondaryStatusTransitions"][3:5]
    assert (interrupted["StartTime"] - training["StartTime"]).total_seconds() > 0.5


def test_max_runtime_counts_all_attempts(lab: Lab) -> None:
    lab.plane.faults.interrupt("attempts", *[Interruption(after_s=0.5 * TIME_SCALE, sigterm=False)] * 9)
    runtime_s = int(2.2 * TIME_SCALE)
    limits = {"MaxRuntimeInSeconds": runtime_s, "MaxWaitTimeInSeconds": 100 * runtime_s}
    described = lab.run(lab.spot("attempts", StoppingCondition=limits), "(model / 'm').touch(); time.sleep(600)")
    assert (described["TrainingJobStatus"], described["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
    # The limit is reached in an attempt, or with the interruption that ends it.
    endings = (["Stopping", "Uploading", "MaxRuntimeExceeded"], ["Interrupted", "MaxRuntimeExceeded"])
    after = states(described)
    assert any(after[-1 - len(ending) :] == ["Training", *ending] for ending in endings), after
    assert 2 <= lab.job("attempts").num_attempts <= 5  # of ten that alone would each stay below the limit
    assert described["BillableTimeInSeconds"] >= runtime_s


def test_jobs_that_run_at_once_have_their_own_addresses(tmp_path: Path) -> None:
    unused: dict[str, Any] = dict.fromkeys(("s3", "logs", "toolkit", "environment", "namespace"))
    plant = Plant(**unused, folder=tmp_path, time_scale=1, checkpoint_period_s=1, upload_order=ORDERS["name"])
    first, second = plant.take_addresses(2), plant.take_addresses(2)
    assert (first, second) == ([2, 3], [4, 5])
    plant.give_back(first)
    assert plant.take_addresses(3) == [2, 3, 6]


def test_a_job_that_is_to_stop_goes_on_to_nothing_else() -> None:
    job = Job({"TrainingJobName": "job"}, "arn", {}, {})
    job.move("Starting")
    assert job.move_unless_stopping("Pending")
    assert job.ask_to_stop()
    assert not job.move_unless_stopping("Downloading")
    assert job.ask_to_stop()  # a second time changes nothing
    assert [transition["Status"] for transition in job.transitions] == ["Starting", "Pending", "Stopping"]
    job.move("Stopped")
    assert not job.ask_to_stop()


def test_stop_between_attempts_is_final(lab: Lab) -> None:
    """However the request falls, the job ends as stopped and is not started again."""
    lab.plane.faults.interrupt("halted", *[Interruption(after_s=0, sigterm=False)] * 1000)
    lab.start(lab.spot("halted"), "time.sleep(600)")
    wait_until(lambda: lab.job("halted").num_attempts >= 3)
    lab.sagemaker.stop_training_job(TrainingJobName="halted")
    described = lab.finish("halted")
    assert described["SecondaryStatus"] == "Stopped"
    after = states(described)[states(described).index("Stopping") + 1 :]
    assert after in (["Stopped"], ["Uploading", "Stopped"])


@pytest.fixture(scope="module")
def cutting_lab(toolkit: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """Uploads nothing while a job runs, and the last names first."""
    mark = {MARK: fresh_mark(tmp_path_factory.mktemp("cut"))}
    with LocalSageMaker(cache=CACHE, checkpoint_period_s=3600, upload_order="reversed", environment=mark) as plane:
        yield Lab(plane)


WRITES_FIVE = """
found = sorted(path.name for path in checkpoints.iterdir())
if found:
    say("found", found)
    sys.exit(0)
for name in "abcde": (checkpoints / name).write_text(name)
(checkpoints / "0").touch()
while True: time.sleep(0.02)
"""


def test_an_upload_that_is_cut(cutting_lab: Lab) -> None:
    lab = cutting_lab
    lab.plane.faults.interrupt("cut", Interruption(when_file="0", upload_limit=2))
    described = lab.run(lab.spot("cut"), WRITES_FIVE)
    assert described["TrainingJobStatus"] == "Completed", described.get("FailureReason")
    assert lab.job("cut").uploads == ["e", "d"]
    assert lab.unpacked("cut", "output.tar.gz") == {"found.json": '["d", "e"]'}


def test_sigkill_leaves_no_time_to_upload(cutting_lab: Lab) -> None:
    lab = cutting_lab
    lab.plane.faults.interrupt("lost", Interruption(when_file="0", sigterm=False))
    lab.start(lab.spot("lost"), WRITES_FIVE)
    wait_until(lambda: lab.job("lost").num_attempts == 2)
    assert lab.keys("checkpoints/lost/") == []
    lab.sagemaker.stop_training_job(TrainingJobName="lost")
    lab.finish("lost")


def test_orders(tmp_path: Path) -> None:
    import os

    for name, size, moment in [("a", 3, 20), ("b", 1, 30), ("c", 2, 10)]:
        path = tmp_path / name
        path.write_text("x" * size)
        os.utime(path, (moment, moment))
    paths = list(tmp_path.iterdir())
    found = {order: "".join(path.name for path in sort(paths)) for order, sort in ORDERS.items()}
    expected = {"name": "abc", "reversed": "cba", "oldest": "cab", "newest": "bac", "small": "bca", "large": "acb"}
    assert found == expected
