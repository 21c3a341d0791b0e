"""The README's and the guide's commands and code are executed."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import binventory.models
import binventory.objectives
from binventory.cli import app
from binventory.launch.entry import main
from tests.running import TINY, latest
from tests.sagemaker.local.conftest import CACHE
from tests.wandb.server import ENTITY, WandbServer

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
GUIDE = (ROOT / "docs" / "extend.md").read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[str]:
    lines = [line.split("  #")[0].strip() for block in blocks(text, "bash") for line in block.splitlines()]
    return [line for line in lines if line]


def test_readme_is_short() -> None:
    assert len(README.splitlines()) < 250


def test_readme_make_targets_exist() -> None:
    for command in commands(README):
        if command.startswith("make"):
            done = subprocess.run(
                ["make", "--dry-run", *command.split()[1:]], cwd=ROOT, capture_output=True, check=False
            )
            assert done.returncode == 0, command


@pytest.fixture
def readers_folder(trained: Path, workplace: Path, abid_like: Path) -> Path:
    """A folder in which the README's examples make sense: its photos, its runs."""
    del trained
    inside = workplace / "readme"
    inside.mkdir(exist_ok=True)
    for name in ("photos", "labelled_photos"):
        if not (workplace / name).exists():
            shutil.copytree(abid_like, workplace / name)
    photos = sorted((workplace / "photos" / "bin-images").iterdir())
    rows = [f"{photo},{number % 5 + 1}\n" for number, photo in enumerate(photos)]
    (inside / "photos.csv").write_text("path,quantity\n" + "".join(rows))
    return inside


@pytest.fixture
def abid_like(workplace: Path) -> Path:
    """A small place in the public bucket's layout."""
    folders = [path.parent for path in workplace.glob(".cache/data/synthetic/*/bin-images")]
    return max(folders, key=lambda folder: len(list((folder / "bin-images").iterdir())))


# What a command needs to be quick here, or that this machine does not have.
SMALL = [value for value in TINY if not value.startswith(("data.reader", "trainer.max_epochs"))]
README_LOOKS = [line for line in commands(README) if line.startswith(("binventory compare ", "binventory wandb "))]
README_RUNS = [
    line for line in commands(README) if line.startswith(("python ", "binventory ")) and line not in README_LOOKS
]


def adapted(line: str, run: Path) -> tuple[str, list[str]]:
    """Return task and overrides of a README command, made small; the real data and hardware are replaced, nothing else."""
    words = shlex.split(line.replace("outputs/train/RUN", str(run)))
    if words[-1].startswith("resume_sweep="):  # so does a sweep: that of the README's command before
        (sweep,) = Path("outputs/sweeps").glob("*")
        return "train", [f"resume_sweep={sweep}"]
    words = [word.replace("n_trials=20", "n_trials=2") for word in words]
    if f"resume={run}" in words:  # a resumed run keeps its own command, which is small
        return "train", [word.replace("max_epochs=30", "max_epochs=3") for word in words[2:]]
    task = words[1].removesuffix(".py") if words[0] == "python" else words[1]
    overrides = words[2:]
    if task == "evaluate":
        overrides[0] = f"run={overrides[0]}"
    if "trainer=gpu" in overrides or (
        "data=abid" in overrides and not any("data.source" in word for word in overrides)
    ):
        overrides += ["trainer.accelerator=auto"] if "trainer=gpu" in overrides else []
        overrides += ["data.source=../photos", "data.limit=200"]
    if task == "train":
        # One epoch shows that the command runs; the last word on the line wins.
        overrides += ["trainer.max_epochs=1"]
        overrides += [word for word in SMALL if word.split("=")[0] not in {given.split("=")[0] for given in overrides}]
        if not any(given.startswith("debug=") for given in overrides):
            overrides += ["debug=fast"]
        if not any(given.startswith("data") for given in words):
            overrides += TINY[:2]
        overrides += ["model.weights=none"] if not any("weights" in given for given in words) else []
    return task, overrides


@pytest.mark.parametrize(
    "line", [pytest.param(line, marks=[pytest.mark.long] if "sagemaker" in line else []) for line in README_RUNS]
)
def test_readme_command(
    line: str,
    readers_folder: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(readers_folder)
    if "sagemaker" in line:  # the training toolkit's environment is made once for this machine
        monkeypatch.setenv("BINVENTORY_CACHE_DIR", str(CACHE))
    run = trained
    if "resume=outputs" in line:
        run = Path(shutil.copytree(trained, tmp_path / "stopped"))
        (run / "status.json").write_text(json.dumps({"state": "preempted", "task": "binventory.tasks.train:run"}))
    task, overrides = adapted(line, run)
    if "--help" in overrides:
        overrides = ["--help"]
    expected = {"model=resent18": 2, "check=true": 0, "--help": 0}
    code = next((code for word, code in expected.items() if word in line), None)
    if code is None:
        main(task, overrides)
        said = "sweep folder: " if "-m" in overrides or "resume_sweep" in line else "run folder: "
        assert said in capfd.readouterr().out or task in ("predict", "prepare")
        return
    with pytest.raises(SystemExit) as exit_:
        main(task, overrides)
    assert exit_.value.code == code
    if code == 2:
        promised = next(row for row in README.splitlines() if row.startswith(f"{line} ")).split("# ", 1)[1]
        assert promised.strip() == capfd.readouterr().err.strip()


@pytest.mark.parametrize("line", README_LOOKS)
def test_readme_command_on_runs(
    line: str, readers_folder: Path, wandb_server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On what the README's commands before it left behind."""
    monkeypatch.chdir(readers_folder)
    wandb_server.add_project(ENTITY, "binventory")
    (with_wandb,) = {path.parent for path in Path("outputs/train").glob("*/wandb")}
    sweep = min(Path("outputs/sweeps").iterdir())
    words = shlex.split(line.replace("outputs/train/RUN", str(with_wandb)).replace("outputs/sweeps/SWEEP", str(sweep)))
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 0, done.output


@pytest.fixture
def guide(tmp_path: Path, abid_like: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The guide's files where it says they are; those of the package lie beside it, in a folder of the same package."""
    monkeypatch.chdir(tmp_path)
    for block in blocks(GUIDE, "python") + blocks(GUIDE, "yaml"):
        path = Path(block.splitlines()[0].removeprefix("# "))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block)
    for package in ("models", "objectives"):
        monkeypatch.setattr(
            getattr(binventory, package), "__path__",
            [*getattr(binventory, package).__path__, str(tmp_path / "src" / "binventory" / package)],
        )  # fmt: skip
    (tmp_path / "my" / "photos").mkdir()
    for number, photo in enumerate(sorted((abid_like / "bin-images").iterdir())[:150]):
        shutil.copy(photo, tmp_path / "my" / "photos" / f"{photo.stem}_{number % 5 + 1}.jpg")
    return tmp_path


@pytest.mark.parametrize("line", commands(GUIDE))
def test_guide_command(
    line: str, guide: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(line)
    while "=" in words[0]:
        monkeypatch.syspath_prepend(guide / words.pop(0).split("=")[1])
    assert words[:2] == ["python", "train.py"]
    shared = [f"paths.data_dir={workplace / '.cache' / 'data'}", f"paths.cache_dir={workplace / '.cache'}"]
    small = TINY[:2] if "data=flat" not in words else []
    main("train", [*words[2:], *shared, *small])
    assert "run folder: " in capfd.readouterr().out
    run = latest(guide, "train")
    chosen = dict(word.split("=", 1) for word in words[2:] if "=" in word)
    config = (run / "config.yaml").read_text()
    for group in ("model", "objective"):
        if group in chosen:  # the example's own, not a preset that has its name
            assert chosen[group] in config
    main("predict", [f"run={run}", f"input={guide / 'my' / 'photos'}"])
    assert "150 of 150 photos predicted" in capfd.readouterr().out
    sys.modules.pop("flat", None)


def test_every_test_that_the_reliability_page_names_is_there() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    rows = [
        line.rsplit("|", 2)[1] for line in page.splitlines() if line.startswith("| ") and "`" in line.rsplit("|", 2)[1]
    ]
    assert len(rows) > 25
    for row in rows:
        named = re.findall(r"`(?:([\w/]+\.py)(?:::)?)?(\w*)`", row)
        assert named, row
        content = ""
        for file, test in named:
            content = (ROOT / "tests" / file).read_text() if file else content
            assert not test or f"def {test}(" in content, f"{file} {test}"
