"""Folders that somebody sent: nothing is written through a link in them, and no name in them leads elsewhere."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from binventory.data.cache.build import build_rows
from binventory.data.cache.pack import PHOTOS, Pack
from binventory.errors import InputError
from binventory.files import open_own, refuse_links
from binventory.launch.entry import main
from binventory.launch.spec import JobSpec
from binventory.tracking.run_folder import RunFolder, request_prune
from binventory.tracking.sweep_record import SweepRecord
from binventory.tracking.wandb_sync import sync
from tests.security.payload import one_line

KINDS: dict[str, Callable[[Path, Path], None]] = {
    "a symbolic link": lambda path, victim: path.symlink_to(victim),
    "a hard link": lambda path, victim: path.hardlink_to(victim),
    "no regular file": lambda path, _: os.mkfifo(path),
}
# Of our own, of Lightning, of TensorBoard, of W&B, of Hydra, of the profiler.
FILES = [
    ".reserve", ".lock", ".prune", "config.yaml", "status.json", "metrics.csv", "metrics.json", "predictions.csv", "provenance.json",
    "trace.json", "bottlenecks.json", "train.log", "output.log", "wandb.json", "sagemaker.json", "job.json", "profiler.txt",
    ".hydra/overrides.yaml", "bundle/weights.safetensors", "wandb/offline-run-1/run.wandb", "tensorboard/events.out", "0/status.json",
]  # fmt: skip


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text("precious")
    return path


@pytest.fixture
def sent(trained: Path, tmp_path: Path) -> Path:
    """A run that was stopped, as it would come by mail."""
    shutil.copytree(trained, tmp_path / "sent", symlinks=True)
    (tmp_path / "sent" / "status.json").write_text(
        json.dumps({**json.loads((trained / "status.json").read_text()), "state": "preempted"})
    )
    return tmp_path / "sent"


def fails(capsys: pytest.CaptureFixture[str], task: str, *overrides: str) -> str:
    """Run a command that must fail in one line, and return the line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main(task, list(overrides))
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def content(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.lstat().st_ino, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FILES)
def test_a_folder_with_a_link_in_it_is_not_written_to(name: str, kind: str, tmp_path: Path, victim: Path) -> None:
    folder = tmp_path / "run"
    (folder / name).parent.mkdir(parents=True)
    KINDS[kind](folder / name, victim)
    before = content(folder)
    with pytest.raises(InputError) as error:
        RunFolder(folder).open()
    assert one_line(error.value).startswith(f"{folder / name}: is {kind}")
    assert content(folder) == before
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["checkpoints", "bundle", "wandb", "0", "tensorboard"])
def test_nor_through_a_folder_that_is_a_link(name: str, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="a symbolic link"):
        RunFolder(tmp_path / "run").open()


def test_links_that_belong_there_are_taken(tmp_path: Path) -> None:
    """W&B's own to its newest files, several names of one checkpoint, and a virtual environment where a run is at home."""
    attempt = tmp_path / "wandb" / "offline-run-1"
    attempt.mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").symlink_to("offline-run-1")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_text("x")
    (tmp_path / "checkpoints" / "best.ckpt").hardlink_to(tmp_path / "checkpoints" / "last.ckpt")
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "python").symlink_to("/bin/true")
    folder = RunFolder(tmp_path).open()
    folder.write_status("running")
    folder.close()
    (tmp_path / "wandb" / "latest-run").unlink()
    (tmp_path / "wandb" / "latest-run").symlink_to("../..")
    with pytest.raises(InputError, match="latest-run: is a symbolic link"):
        refuse_links(tmp_path)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_in_place_is_judged_when_it_is_opened(kind: str, tmp_path: Path, victim: Path) -> None:
    """Where the folder was whole when it was looked at."""
    KINDS[kind](tmp_path / ".prune", victim)
    with pytest.raises(OSError):  # noqa: PT011  each kind has its own number
        open_own(tmp_path / ".prune", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError):  # noqa: PT011
        request_prune(tmp_path)


@pytest.mark.parametrize(
    ("name", "kind"), [(".reserve", "a symbolic link"), ("train.log", "no regular file"), (".lock", "a hard link")]
)
def test_resuming_a_sent_run_writes_nowhere_else(
    name: str, kind: str, sent: Path, victim: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(sent.parent)
    (sent / name).unlink(missing_ok=True)
    KINDS[kind](sent / name, victim)
    before = content(sent)
    assert f"sent/{name}: is {kind}" in fails(capsys, "train", f"resume={sent}")
    assert content(sent) == before
    assert victim.read_text() == "precious"


def test_a_folder_that_is_named_for_a_new_run_or_sweep_is_looked_at_too(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sent").mkdir()
    (tmp_path / "sent" / "train.log").symlink_to(victim)
    assert "train.log: is a symbolic link" in fails(capsys, "train", "debug=fast", "hydra.run.dir=sent")
    assert "train.log: is a symbolic link" in fails(capsys, "train", "-m", "debug=fast", "hydra.sweep.dir=sent")
    assert victim.read_text() == "precious"


def test_wandb_sync_writes_nowhere_else(tmp_path: Path, victim: Path) -> None:
    attempt = tmp_path / "run" / "wandb" / "offline-run-20260101_000000-abcd"
    attempt.mkdir(parents=True)
    (attempt / "run-abcd.wandb.synced").symlink_to(victim)
    with pytest.raises(InputError, match="synced: is a symbolic link"):
        sync([tmp_path / "run"])


@pytest.mark.parametrize("name", ["", "photos.u8", "blocks.txt", "lock", "meta.json"])
def test_a_cache_is_not_built_through_a_link(name: str, tmp_path: Path) -> None:
    pack = Pack.at(tmp_path / "cache", PHOTOS, {"a": 1}, (2, 4, 4, 3))
    place = pack.folder / name
    place.parent.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    place.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is a symbolic link"):
        build_rows(pack, lambda _: pytest.fail("nothing is made"), 1, "")
    assert not list((tmp_path / "elsewhere").iterdir())


# Names from files


def sweep_with(folder: Path, **job: Any) -> Path:
    whole = {
        "job": 0, "overrides": ["seed=0"], "state": "failed", "run_dir": None, "exit_code": 1, "error": None, "value": None,
        "metrics": {}, "started": None, "ended": None,
    }  # fmt: skip
    record = {
        "version": 2,
        "task": "train",
        "started": "2026-01-01T00:00:00+00:00",
        "overrides": ["debug=fast", "seed=0"],
    }
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps({**record, "jobs": [{**whole, **job}]}))
    return folder


@pytest.mark.parametrize(
    "job",
    [
        {"run_dir": "../victim"}, {"run_dir": "{victim}"}, {"run_dir": "."}, {"run_dir": ""}, {"run_dir": "link/0"}, {"run_dir": 3},
        {"run_dir": "\0"}, {"job": "../victim"}, {"job": -1}, {"job": True}, {"overrides": ["hydra.sweep.subdir=../victim"]},
        {"overrides": ["hydra.callbacks.x={_target_:os.system}"]}, {"overrides": "seed=0"}, {"metrics": []},
    ],
)  # fmt: skip
def test_a_sent_sweep_names_no_folder_but_its_own(
    job: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / "status.json").write_text('{"state": "failed"}')
    if job.get("run_dir") == "{victim}":
        job = {"run_dir": str(tmp_path / "victim")}
    sweep = sweep_with(tmp_path / "sweep", **job)
    if job.get("run_dir") == "link/0":
        (tmp_path / "victim" / "0").mkdir()
        (sweep / "link").symlink_to(tmp_path / "victim")
    before = content(tmp_path)
    line = fails(capsys, "train", f"resume_sweep={sweep}")
    assert "sweep.json: " in line
    assert content(tmp_path) == before


def test_a_sweep_that_looked_for_its_runs_looks_again(tmp_path: Path) -> None:
    """Under resume=auto jobs go on with runs anywhere below paths.output_dir; the file may not choose which."""
    sweep = sweep_with(tmp_path / "sweep", run_dir=str(tmp_path / "run"))
    record = json.loads((sweep / "sweep.json").read_text())
    (sweep / "sweep.json").write_text(json.dumps({**record, "overrides": ["resume=auto"]}))
    read = SweepRecord(sweep, "train", [], None)
    read.read_jobs()
    assert read.jobs[0].run_dir is None


def test_a_job_spec_names_no_folder_but_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from binventory.launch.__main__ import main as launch

    (tmp_path / "sent").mkdir()
    spec = JobSpec("binventory.tasks.train:run", {"seed": 0}, str(tmp_path / "victim"), [])
    spec.save(tmp_path / "sent" / "job.json")
    monkeypatch.setattr("sys.argv", ["launch", str(tmp_path / "sent" / "job.json")])
    assert launch() == 2
    assert "run_dir=" in capsys.readouterr().err
    assert not (tmp_path / "victim").exists()
