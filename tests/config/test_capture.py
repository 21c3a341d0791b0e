"""config.yaml is resolved, holds no secret, and can be loaded again."""

from __future__ import annotations

import io
import json
import logging
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from binventory.config.capture import (
    leaves,
    load_config,
    redact,
    redact_logs,
    redact_text,
    save_config,
    to_plain,
)
from binventory.config.compose import compose_checked
from binventory.config.older import upgrade_overrides
from binventory.config.secrets import REDACTED
from binventory.launch.spec import JobSpec


def test_round_trip(tmp_path: Path) -> None:
    config = compose_checked("train", ["data.limit=7"])[0]
    save_config(config, tmp_path / "config.yaml")
    loaded = load_config(tmp_path / "config.yaml")
    assert "hydra" not in loaded
    assert "${" not in (tmp_path / "config.yaml").read_text()
    assert loaded.data.limit == 7
    plain = {key: value for key, value in OmegaConf.to_container(config).items() if key != "hydra"}  # type: ignore[union-attr]
    assert OmegaConf.to_container(loaded) == plain


def test_limits_of_batches_keep_their_type(tmp_path: Path) -> None:
    limits = {"limit_train_batches": 1.0, "limit_val_batches": 1, "limit_test_batches": 0.25, "overfit_batches": 1.0}
    overrides = [f"trainer.{name}={limit}" for name, limit in limits.items()]
    config = compose_checked("train", overrides)[0]
    save_config(config, tmp_path / "config.yaml")
    JobSpec("binventory.tasks.train:run", to_plain(config), str(tmp_path), overrides).save(tmp_path / "job.json")
    for trainer in (
        load_config(tmp_path / "config.yaml").trainer,
        JobSpec.load(tmp_path / "job.json").config["trainer"],
    ):
        assert {name: (type(trainer[name]), trainer[name]) for name in limits} == {
            name: (type(limit), limit) for name, limit in limits.items()
        }


def test_whole_limits_of_batches_that_older_versions_wrote_are_counts(tmp_path: Path) -> None:
    config = compose_checked("train", ["trainer.limit_val_batches=0.5"])[0]
    (tmp_path / "config.yaml").write_text(
        OmegaConf.to_yaml(OmegaConf.create(to_plain(config))).replace(
            "limit_train_batches: null", "limit_train_batches: 1.0"
        )
    )
    saved = {
        "version": 1,
        "task": "binventory.tasks.train:run",
        "run_dir": "x",
        "overrides": ["trainer.limit_train_batches=2.0"],
    }
    saved["config"] = {"trainer": {"limit_train_batches": 2.0, "limit_val_batches": 0.5, "gradient_clip_val": 1.0}}
    (tmp_path / "job.json").write_text(json.dumps(saved))
    older, spec = load_config(tmp_path / "config.yaml").trainer, JobSpec.load(tmp_path / "job.json")
    assert (type(older.limit_train_batches), older.limit_train_batches, older.limit_val_batches) == (int, 1, 0.5)
    assert repr(spec.config["trainer"]) == repr(saved["config"]["trainer"]).replace("2.0", "2")
    assert spec.overrides == ["trainer.limit_train_batches=2"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("trainer.limit_train_batches=1.0", "trainer.limit_train_batches=1"),
        ("++trainer.limit_val_batches=12.", "++trainer.limit_val_batches=12"),
        ("trainer.limit_test_batches=choice(0.1,1.0,2e0,10.0)", "trainer.limit_test_batches=choice(0.1,1,2,10)"),
        ("trainer.limit_train_batches=0.5,1.0,1.05,21.0", "trainer.limit_train_batches=0.5,1,1.05,21"),
        ("trainer.limit_train_batches=null", "trainer.limit_train_batches=null"),
        ("optimizer.lr=1.0", "optimizer.lr=1.0"),
        ("trainer.gradient_clip_val=1.0", "trainer.gradient_clip_val=1.0"),
    ],
)
def test_overrides_that_older_versions_wrote(before: str, after: str) -> None:
    assert upgrade_overrides([before]) == [after]


@pytest.mark.parametrize(
    "secret",
    [
        {"api_key": "SECRET"},
        {"logger": {"wandb": {"wandb_api_key": "SECRET"}}},
        {"aws_secret_access_key": "SECRET"},
        {"password": "SECRET"},
        {"hf_token": "SECRET"},
        {"source": "https://user:SECRET@example.org/photos"},
        {"source": "https://example.org/a.jpg?X-Amz-Signature=SECRET&x=1"},
        {"sources": ["s3://ok", "https://SECRET@example.org"]},
    ],
)
def test_secrets_are_redacted(secret: dict[str, object]) -> None:
    redacted = str(redact(secret))
    assert "SECRET" not in redacted
    assert REDACTED in redacted


@pytest.mark.parametrize(
    "text",
    [
        "logger.wandb.api_key=SECRET", "+token=SECRET", "x=https://u:SECRET@host/", "+x={api_key:SECRET,lr:0.1}",
        "+x={_target_:a.B,url:'https://u:SECRET@h/',pin:{password:SECRET}}", "a=1,+x.api_key=SECRET,b=2",
        "https://SECRET@host/x", "https://u:SE/CRET@host/x", "https://u:p@SECRET@host", "htp:/u:SECRET@host:1", "x=u:SECRET@host",
        "s3://AKIAABCDEFGHIJKLMNOP/x", "https://h/x?sig=SECRET", "GET https://h/x?a=1&X-Amz-Security-Token=SECRET&b=2 failed",  # pragma: allowlist secret
        "environ({'AWS_SECRET_ACCESS_KEY': 'SECRET', 'HOME': '/root'})", '{"SecretAccessKey": "SECRET", "SessionToken": "SECRET"}',
        "Credentials(access_key='x', secret_key='SECRET', token=\"SECRET\")", "Authorization: Bearer SECRET", "export HF_TOKEN=SECRET",
        "X-Amz-Credential=SECRET/2026/us-east-1, Signature=SECRET", "Invalid API key: SECRET", "token: Bearer SECRET\nnext line",
    ],
)  # fmt: skip
def test_text_is_redacted(text: str) -> None:
    redacted = redact_text(text)
    for part in ("SECRET", "CRET@", "AKIAABCD"):
        assert part not in redacted.replace("_SECRET_", "").replace("AWS_SECRET", "")
    assert REDACTED in redacted


def test_what_is_around_a_secret_stays() -> None:
    said = "error: data.source=https://u:SECRET@host:9000/a/b?x=1&X-Amz-Signature=SECRET: no such file; set token=SECRET, or not"
    assert redact_text(said) == (
        "error: data.source=https://<redacted>@host:9000/a/b?x=1&X-Amz-Signature=<redacted>: no such file;"
        " set token=<redacted>, or not"
    )


def test_values_of_the_environment_are_redacted_wherever_they_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "/abc+DEF0123456789")
    monkeypatch.setenv("MY_TOKEN", "short")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/tokens/aws")
    assert redact_text("signed with /abc+DEF0123456789!") == "signed with <redacted>!"
    assert redact({"data": {"source": "/abc+DEF0123456789"}}) == {"data": {"source": REDACTED}}
    for innocent in ("a short text", "cannot read /var/run/tokens/aws", str(Path.cwd())):
        assert redact_text(innocent) == innocent


@pytest.mark.parametrize(
    "node",
    [
        {"password": 1234567},
        {"api_key": {"value": "SECRET"}},
        {"token": ["SECRET", {"x": 12}]},
        {"secret": {"a": {"b": 1.5}}},
    ],
)
def test_whatever_lies_below_a_secrets_name_is_redacted(node: dict[str, object]) -> None:
    assert not {"SECRET", "1234567", "12", "1.5"} & {str(value) for _, value in leaves(redact(node))}


def test_log_records_are_redacted_by_every_handler(caplog: pytest.LogCaptureFixture) -> None:
    before = logging.getLogRecordFactory()
    text = io.StringIO()
    handler, logger = logging.StreamHandler(text), logging.getLogger("tests.capture")
    logger.addHandler(handler)
    try:
        redact_logs()
        logger.warning("to %s", "https://u:SECRET@host/")
        try:
            raise ValueError("token=SECRET")
        except ValueError:
            logger.exception("failed with %(api_key)s", {"api_key": "api_key=SECRET"})
    finally:
        logger.removeHandler(handler)
        logging.setLogRecordFactory(before)
    said = text.getvalue() + caplog.text
    assert "SECRET" not in said
    assert "to https://<redacted>@host/" in said
    assert "ValueError: token=<redacted>" in said
    assert "Traceback" in said


def test_innocent_values_stay() -> None:
    plain = {
        "monkey": "banana", "max_epochs": 3, "keys": ["a"], "source": "s3://bucket/photos?versionId=3", "seed": 0,
        "token_width": 64, "use_token": True, "endpoint": "http://127.0.0.1:9000/a@b", "path": "/data/2026:x/a.b@2x.jpg",
        "at": "s3://bucket/photos@2026/x", "target": "binventory.data.sources.table.TableSource", "time": "12:30:05",
        "scope": "https://host/@scope/package", "list": "a=1,b=[2,3]", "two": "s3://b:c/x", "secretary": "Ann", "none": None,
    }  # fmt: skip
    assert redact(plain) == plain
    for text in ("optimizer.lr=0.1", "logger=[csv,wandb]", "s3=credentials", "+x={a:1,b:{c:2}}", "input='a:b c@d'"):
        assert redact_text(text) == text
