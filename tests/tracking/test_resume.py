"""Which run `resume` goes on with, and under which command."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from binventory.launch.entry import main
from binventory.tracking.run_folder import RunFolder
from tests.running import TINY

OWN = [*TINY, "seed=77", "callbacks.progress.every_n_steps=1"]
Train = Callable[..., tuple[int, str]]


@pytest.fixture
def train(workplace: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Train]:
    """Run train.py in this process with its run folders below `tmp_path`; return its exit code and what it said."""
    before = Path.cwd()
    os.chdir(workplace)

    def start(*overrides: str) -> tuple[int, str]:
        code = 0
        try:
            main("train", [f"paths.output_dir={tmp_path}", *overrides])
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        said = capfd.readouterr()
        return code, said.out + said.err

    yield start
    os.chdir(before)


def runs(tmp_path: Path) -> list[Path]:
    return sorted(tmp_path.glob("train/*"))


def stop_in_epoch(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the run that comes next get a SIGTERM in an epoch, counted from 1."""
    from binventory.models.module import BinCounter

    step = BinCounter.training_step

    def signalled(self: BinCounter, batch: object, batch_idx: int) -> object:
        if self.current_epoch + 1 == epoch and batch_idx == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch, batch_idx)  # type: ignore[arg-type]

    monkeypatch.setattr(BinCounter, "training_step", signalled)


@pytest.fixture
def stopped(train: Train, tmp_path: Path) -> Path:
    """Run folder of a training that was preempted in its second epoch."""
    with pytest.MonkeyPatch.context() as patch:
        stop_in_epoch(2, patch)
        code, said = train(*OWN)
    assert code == 143
    (folder,) = runs(tmp_path)
    assert f"resume={folder} goes on with it" in said
    return folder


def as_if_killed(folder: Path) -> None:
    """Let a run folder say what it says after SIGKILL."""
    path = folder / "status.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"state": "running", "ended": None}))


def test_a_folder_of_ones_own_is_resumed_and_never_overwritten(train: Train, tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    named = [*TINY, f"hydra.run.dir='{folder}/'"]
    with pytest.MonkeyPatch.context() as patch:
        stop_in_epoch(2, patch)
        assert train(*named)[0] == 143
    as_if_killed(folder)
    files = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, said = train(*named)
    assert (code, said.count("\n")) == (2, 1), said
    assert (
        f"hydra.run.dir={folder}: holds a run (config.yaml), which is not overwritten; resume=auto resumes it" in said
    )
    code, said = train(*named, "resume=auto", "seed=3")
    assert code == 2, said
    assert "seed: 0 -> 3" in said
    assert files == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, said = train(*named, "resume=auto")
    assert code == 0, said
    assert f"going on with {folder}" in said
    assert len((folder / "metrics.csv").read_text().splitlines()) == 3
    assert train(*named, "resume=auto") == (
        0,
        f"resume={folder}: this run is done; nothing is left to do\n",
    )
    assert "; name another folder" in train(*named)[1]
    assert "stays in its own folder" in train(f"resume={folder}", f"hydra.run.dir={tmp_path}/other")[1]
    assert runs(tmp_path) == []


@pytest.mark.parametrize("moved", ["hydra.job.name=mine", "hydra.run.dir='${paths.output_dir}/mine/${now:%s%f}'"])
def test_auto_looks_where_the_run_would_lie(moved: str, train: Train, tmp_path: Path) -> None:
    command = [*TINY, "debug=fast", moved, "resume=auto"]
    assert train(*command)[0] == 0
    (folder,) = tmp_path.glob("mine/*")
    as_if_killed(folder)
    code, said = train(*command)
    assert code == 0
    assert f"going on with {folder}" in said
    assert list(tmp_path.glob("mine/*")) == [folder]


def test_a_folder_that_other_files_of_a_run_lie_in_is_refused(train: Train, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine: 1\n")
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "sweep.json").write_text("{}")
    for folder, found in ((tmp_path, "a run (config.yaml)"), (tmp_path / "sweep", "a sweep (sweep.json)")):
        code, said = train(*TINY, f"hydra.run.dir={folder}", "resume=auto")
        assert code == 2
        assert f"hydra.run.dir={folder}: holds {found}" in said
    assert (tmp_path / "config.yaml").read_text() == "mine: 1\n"
    with pytest.raises(SystemExit, match="2"):
        main("predict", [f"run={trained}", f"input={tmp_path}", f"hydra.run.dir={trained}"])
    assert json.loads((trained / "status.json").read_text())["task"] == "binventory.tasks.train:run"


def cpu_has_bfloat16(monkeypatch: pytest.MonkeyPatch, *, it_has: bool) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": it_has}, raising=False)


def test_on_a_machine_of_another_precision_it_says_so(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        stop_in_epoch(2, patch)
        cpu_has_bfloat16(patch, it_has=True)
        code, _ = train(*OWN)
    assert code == 143
    cpu_has_bfloat16(monkeypatch, it_has=False)
    code, said = train(*OWN, "resume=auto")
    assert code == 0
    assert "warning: this run was trained in bf16-mixed, and goes on in 32-true" in said
    (folder,) = runs(tmp_path)
    provenance = json.loads((folder / "provenance.json").read_text())
    attempts = [*provenance["earlier_attempts"], provenance]
    assert [attempt["device"]["precision"] for attempt in attempts] == ["bf16-mixed", "32-true"]


def test_the_same_command_with_auto_is_enough(train: Train, stopped: Path, tmp_path: Path) -> None:
    code, said = train(*OWN, "resume=auto")
    assert code == 0
    assert f"resume=auto: going on with {stopped}" in said
    assert "epoch 2/2 step 4/6" in said
    assert "epoch 1/" not in said, "what was done is not done again"
    assert "warning" not in said
    assert runs(tmp_path) == [stopped]
    assert json.loads((stopped / "status.json").read_text())["state"] == "done"
    provenance = json.loads((stopped / "provenance.json").read_text())
    assert len(provenance["earlier_attempts"]) == 1
    code, said = train(*OWN, "resume=auto")
    assert code == 0
    assert "this is a new one" in said, "a done run is not gone on with"
    assert len(runs(tmp_path)) == 2


def test_a_named_run_goes_on_with_its_own_command(train: Train, stopped: Path, tmp_path: Path) -> None:
    assert train(f"resume={stopped}", "data.num_workers=0")[0] == 0
    assert runs(tmp_path) == [stopped]
    assert json.loads((stopped / "metrics.json").read_text())["epochs"] == 2
    code, said = train(f"resume={stopped}")
    assert (code, "this run is done" in said) == (0, True)


def test_auto_passes_over_other_configs_and_running_ones(train: Train, stopped: Path, tmp_path: Path) -> None:
    code, said = train(*OWN, "resume=auto", "optimizer.lr=0.01", "debug=fast")
    assert (code, "this is a new one" in said) == (0, True)
    holder = RunFolder(stopped).open()
    try:
        code, said = train(*OWN, "resume=auto", "debug=fast")
        assert (code, "this is a new one" in said) == (0, True)
        code, said = train(f"resume={stopped}")
        assert code == 2
        assert f"process {os.getpid()} writes this run" in said
    finally:
        holder.close()
    assert (stopped / "status.json").read_text().count("preempted") == 1


def test_auto_takes_the_newest(train: Train, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        stop_in_epoch(1, patch)
        assert train(*OWN)[0] == 143
    newest = next(folder for folder in runs(tmp_path) if folder != stopped)
    # Names and file times lie; what counts is when a run was started.
    os.utime(stopped / "provenance.json")
    code, said = train(*OWN, "resume=auto", f"paths.output_dir={tmp_path}", "logger=csv")
    assert code == 0
    assert f"going on with {newest}" in said


@pytest.mark.parametrize(
    ("override", "key"),
    [("optimizer.lr=0.01", "optimizer.lr: 0.2 -> 0.01"), ("seed=78", "seed: 77 -> 78"), ("callbacks=ema", "callbacks.ema.decay")],
)  # fmt: skip
def test_a_change_of_the_maths_is_refused_and_named(
    train: Train, stopped: Path, tmp_path: Path, override: str, key: str
) -> None:
    before = {path.name: path.read_bytes() for path in stopped.iterdir() if path.is_file()}
    code, said = train(f"resume={stopped}", override)
    assert code == 2
    assert len(said.strip().splitlines()) == 1
    assert key in said
    assert "resume_changed=true" in said
    assert {path.name: path.read_bytes() for path in stopped.iterdir() if path.is_file()} == before


def test_a_change_of_the_maths_when_told_begins_the_epoch_again(train: Train, stopped: Path) -> None:
    code, said = train(f"resume={stopped}", "optimizer.lr=0.01", "trainer.max_epochs=3", "resume_changed=true")
    assert code == 0
    assert "optimizer.lr: 0.2 -> 0.01" in said
    assert "epoch 2/3 step 1/6" in said
    assert "epoch 3/3 step 6/6" in said


def test_a_harmless_change_is_said_and_taken(train: Train, stopped: Path) -> None:
    code, said = train(f"resume={stopped}", "data.num_workers=1")
    assert code == 0
    assert "changed since the run was started: data.num_workers: 0 -> 1" in said


def test_other_photos_are_refused(train: Train, stopped: Path, tmp_path: Path) -> None:
    """The config says the same, the photos are others: only the checkpoint's fingerprint of them tells."""
    checkpoint = stopped / "checkpoints" / "last.ckpt"
    content = torch.load(checkpoint, weights_only=True)
    content["binventory"]["data"] = "0" * 64
    torch.save(content, checkpoint)
    code, said = train(f"resume={stopped}")
    assert code == 2
    assert "the photos, their quantities or their split differ" in said


@pytest.mark.parametrize("name", ["not_there", "empty"])
def test_what_is_no_run_is_one_line(train: Train, tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    code, said = train(f"resume={tmp_path / name}")
    assert code == 2
    assert said.startswith(f"error: resume={tmp_path / name}")
    assert len(said.strip().splitlines()) == 1


def test_an_unreadable_neighbour_does_not_stop_auto(train: Train, stopped: Path, tmp_path: Path) -> None:
    broken = tmp_path / "train" / "9999-broken"
    broken.mkdir()
    for name in ("provenance.json", "config.yaml", "status.json"):
        (broken / name).write_text("{")
    code, said = train(*OWN, "resume=auto")
    assert code == 0
    assert f"passes over {broken}" in said
    assert f"going on with {stopped}" in said


def test_early_stop_is_not_undone(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after it stopped early and before its test: the run has no epoch left to do."""
    early = ["callbacks=early_stopping", "callbacks.early_stopping.patience_epochs=1", "optimizer.lr=1e-9"]
    command = [*OWN, *early, "trainer.max_epochs=9"]
    from binventory.models.module import BinCounter

    def interrupted(self: BinCounter, batch: object, batch_idx: int) -> None:
        raise RuntimeError("killed in the test")

    with monkeypatch.context() as patch:
        patch.setattr(BinCounter, "test_step", interrupted)
        assert train(*command)[0] == 1
    code, said = train(*command, "resume=auto")
    assert code == 0
    assert " step " not in said
    assert 1 < json.loads((runs(tmp_path)[0] / "metrics.json").read_text())["epochs"] < 9
