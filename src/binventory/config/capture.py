"""The config as a file: resolved, without secrets, loadable again."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

REDACTED = "<redacted>"
_SECRET_KEY = re.compile(
    r"(^|_)(api_?key|access_?key|secret|secret_access_key|session_token|token|password|passwd)($|_)", re.I
)
_URL_USERINFO = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_URL_QUERY_SECRET = re.compile(
    r"(?i)([?&](?:[^=&\s]*(?:signature|token|secret|password|credential|key)[^=&\s]*)=)[^&\s]+"
)
_SECRET_VALUE = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")


def redact(value: Any, name: str = "") -> Any:
    """Return a copy of plain config values in which everything that looks like a secret is replaced."""
    if isinstance(value, dict):
        return {key: redact(child, str(key)) for key, child in value.items()}
    if isinstance(value, list):
        return [redact(child, name) for child in value]
    if isinstance(value, str):
        return REDACTED if _SECRET_KEY.search(name) and value else redact_text(value)
    return value


def redact_text(text: str) -> str:
    """Replace user info and secret query values in URLs, `key=value` pairs with a secret's name, and AWS key ids."""
    if match := re.match(r"^([+~]*[\w./@-]+)=(.+)$", text):
        key = match.group(1)
        if _SECRET_KEY.search(key.lstrip("+~").rsplit(".", 1)[-1]):
            return f"{key}={REDACTED}"
    text = _URL_USERINFO.sub(REDACTED, text)
    text = _URL_QUERY_SECRET.sub(rf"\1{REDACTED}", text)
    return _SECRET_VALUE.sub(REDACTED, text)


def to_plain(config: DictConfig) -> dict[str, Any]:
    """Return the resolved config as plain dicts and lists, without Hydra's own node."""
    plain = OmegaConf.to_container(
        OmegaConf.masked_copy(config, [str(name) for name in config if name != "hydra"]), resolve=True
    )
    assert isinstance(plain, dict)
    return {str(name): value for name, value in plain.items()}


def save_config(config: DictConfig, path: Path) -> None:
    """Write the config as YAML: resolved, redacted, loadable by `load_config`."""
    from binventory.files import write_text

    write_text(path, OmegaConf.to_yaml(OmegaConf.create(redact(to_plain(config)))))


def load_config(path: Path) -> DictConfig:
    """Read a config that `save_config` wrote."""
    loaded = OmegaConf.load(path)
    assert isinstance(loaded, DictConfig)
    return loaded
