"""Run folders and job specs that somebody sent: none runs code, each is refused in one line.

The canary is a folder that the code in the file would make.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from binventory.config.capture import load_config
from binventory.errors import InputError
from binventory.launch.entry import main
from binventory.launch.spec import SECRETS_VARIABLE, JobSpec
from tests.launch.test_runner import PYTHONPATH
from tests.security.payload import Payload, as_pickle, as_zip, one_line

# config.yaml of a run folder


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("data:\n  source: ${oc.env:SECRET}\n", "data.source='${oc.env:SECRET}'"),
        ("a:\n- b\n- x: 's3://${oc.decode:1}'\n", "a.1.x"),
        ("a: ${run_dir:canary,x}\n", "${run_dir:"),
        ("a: '\\${b}'\n", "frozen config"),
        ("a: &x [1]\nb: *x\n", "alias"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n", "alias"),
        ("a: !!python/object/apply:os.mkdir [canary]\n", "not a config"),
        ("a: !!python/object/new:os.mkdir [canary]\n", "not a config"),
        ("a: !!python/name:os.mkdir\n", "not a config"),
        ("- a\n- b\n", "not a config of a run but a list"),
        ("a: [\n", "not a config"),
        ("a: " + "[" * 200_000, "nested"),
        ("".join(" " * depth + "a:\n" for depth in range(900)), "nested"),
        ("a: 1\na: 2\n", "not a config"),
        ("\x00", "not a config"),
        ("a: '" + "x" * 1_100_000 + "'\n", "bytes are no config"),
    ],
)
def test_hostile_config_is_one_line(text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "hush-hush-hush-hush")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(InputError) as error:
        load_config(tmp_path / "config.yaml")
    message = one_line(error.value)
    assert said in message
    assert "hush" not in message
    assert len(message) < 500
    assert not (tmp_path / "canary").exists()


def test_a_config_that_cannot_be_read_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_config(tmp_path / "config.yaml")


# A whole run folder, to be gone on with


@pytest.mark.parametrize(
    "override",
    [
        "+hydra.callbacks.evil={_target_:os.mkdir,path:canary}", "objective={_target_:os.mkdir,path:canary}", "optimizer._target_=evil.Evil",
        "hydra.searchpath=[file://evil]", "data.source=${run_dir:canary,x}",
    ],
)  # fmt: skip
def test_resuming_a_sent_run_runs_nothing_of_it(
    override: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "evil.py").write_text("import os; os.mkdir('canary')\n")
    sent = tmp_path / "sent"
    sent.mkdir()
    for name in ("config.yaml", "provenance.json", "status.json"):
        shutil.copy(trained / name, sent / name)
    provenance = json.loads((sent / "provenance.json").read_text())
    provenance["overrides"].append(override)
    (sent / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(SystemExit) as exit_:
        main("train", [f"resume={sent}"])
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "provenance.json: " in line
    assert not (tmp_path / "canary").exists()


@pytest.mark.parametrize("write", [as_zip, as_pickle])
def test_a_checkpoint_with_code_is_refused(
    write: Callable[[Path, Payload], None], trained: Path, tmp_path: Path, workplace: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(workplace)
    sent = tmp_path / "sent"
    shutil.copytree(trained, sent)
    status = json.loads((sent / "status.json").read_text())
    (sent / "status.json").write_text(json.dumps({**status, "state": "preempted"}))
    for path in (sent / "checkpoints").iterdir():
        write(path, Payload(tmp_path / "canary"))
    with pytest.raises(SystemExit) as exit_:
        main("train", [f"resume={sent}"])
    assert exit_.value.code == 2
    assert "checkpoint" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "canary").exists()


# Job specs


def spec_file(tmp_path: Path, **values: Any) -> Path:
    (tmp_path / "run").mkdir(exist_ok=True)
    path = tmp_path / "run" / "job.json"
    spec = {
        "version": 1,
        "task": "binventory.tasks.train:run",
        "config": {},
        "run_dir": str(tmp_path / "run"),
        "overrides": [],
    }
    path.write_text(json.dumps({**spec, **values}))
    return path


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"task": "os:mkdir"}, "task='os:mkdir'"),
        ({"task": 3}, "'task'"),
        ({"config": {"objective": {"_target_": "os.mkdir"}}}, "objective._target_='os.mkdir'"),
        ({"config": {"data": {"source": "${oc.env:HOME}"}}}, "data.source='${oc.env:HOME}'"),
        ({"config": []}, "'config'"),
        ({"overrides": [{}]}, "'overrides'"),
        ({"overrides": None}, "'overrides'"),
        ({"run_dir": None}, "'run_dir'"),
        ({"pickled_task": "gASVHgAA"}, "'pickled_task'"),
        ({"version": 3}, "version 2"),
    ],
)  # fmt: skip
def test_hostile_job_specs_are_one_line(values: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        JobSpec.load(spec_file(tmp_path, **values))
    message = one_line(error.value)
    assert said in message
    assert "job.json" in message


def test_a_deep_job_spec_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(
        '{"version": 1, "config": '
        + '{"a":' * 900
        + "1"
        + "}" * 900
        + ', "task": "binventory.tasks.train:run", "run_dir": "x", "overrides": []}'
    )
    with pytest.raises(InputError, match=r"job\.json: not a job spec"):
        JobSpec.load(path)


def launch(spec: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "binventory.launch", str(spec)], cwd=spec.parent, capture_output=True, text=True,
        check=False, timeout=120, env={**os.environ, "PYTHONPATH": PYTHONPATH, **environment},
    )  # fmt: skip


def test_a_hostile_job_is_exit_2_and_its_run_folder_stays_untouched(tmp_path: Path) -> None:
    spec = spec_file(tmp_path, task="jobs:succeed", config={"value": 1})
    done = launch(spec)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "BINVENTORY_ALLOW_TARGETS=jobs.succeed" in done.stderr
    assert [path.name for path in spec.parent.iterdir()] == ["job.json"]


def test_nothing_of_hydras_node_is_built_or_resolved(tmp_path: Path) -> None:
    build = {"_target_": "os.mkdir", "path": str(tmp_path / "canary")}
    hydra = {
        "callbacks": {"evil": build}, "launcher": build, "sweeper": build, "run": {"dir": "${run_dir:canary,x}"},
        "job": {"env_set": {"EVIL": "1"}, "name": "${oc.env:HOME}"}, "job_logging": {"handlers": {"evil": build}},
        "searchpath": ["pkg://evil"],
    }  # fmt: skip
    spec = spec_file(tmp_path, task="jobs:succeed", config={"value": 1, "hydra": hydra})
    done = launch(spec, BINVENTORY_ALLOW_TARGETS="jobs.succeed")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "rank0.txt").read_text() == "1"
    assert not (tmp_path / "canary").exists()
    assert not (tmp_path / "run" / "canary").exists()
    assert "hydra" not in (tmp_path / "run" / "config.yaml").read_text()


# Secrets of job specs

SECRETS = {
    "s3": {"endpoint_url": "https://user:hunter2@host:9000", "region": "eu-west-1"},
    "logger": {"mine": {"_target_": "mine.Logger", "api_key": "hunter2", "pin": {"password": 1234567}}},
    "data": {"sources": ["s3://ok", {"token": "hunter2"}, "https://h/x?X-Amz-Signature=hunter2&x=1"]},
}


def test_secrets_go_beside_the_job_spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = {
        "overrides": {"task": ["+logger.mine.api_key=hunter2"]},
        "job": {"override_dirname": "a=1,+x.api_key=hunter2"},
    }
    spec = JobSpec(
        "binventory.tasks.train:run",
        {**SECRETS, "hydra": node},
        str(tmp_path),
        ["+logger.mine.api_key=hunter2", "seed=1"],
    )
    spec.save(tmp_path / "job.json")
    text = (tmp_path / "job.json").read_text()
    assert "hunter2" not in text
    assert "1234567" not in text
    with monkeypatch.context() as environment:
        for name, value in spec.environment().items():
            environment.setenv(name, value)
        loaded = JobSpec.load(tmp_path / "job.json")
    assert {key: value for key, value in loaded.config.items() if key != "hydra"} == SECRETS
    assert loaded.overrides == ["+logger.mine.api_key=<redacted>", "seed=1"]

    monkeypatch.setenv("BINVENTORY_ALLOW_TARGETS", "mine.Logger")
    with pytest.raises(InputError) as error:
        JobSpec.load(tmp_path / "job.json")
    message = one_line(error.value)
    for key in (
        "s3.endpoint_url",
        "logger.mine.api_key",
        "logger.mine.pin.password",
        "data.sources.1.token",
        "data.sources.2",
    ):
        assert key in message
    assert SECRETS_VARIABLE in message
    monkeypatch.setenv(SECRETS_VARIABLE, "not json")
    with pytest.raises(InputError, match=SECRETS_VARIABLE):
        JobSpec.load(tmp_path / "job.json")


def test_only_what_was_hidden_is_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    JobSpec("binventory.tasks.train:run", {"token": "hunter2", "value": 1}, str(tmp_path), []).save(
        tmp_path / "job.json"
    )
    monkeypatch.setenv(SECRETS_VARIABLE, json.dumps({"token": "hunter2", "value": 2, "more": 3}))
    assert JobSpec.load(tmp_path / "job.json").config == {"token": "hunter2", "value": 1}
