"""config.yaml is resolved, holds no secret, and can be loaded again."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from binventory.config.capture import REDACTED, load_config, redact, redact_text, save_config
from binventory.config.compose import compose_checked


def test_round_trip(tmp_path: Path) -> None:
    config = compose_checked("train", ["data.limit=7"])[0]
    save_config(config, tmp_path / "config.yaml")
    loaded = load_config(tmp_path / "config.yaml")
    assert "hydra" not in loaded
    assert "${" not in (tmp_path / "config.yaml").read_text()
    assert loaded.data.limit == 7
    plain = {key: value for key, value in OmegaConf.to_container(config).items() if key != "hydra"}  # type: ignore[union-attr]
    assert OmegaConf.to_container(loaded) == plain


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


@pytest.mark.parametrize("text", ["logger.wandb.api_key=SECRET", "+token=SECRET", "x=https://u:SECRET@host/"])
def test_overrides_are_redacted(text: str) -> None:
    assert "SECRET" not in redact_text(text)


def test_innocent_values_stay() -> None:
    plain = {"monkey": "banana", "max_epochs": 3, "keys": ["a"], "source": "s3://bucket/photos?versionId=3", "seed": 0}
    assert redact(plain) == plain
