"""What is a secret: by its name, and by where its value came from. What was hidden is supplied again on resume."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from binventory.config.capture import redact, redact_text, to_plain
from binventory.config.compose import compose_checked
from binventory.config.secrets import REDACTED, forget_hidden, is_harmless, is_secret_name
from binventory.launch.entry import main
from binventory.launch.spec import JobSpec
from binventory.tracking.provenance import is_signed, sign
from binventory.tracking.resume import fingerprint

SECRETS = [
    "api_key",
    "apiKey",
    "API-KEY",
    "wandb_api_key",
    "KAGGLE_KEY",
    "KAGGLE_KEY_2",
    "GITHUB_PAT",
    "PGPASSWORD",
    "PGPASS",
    "MYSQL_PWD",
    "SENTRY_DSN",
    "accessToken",
    "X-Amz-Signature",
    "aws_access_key_id",
    "private_key_path",
    "password",
    "passwordHash",
    "db_pass",
    "proxy_auth",
    "JWT",
    "HF_TOKEN",
    "azure_sas",
    "credentials",
    "api_keys",
    "apiKeys",
    "SLACK_WEBHOOK_URL",
    "DB_PW",
    "AWS_CREDS",
    "unlock_passcode",
    "KAGGLE_KEY_V2",
    "bearer",
]
INNOCENT = [
    "monkey",
    "keyboard",
    "key",
    "keys",
    "key_metric",
    "sort_key",
    "public_key",
    "patience",
    "path",
    "pattern",
    "compass",
    "bypass",
    "author",
    "authors",
    "secretary",
    "passes",
    "cookies_dir",
    "max_epochs",
    "tokenizer",
    "signal",
    "design",
    "group",
    "seed",
    "sort_keys",
    "screds",
    "hook",
    "spw",
]


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forget_hidden()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.mark.parametrize("name", SECRETS)
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)
    assert redact({name: "hunter2"}) == {name: REDACTED}
    assert "hunter2" not in redact_text(f"a=1,{name}=hunter2")


@pytest.mark.parametrize("name", INNOCENT)
def test_names_of_none(name: str) -> None:
    assert not is_secret_name(name)
    assert redact({name: "hunter2"}) == {name: "hunter2"}
    assert redact_text(f"a=1,{name}=hunter2") == f"a=1,{name}=hunter2"


def test_a_number_is_one_by_the_end_of_its_name() -> None:
    plain = {"token": 1234567, "token_width": 64, "max_tokens": 512, "password": 1, "use_token": True}
    assert redact(plain) == plain | {"token": REDACTED, "password": REDACTED}
    assert redact_text("max_tokens=512,token=1234567") == f"max_tokens=512,token={REDACTED}"


@pytest.mark.parametrize("value", ["true", "False", "null"])
def test_what_is_no_text_is_none(value: str) -> None:
    """Else an override like it could not be given again on resume."""
    for text in (f"logger.mine.use_token={value}", f"+logger.mine.api_key={value}", f"a: 1, token: {value}"):
        assert redact_text(text) == text


def test_harmless_variables() -> None:
    assert all(map(is_harmless, ("HOME", "PWD", "SLURM_JOB_ID", "BINVENTORY_DATA_DIR", "SM_CHANNEL_TRAIN")))
    assert not any(map(is_harmless, ("SLURM_JWT", "BINVENTORY_TOKEN", "GITHUB_PAT", "ANYTHING", "PWD2")))


WANDB = ["debug=fast", "logger=wandb"]


def shown(*overrides: str) -> dict[str, Any]:
    config: dict[str, Any] = redact(to_plain(compose_checked("train", [*WANDB, *overrides])[0]))
    return config


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:ANY}", "'a ${oc.env:ANY} b'", "'${oc.env:ANY,none}'", "'${oc.decode:${oc.env:ANY}}'", "'${oc.env:NO_SUCH,${oc.env:ANY}}'",
        "${logger.wandb.entity}", "'${oc.select:logger.wandb.entity}'", "'${oc.env:${oc.env:NAME}}'",
    ],
)  # fmt: skip
def test_what_came_from_the_environment_is_hidden(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANY", "sesame0815")
    monkeypatch.setenv("NAME", "ANY")
    config = shown(
        "logger.wandb.entity='${oc.env:ANY}'", f"logger.wandb.group={value}", f"logger.wandb.tags=[x,{value}]"
    )
    assert config["logger"]["wandb"]["group"] == REDACTED
    assert config["logger"]["wandb"]["tags"] == ["x", REDACTED]
    assert "sesame" not in str(config)
    assert redact_text("no answer for sesame0815.") == f"no answer for {REDACTED}."


def test_what_did_not_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "DATA", "SEED"):
        monkeypatch.setenv(name, "4711")
    monkeypatch.delenv("NO_SUCH", raising=False)
    config = shown(
        "logger.wandb.group='${oc.env:SLURM_JOB_ID}'", "logger.wandb.entity='${oc.env:NO_SUCH,me}'", "seed='${oc.env:SEED}'",
        "paths.data_dir='/data/${oc.env:DATA}'", "data.source='s3://${oc.env:DATA}/x'",
    )  # fmt: skip
    wandb = config["logger"]["wandb"]
    assert (wandb["group"], wandb["entity"], config["seed"]) == ("4711", "me", 4711), (
        "what a run computes with is compared"
    )
    assert (config["paths"]["data_dir"], config["data"]["source"]) == ("/data/4711", "s3://4711/x")


def test_credentials_in_places_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA_TOKEN", "sesame0815")
    monkeypatch.setenv("PLAIN", "https://me:sesame0816@h.example.org/x?sig=sesame0817&a=1")
    assert "sesame" not in str(shown("data.source='s3://b/${oc.env:DATA_TOKEN}'"))
    assert (
        shown("data.source='${oc.env:PLAIN}'")["data"]["source"]
        == "https://<redacted>@h.example.org/x?sig=<redacted>&a=1"
    )


def test_runs_that_compute_with_it_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for name in ("resnet18", "resnet34", "resnet18"):
        monkeypatch.setenv("MODEL", name)
        config = to_plain(compose_checked("train", ["debug=fast", "model.name=${oc.env:MODEL}"])[0])
        found.append(fingerprint(config))
        assert redact(redact(config)) == redact(config), (
            "a config that was read back is compared with one that is composed"
        )
        assert name not in str(redact(config)["model"])
    assert found[0] == found[2] != found[1]


def test_a_job_of_its_own_gets_it_and_hides_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANY", "sesame0815")
    config = to_plain(compose_checked("train", [*WANDB, "logger.wandb.group=${oc.env:ANY}"])[0])
    spec = JobSpec("binventory.tasks.train:run", config, str(tmp_path), ["logger.wandb.group=${oc.env:ANY}"])
    spec.save(tmp_path / "job.json")
    assert "sesame" not in (tmp_path / "job.json").read_text()
    given = spec.environment()
    forget_hidden()
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    loaded = JobSpec.load(tmp_path / "job.json").config
    assert loaded["logger"]["wandb"]["group"] == "sesame0815"
    assert redact(loaded)["logger"]["wandb"]["group"] == REDACTED
    assert "sesame" not in redact_text("refused sesame0815")


def test_shown_configs_hold_none(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANY", "sesame0815")
    given = [
        *WANDB,
        "logger.wandb.group=${oc.env:ANY}",
        "+logger.mine={_target_:tests.security.own.KeyedLogger,url:x,api_key:sesame0815,pin:{},more:{}}",
    ]
    with pytest.raises(SystemExit):
        main("train", ["check=true", *given])
    shown = [capsys.readouterr().out]
    for flags in (["--resolve"], ["--resolve", "--package", "logger"]):
        main("train", ["--cfg", "job", *flags, *given])
        shown.append(capsys.readouterr().out)
    for text in shown:
        assert "group: " in text
        assert "sesame" not in text


# Resuming


@pytest.fixture
def run(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run whose command read the environment."""
    monkeypatch.chdir(tmp_path)
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    provenance = json.loads((folder / "provenance.json").read_text())
    overrides = [*provenance["overrides"], "logger=wandb", "logger.wandb.group=${oc.env:KAGGLE_KEY}"]
    (folder / "provenance.json").write_text(
        json.dumps(
            {**provenance, "overrides": overrides, "signature": sign([*overrides, *provenance["hydra_overrides"]])}
        )
    )
    return folder


def code_of(run: Path) -> int:
    with pytest.raises(SystemExit) as exit_:
        main("train", [f"resume={run}"])
    assert isinstance(exit_.value.code, int)
    return exit_.value.code


def test_a_resumed_run_reads_it_again(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KAGGLE_KEY", "sesame0815")
    assert code_of(run) == 0
    assert "this run is done" in capsys.readouterr().out
    monkeypatch.delenv("KAGGLE_KEY")
    assert code_of(run) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "logger.wandb.group" in line
    assert "KAGGLE_KEY" in line


def test_a_run_that_somebody_sent_does_not(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KAGGLE_KEY", "sesame0815")
    provenance = json.loads((run / "provenance.json").read_text())
    for sent in (
        {**provenance, "overrides": [*provenance["overrides"], "logger.wandb.entity=somebody"]},
        {**provenance, "signature": None},
        {**provenance, "signature": "0" * 64},
    ):
        (run / "provenance.json").write_text(json.dumps(sent))
        assert code_of(run) == 2
        assert "${oc.env:KAGGLE_KEY}': not taken from a file" in capsys.readouterr().err


def test_the_key_is_the_users_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sign(["seed=0"]) is None, "nothing to sign"
    signature = sign(["a=${oc.env:X}"])
    key = tmp_path / "state" / "binventory" / "key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert is_signed(["a=${oc.env:X}"], signature)
    assert not is_signed(["a=${oc.env:Y}"], signature)
    key.write_bytes(os.urandom(32))
    assert not is_signed(["a=${oc.env:X}"], signature)
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/none")
    assert sign(["a=${oc.env:X}"]) is None
    assert not is_signed(["a=${oc.env:X}"], None)
