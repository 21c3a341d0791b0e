"""Files that are none: pipes, devices, folders and terabytes where a file of a run is read. None hangs, none fills memory."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from binventory.callbacks.checkpoint_file import find_checkpoint, find_damage, read_checkpoint
from binventory.compare.curves import read_curves
from binventory.compare.find import find_runs
from binventory.config.capture import to_plain
from binventory.config.compose import compose_checked
from binventory.config.older import is_older
from binventory.data.cache.pack import read_meta
from binventory.data.scan import load_scan
from binventory.data.sources.imagefolder import _exported_groups
from binventory.errors import UserError
from binventory.launch.spec import JobSpec
from binventory.models.weight_files import read_weights
from binventory.sagemaker.record import read_record, sweep_name
from binventory.serving.bundle import load_bundle
from binventory.tracking.epochs import read_epochs
from binventory.tracking.resume import check_unchanged, find_run, overrides_to_resume
from binventory.tracking.run_folder import RunFolder
from binventory.tracking.sweep_record import read_metrics, read_sweep
from binventory.tracking.wandb_logger import _remembered
from tests.running import TINY
from tests.security.payload import one_line

pytestmark = pytest.mark.timeout(60)


def bind(path: Path) -> None:
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as made:  # its name may have 108 characters
        made.bind(path.name)


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**40)


KINDS: dict[str, Callable[[Path], None]] = {
    "pipe": lambda path: os.mkfifo(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
    "socket": lambda path: bind(path),
    "folder": lambda path: path.mkdir(),
    "terabyte": sparse,
}
# Every file that is read of a folder somebody may have sent, and what reads it.
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "status": ("status.json", lambda run: RunFolder(run).read_status()),
    "lock": (".lock", lambda run: RunFolder(run).writer()),
    "config": ("config.yaml", lambda run: check_unchanged(run, {}, allowed=True)),
    "config version": ("config.yaml", lambda run: is_older(run / "config.yaml")),
    "provenance": ("provenance.json", lambda run: overrides_to_resume(run, "train", [])),
    "comparison": ("config.yaml", lambda run: find_runs([str(run)])),
    "comparison of states": ("status.json", lambda run: find_runs([str(run)])),
    "comparison of figures": ("metrics.json", lambda run: find_runs([str(run)])),
    "curves": ("metrics.csv", lambda run: read_curves(find_runs([str(run)]))),
    "epochs": ("metrics.csv", read_epochs),
    "figures": ("metrics.json", read_metrics),
    "sweep": ("sweep.json", read_sweep),
    "job": ("job.json", lambda run: JobSpec.load(run / "job.json")),
    "training job": ("sagemaker.json", read_record),
    "name of a sweep": ("sagemaker-name.txt", sweep_name),
    "W&B run": ("wandb.json", _remembered),
    "damage": ("checkpoints/last.ckpt", lambda run: find_damage(run / "checkpoints" / "last.ckpt")),
    "checkpoint": ("checkpoints/best.ckpt", lambda run: read_checkpoint(run / "checkpoints" / "best.ckpt")),
    "newest checkpoint": ("checkpoints/last.ckpt", lambda run: find_checkpoint(run / "checkpoints")),
    "bundle": ("bundle/bundle.json", load_bundle),
    "weights of a bundle": ("bundle/weights.safetensors", load_bundle),
    "weights": ("w.pth", lambda run: read_weights(run / "w.pth")),
    "safetensors": ("w.safetensors", lambda run: read_weights(run / "w.safetensors")),
    "cache": ("meta.json", read_meta),
    "scan": ("scan.parquet", lambda run: load_scan(run / "scan.parquet")),
    "groups": ("train_meta.csv", lambda run: _exported_groups(run / "train")),
    "configs": ("model/mine.yaml", lambda run: compose_checked("train", [], config_dir=str(run))),
}


@pytest.fixture
def sent(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "outputs" / "train" / "sent"))


@pytest.fixture(autouse=True)
def _memory() -> Iterator[None]:
    """No reader may take a gigabyte more than there is in use."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def replaced(path: Path, kind: str) -> Path:
    """Put what is no file of ours in the place of one."""
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    KINDS[kind](path)
    return path


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", READERS)
def test_what_is_no_file_is_not_read(reader: str, kind: str, sent: Path) -> None:
    name, read = READERS[reader]
    replaced(sent / name, kind)
    with contextlib.suppress(UserError):  # or it goes without, as who reads on while a run is written does
        read(sent)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("reader", ["status", "config", "sweep", "job", "training job", "checkpoint", "weights"])
def test_and_one_line_names_it(reader: str, kind: str, sent: Path) -> None:
    name, read = READERS[reader]
    path = replaced(sent / name, kind)
    with pytest.raises(UserError) as error:
        read(sent)
    assert str(path) in one_line(error.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["config.yaml", "status.json"])
def test_resume_auto_passes_over_what_it_cannot_read(
    name: str, kind: str, sent: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(sent.parents[2])
    (sent / name).unlink()
    KINDS[kind](sent / name)
    assert find_run("train", to_plain(compose_checked("train", TINY)[0]), ["outputs/train/*"]) is None
    said = capsys.readouterr().err
    assert name == "status.json" or f"resume=auto passes over outputs/train/sent/{name}" in said
