"""A full disk and a read-only one: real file systems, mounted where only the jobs see them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from binventory.callbacks.checkpoint_file import find_checkpoint, find_damage
from tests.resume.runs import SMALL, Lab


@pytest.fixture
def mounted(lab: Lab) -> Iterator[list[Path]]:
    """Mount points to be cleared away."""
    if not lab.jobs.private_mounts:
        pytest.skip("mounting needs root and unshare(1)")
    points: list[Path] = []
    yield points
    for point in reversed(points):
        lab.jobs.mount("umount", "--lazy", str(point))


def mount_tmpfs(lab: Lab, point: Path, size_kib: int, mounted: list[Path]) -> None:
    point.mkdir(parents=True)
    lab.jobs.mount("mount", "-t", "tmpfs", "-o", f"size={size_kib}k", "none", str(point))
    mounted.append(point)


@pytest.mark.parametrize("num_saves", [0, 2], ids=["no checkpoint fits", "a later one does not fit"])
def test_full_disk(num_saves: int, lab: Lab, mounted: list[Path]) -> None:
    undisturbed = lab.undisturbed()
    size_kib = (undisturbed / "checkpoints" / "last.ckpt").stat().st_size // 1024
    series = lab.series()
    mount_tmpfs(lab, series.output_dir, int((num_saves + 0.7) * size_kib), mounted)
    job = series.start()
    assert job.wait() == 1, job.stderr
    error = job.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "last.ckpt" in error
    assert "No space left on device" in error
    assert "Traceback" not in job.stderr
    assert series.status["state"] == "failed"
    assert series.status["exit_code"] == 1
    assert "last.ckpt" in series.status["error"]["message"]
    folder = series.run / "checkpoints"
    assert not list(folder.glob(".*")), "no half a file takes the room that is needed"
    if num_saves:
        whole = find_checkpoint(folder)
        assert whole is not None
        assert whole.name == "last.ckpt", "the earlier one is as it was"
    lab.jobs.mount("mount", "-o", "remount,size=1g", str(series.output_dir))
    job = series.start("resume=auto")
    assert job.wait() == 0, job.stderr
    series.check_equals(undisturbed)


def test_disk_that_fills_up_to_the_last_byte(lab: Lab, mounted: list[Path]) -> None:
    """Even the status has room only because some was set aside."""
    series = lab.series()
    mount_tmpfs(lab, series.output_dir, 64 * 1024, mounted)
    job = series.start(plan={"phase": "train", "call": 13, "do": "SIGSTOP"})
    while "trap:" not in job.stdout:
        assert job.poll(timeout_s=0.02) is None, job.stderr
    ballast = lab.jobs.seen(series.output_dir) / "ballast"
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert os.statvfs(ballast).f_bavail == 0
    job.signal(signal.SIGCONT)
    assert job.wait() == 1, job.stderr
    assert series.status["state"] == "failed"
    assert series.status["exit_code"] == 1
    error = job.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "No space left on device" in error
    assert f"{series.output_dir}/train/" in error, "it names the file"
    assert series.position()["epoch"] == 1, "the earlier checkpoint is as it was"
    ballast.unlink()
    job = series.start("resume=auto")
    assert job.wait() == 0, job.stderr
    series.check_equals(lab.undisturbed())


def test_read_only_checkpoints(lab: Lab, mounted: list[Path]) -> None:
    series = lab.series()
    job = series.start(plan={"phase": "train", "call": 13, "do": "SIGTERM"})
    assert job.wait() == 143, job.stderr
    folder = series.output_dir / "train" / series.run.name / "checkpoints"
    lab.jobs.mount("mount", "--bind", str(folder), str(folder))
    mounted.append(folder)
    lab.jobs.mount("mount", "-o", "remount,bind,ro", str(folder))
    job = series.start("resume=auto")
    assert job.wait() == 1, job.stderr
    error = job.stderr.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert "last.ckpt" in error
    assert "Read-only file system" in error
    assert series.status["state"] == "failed"
    assert series.position()["step"] == 13
    assert find_damage(series.run / "checkpoints" / "last.ckpt") is None
    lab.jobs.mount("mount", "-o", "remount,bind,rw", str(folder))
    job = series.start("resume=auto")
    assert job.wait() == 0, job.stderr
    series.check_equals(lab.undisturbed())


def test_read_only_output(lab: Lab, mounted: list[Path]) -> None:
    """Nothing can be written at all, not even a status: one line, exit 2, before any work."""
    series = lab.series()
    mount_tmpfs(lab, series.output_dir, 100 * 1024, mounted)
    job = series.start(plan={"phase": "train", "call": 13, "do": "SIGTERM"})
    assert job.wait() == 143, job.stderr
    lab.jobs.mount("mount", "-o", "remount,ro", str(series.output_dir))
    for job in (series.start(), series.start("resume=auto"), series.resume_by_folder()):
        assert job.wait() == 2, job.stderr
        assert job.stderr.startswith("error: ")
        assert job.stderr.count("\n") == 1, job.stderr
        assert str(series.output_dir) in job.stderr
        assert "written to" in job.stderr
    assert series.status["state"] == "preempted", "as it was"
    lab.jobs.mount("mount", "-o", "remount,rw", str(series.output_dir))
    job = series.start("resume=auto")
    assert job.wait() == 0, job.stderr
    series.check_equals(lab.undisturbed())


def test_a_full_disk_behind_the_output_costs_nothing(lab: Lab) -> None:
    """`train.py … > /dev/full 2> /dev/full`: the last write is that of the interpreter as it ends."""
    full = ["/dev/full", "/dev/full"]
    argv = [*SMALL, "debug=fast", "hydra.run.dir=unseen"]
    pid = lab.jobs.ask(
        task="train",
        argv=argv,
        cwd=str(lab.folder),
        env={"BINVENTORY_ALLOW_TARGETS": "tests."},
        num_ranks=1,
        output=full,
    )
    assert lab.jobs.ask(wait=pid, timeout_s=120) == 0
    assert (lab.jobs.seen(lab.folder / "unseen") / "predictions.csv").exists()
    assert '"state": "done"' in (lab.jobs.seen(lab.folder / "unseen") / "status.json").read_text()
