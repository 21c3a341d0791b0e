"""Hydra's own features, the same in a single run, in -m by every launcher and sweeper, over ranks, and on resume.

| feature                                   | single | local | basic | Optuna | ranks | sagemaker | resume | resume_sweep |
| ----------------------------------------- | ------ | ----- | ----- | ------ | ----- | --------- | ------ | ------------ |
| hydra.job.env_set, env_copy               | yes    | yes   | yes   | yes    | yes   | yes       | again  | again        |
| hydra.callbacks                           | yes    | yes   | yes   | yes    | yes   | no        | again  | again        |
| hydra.job_logging                         | yes    | yes   | yes   | yes    | yes   | no        | again  | again        |
| hydra.verbose                             | yes    | yes   | yes   | yes    | yes   | no        | kept   | again        |
| hydra.job.name                            | yes    | yes   | yes   | yes    | yes   | yes       | kept   | again        |
| hydra.job.chdir=true                      | no     | no    | no    | no     | no    | no        | no     | no           |
| ${hydra:job.num}                          | no     | yes   | yes   | yes    | yes   | yes       | kept   | kept         |
| ${hydra:runtime.choices.model}            | yes    | yes   | yes   | yes    | yes   | yes       | kept   | kept         |
| override_dirname in a folder's name       | yes    | yes   | yes   | yes    | yes   | yes       | kept   | again        |
| shuffle()                                 |        | yes   | yes   | yes    | yes   | yes       |        | kept         |
| --config-dir "it's conf"                  | yes    | yes   | yes   | yes    | yes   | yes       | again  | again        |

yes: honoured. no: refused in one line. kept: taken from the folder. again: refused in one line that names it, unless it
is given again: it can run anything, and a folder may come from somebody else.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from binventory.config.compose import value_of
from binventory.config.quoting import override_text, pasteable
from binventory.launch.entry import main
from tests.launch.noting import VARIABLE, noted
from tests.running import TINY
from tests.sweeps.running import Outcome, fails_in_one_line, sweep_here

pytestmark = pytest.mark.usefixtures("job_server")

HERE = "tests.launch.noting"
SMALL = [*TINY, "trainer.max_epochs=1", "trainer.limit_train_batches=1"]
AGAIN = [
    "+hydra.job.env_set.{variable}=set",
    "+hydra.callbacks.hook._target_={here}.Hook",
    "+hydra.callbacks.hook.path={path}",
]


def surroundings(path: Path) -> list[str]:
    """What only the user's own command line may say."""
    return [text.format(variable=VARIABLE, here=HERE, path=path) for text in AGAIN]


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder may name the objectives of these tests. How this process logs is put back: Hydra never does."""
    monkeypatch.setenv("BINVENTORY_ALLOW_TARGETS", "tests.")
    root, own = logging.getLogger(), logging.getLogger("noting")
    before = root.level, root.handlers[:], own.level
    yield
    root.handlers[:] = before[1]
    root.setLevel(before[0])
    own.setLevel(before[2])


@pytest.fixture
def words(tmp_path: Path, workplace: Path) -> list[str]:
    """A command that uses all features of the table at once."""
    folder = workplace / "it's conf"
    (folder / "model").mkdir(parents=True, exist_ok=True)
    shared = (Path(__file__).parents[2] / "configs" / "model" / "tiny.yaml").read_text()
    (folder / "model" / "mine.yaml").write_text(shared)
    return [
        "--config-dir", str(folder), *SMALL, "model=mine", *surroundings(tmp_path / "notes"), "hydra.verbose=[noting]",
        "hydra.job.name=mine", f"objective._target_={HERE}.Noting", f"+objective.path={tmp_path / 'notes'}",
        "+objective.model=${hydra:runtime.choices.model}", "hydra.job.config.override_dirname.exclude_keys="
        "[data.reader.num_bins,data.reader.photo_size,data.image_size,data.batch_size,data.num_workers,model,"
        "trainer.max_epochs,trainer.limit_train_batches,objective._target_,objective.path,objective.model,objective.num]",
    ]  # fmt: skip


def check_job(run: Path, notes: Path, *, num: int | None, pid: int | None, ranks: int = 1) -> None:
    """Fail unless a job found all that its command asked for."""
    found = noted(notes)
    jobs = found["job"][-ranks:]
    assert [{**job, "pid": 0} for job in jobs] == [
        {"model": "mine", "num": num, "rank": job["rank"], "variable": "set", "pid": 0} for job in jobs
    ]
    assert {job["rank"] for job in jobs} == {str(rank) for rank in range(ranks)}
    (start, end) = (found[name][-1] for name in ("job_start", "job_end"))
    assert start["variable"] == "set"
    assert start["output_dir"] == str(run.absolute())
    value = json.loads((run / "metrics.json").read_text())["val"]["accuracy"]
    assert (end["status"], end["value"]) == ("COMPLETED", value)
    assert start["pid"] == end["pid"]
    assert (start["pid"] == os.getpid()) == (pid == os.getpid())
    assert "noted by debug()" in (run / "mine.log").read_text()
    assert OmegaConf.load(run / "config.yaml").objective.model == "mine"


def run_single(workplace: Path, *overrides: str) -> int:
    before = Path.cwd()
    os.chdir(workplace)
    try:
        main("train", list(overrides))
    except SystemExit as left:
        return int(left.code or 0)
    finally:
        os.chdir(before)
    return 0


def test_single_run_and_resume(
    workplace: Path, tmp_path: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "its, odd=name"
    place = override_text("hydra.run.dir", f"{folder}/${{hydra:job.override_dirname}}").replace("\\${", "${")
    assert run_single(workplace, *words, place, "seed=3") == 0
    run = folder / "seed=3"
    check_job(run, tmp_path / "notes", num=None, pid=os.getpid())
    assert noted(tmp_path / "notes")["run_end"][0]["calls"] == ["run_start", "job_start", "job_end", "run_end"]
    again = ["--config-dir", words[1], override_text("resume", run)]
    capsys.readouterr()  # how far it got with its photos, on a slow machine
    for number, key in ((0, "env_set"), (1, "callbacks")):
        line = fails_in_one_line(capsys, workplace, *again, *surroundings(tmp_path / "notes")[:number])
        assert f"hydra.{'job.' if number == 0 else ''}{key}" in line
        assert "give it again" in line
    changed = ["trainer.limit_train_batches=2", "resume_changed=true"]
    assert run_single(workplace, *again, *surroundings(tmp_path / "notes"), *changed) == 0
    check_job(run, tmp_path / "notes", num=None, pid=os.getpid())
    assert (run / "mine.log").read_text().count("noted by debug()") == 2, "hydra.verbose is kept"


SUBDIR = "hydra.sweep.subdir='${hydra:job.num} ${hydra:job.override_dirname}'"
NUM = "+objective.num=${hydra:job.num}"


def check_sweep(outcome: Outcome, notes: Path, seeds: list[int], *, is_here: bool, ranks: int = 1) -> None:
    assert outcome.exit_code == 0
    for number, seed in enumerate(seeds):
        own = outcome.folder / f"{number} seed={seed}"
        assert OmegaConf.load(own / "config.yaml").seed == seed
        assert OmegaConf.load(own / "config.yaml").objective.num == number
    check_job(own, notes, num=number, pid=os.getpid() if is_here else None, ranks=ranks)
    calls = noted(notes)
    assert calls["multirun_start"][0]["pid"] == os.getpid()
    assert len(calls["job_start"]) == len(calls["job_end"]) == len(seeds)


@pytest.mark.parametrize(
    ("choice", "is_here", "ranks"),
    [
        ("hydra/launcher=local", False, 1),
        pytest.param("hydra/launcher=basic", True, 1, marks=pytest.mark.long),
        pytest.param("hydra/sweeper=basic", False, 1, marks=pytest.mark.long),
        pytest.param("hydra/sweeper=binventory_optuna hydra.sweeper.sampler=grid", False, 1, marks=pytest.mark.long),
        pytest.param("trainer=ddp_cpu", False, 2, marks=pytest.mark.long),
    ],
)
def test_sweeps(choice: str, is_here: bool, ranks: int, workplace: Path, tmp_path: Path, words: list[str]) -> None:
    exclude = [text.replace("[data.reader", "[trainer,data.reader") for text in words]
    outcome = sweep_here(workplace, "-m", *choice.split(), *exclude, SUBDIR, NUM, "seed=5")
    check_sweep(outcome, tmp_path / "notes", [5], is_here=is_here, ranks=ranks)


@pytest.mark.long
def test_a_shuffled_sweep_goes_on_in_its_order(
    workplace: Path, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first = sweep_here(workplace, "-m", *words, NUM, "seed=shuffle(range(1,7))", "debug=fast")
    order = [job["overrides"] for job in first.jobs]
    record = first.record
    (first.folder / "1" / "status.json").unlink()
    record["jobs"][1] |= {"state": "queued", "value": None}
    (first.folder / "sweep.json").write_text(json.dumps(record))
    again = [*words[:2], override_text("resume_sweep", first.folder)]
    capsys.readouterr()
    assert "not taken from a file" in fails_in_one_line(capsys, workplace, *again)
    given_again = [text for text in [*words, NUM] if text.startswith(("+hydra.", "hydra.")) or "${" in text]
    second = sweep_here(workplace, *again, *given_again)
    assert second.exit_code == 0
    assert [sorted(job["overrides"]) for job in second.jobs] == [sorted(overrides) for overrides in order]
    assert second.states == ["done"] * 6


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("hydra.job.chdir=true", "hydra.job.chdir=true"),
        ("-m hydra.job.chdir=true seed=1,2", "hydra.job.chdir=true"),
        ("-m hydra/launcher=basic hydra.job.chdir=true", "hydra.job.chdir=true"),
        ("seed=${hydra:job.num}", "a single run has no hydra.job.num"),
        ("+hydra.callbacks.hook._target_=tests.launch.noting.Hoook", "did you mean Hook?"),
        ("+hydra.callbacks.hook={path:x}", "hydra.callbacks.hook: needs a _target_"),
        ("+hydra.job.env_set.X=${oc.env:NOT_THERE}", "hydra.job.env_set.X"),
        (r"+hydra.job.env_set={a\=b:c}", "hydra.job.env_set.a=b='c'"),
        ("hydra.job.env_copy=[NOT_THERE]", "NOT_THERE: no such environment variable"),
        ("-m hydra/launcher=sagemaker_local hydra.verbose=true", "hydra.verbose=true"),
        pytest.param("-m hydra/launcher=sagemaker_local hydra/job_logging=none", "job_logging", marks=pytest.mark.long),
        (
            "-m hydra/launcher=sagemaker_local +hydra.callbacks.hook._target_=tests.launch.noting.Hook"
            " +hydra.callbacks.hook.path=notes",
            "Hook.on_job_start",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_in_one_line(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in fails_in_one_line(capsys, tmp_path, *line.split())
    assert not list(tmp_path.rglob("config.yaml"))


def test_variables_are_read_while_the_config_is_resolved(workplace: Path, tmp_path: Path) -> None:
    """By the check of the command line, and by each job."""
    told = ["+hydra.job.env_set.NOTED_SEED=17", "seed=${oc.env:NOTED_SEED}", "check=true"]
    assert run_single(workplace, *told) == 0
    assert "NOTED_SEED" not in os.environ


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
ODD = st.text("a1'\"\\$ {}=,()[]:~*?|#&;<>é\n\t.-/@%+!`", min_size=1, max_size=12)


@settings(deadline=None, max_examples=150)
@given(NAMES | ODD | st.sampled_from(["null", "true", "1e3", "${oc.env:HOME}", "\\${x}", "it's conf", "a\\", "~"]))
def test_a_printed_override_can_be_pasted_whatever_it_names(name: str) -> None:
    (word,) = shlex.split(pasteable("resume", name))
    assert value_of(word) == name


@pytest.mark.long
def test_the_line_of_a_stopped_run_can_be_pasted(
    workplace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "it's $HOME, {a}=b "
    command = [*SMALL, "objective._target_=tests.sweeps.unruly.Unruly", "+objective.does=interrupt"]
    assert run_single(workplace, *command, override_text("hydra.run.dir", folder)) == 130
    (hint,) = re.findall(r"; (.*) goes on with it", capsys.readouterr().err)
    (word,) = shlex.split(hint)
    assert value_of(word) == str(folder)
    assert run_single(workplace, word, "check=true") == 0
