"""The config as a file: resolved, without secrets, loadable again. What hides secrets in any other text is here too."""

from __future__ import annotations

import functools
import logging
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from binventory.config.older import HEADER, upgrade_config
from binventory.errors import InputError

REDACTED = "<redacted>"
MAX_CONFIG_BYTES = 1_000_000
MAX_CONFIG_DEPTH = 64

_WORDS = (
    r"api_?key|access_?key(?:_?id)?|private_?key|secret(?:_?access)?(?:_?key)?|session_?token|token|password|passwd"
    r"|passphrase|credentials?|authorization"
)
_SECRET_KEY = re.compile(rf"(^|_)({_WORDS})($|_)", re.I)
# A number is a secret only where the name ends in what says so: token=123456, not token_width=64.
_SECRET_NUMBER_KEY = re.compile(rf"(^|_)({_WORDS})$", re.I)

# user:password@ or token@ in a URL. The password may hold a slash, a port may not be taken for it.
_URL_USERINFO = re.compile(
    r"(?<=://)(?:[^\s/@:'\"]+:(?!\d+[/?#])[^\s@'\"]{0,200}(?:@[^\s/@'\"]+)*|[^\s/@'\"]+(?:@[^\s/@'\"]+)*)@"
)
# The same where the scheme is mistyped or missing.
_USERINFO = re.compile(r"(?<![^\s/='\"\[{(,])[^\s/:@'\"=<>]+:[^\s/@'\"<>]+@(?=[\w.-])")
_URL_QUERY_SECRET = re.compile(
    r"(?i)([?&](?:[^=&\s]{0,60}(?:signature|token|secret|password|credential|key)[^=&\s]{0,60}|sig|auth|pwd)=)"
    r"[^&\s'\"]+?(?=[:,.;)]*(?:[&\s'\"]|$))"
)
# `api_key=…`, `AWS_SECRET_ACCESS_KEY: '…'`, `"SessionToken": "…"`, `Authorization: Bearer …` anywhere in a text.
_ASSIGNED = re.compile(
    rf"(?i)(?<![a-z0-9])((?:[\w.-]{{0,60}}[_.-])?(?:{_WORDS}|signature(?==)|api[ ]key)(?:_\w{{1,60}})?['\"]?\s*[:=]\s*)"
    r"(?:\"[^\"\n]+\"|'[^'\n]+'|(?:(?:bearer|basic|token)\s+)?[^\s,;&'\")}\]]*[^\s,;&'\")}\]:.])"
)
_SECRET_VALUE = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")
# Shorter values of the environment are too likely to be words of any text; these names say where a secret lies.
_MIN_ENVIRONMENT_SECRET = 12
_PLACE_NAME = re.compile(r"_(file|path|dir|folder|helper|ur[il])$", re.I)


def redact(value: Any, name: str = "") -> Any:
    """Return a copy of plain config values in which everything that looks like a secret is replaced."""
    if isinstance(value, Mapping):
        return {
            key: redact(child, name if _SECRET_KEY.search(name) else str(key)) for key, child in value.items()
        }  # fmt: skip
    if isinstance(value, list):
        return [redact(child, name) for child in value]
    if isinstance(value, str):
        return REDACTED if _SECRET_KEY.search(name) and value else redact_text(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and _SECRET_NUMBER_KEY.search(name):
        return REDACTED
    return value


def redact_text(text: str) -> str:
    """Replace secrets in any text: an override, an error, a traceback, a line of a log.

    These are: user info and secret query values in URLs, what follows a secret's name and `=` or `:`, AWS key ids, and
    the values of environment variables that are named as secrets are.
    """
    if match := re.match(r"^([+~]*[\w./@-]+)=(.+)$", text):
        key = match.group(1)
        if _SECRET_KEY.search(key.lstrip("+~").rsplit(".", 1)[-1]):
            return f"{key}={REDACTED}"
    for secret in _environment_secrets():
        text = text.replace(secret, REDACTED)
    text = _URL_USERINFO.sub(f"{REDACTED}@", text)
    text = _USERINFO.sub(f"{REDACTED}@", text)
    text = _URL_QUERY_SECRET.sub(rf"\1{REDACTED}", text)
    text = _ASSIGNED.sub(rf"\1{REDACTED}", text)
    return _SECRET_VALUE.sub(REDACTED, text)


def one_line(text: str) -> str:
    """Return a text as one printable line without secrets: a name in it may be somebody else's."""
    line = redact_text(" ".join(text.split()))
    return "".join(char if char.isprintable() else "?" for char in line)


def _environment_secrets() -> list[str]:
    """Return the longest first: one may be part of another."""
    found = {
        value
        for name, value in os.environ.items()
        if len(value) >= _MIN_ENVIRONMENT_SECRET and _SECRET_KEY.search(name) and not _PLACE_NAME.search(name)
    }
    return sorted(found, key=len, reverse=True)


class _RedactedRecord(logging.LogRecord):
    """A log record whose message and traceback hold no secret, whichever handler writes it."""

    _exc_text: str | None

    def getMessage(self) -> str:  # noqa: N802  logging's name
        return redact_text(super().getMessage())

    @property
    def exc_text(self) -> str | None:
        return self._exc_text

    @exc_text.setter
    def exc_text(self, text: str | None) -> None:
        self._exc_text = None if text is None else redact_text(text)


def redact_logs() -> None:
    """Keep secrets out of everything that this process logs from here on."""
    logging.setLogRecordFactory(_RedactedRecord)


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

    write_text(path, HEADER + OmegaConf.to_yaml(OmegaConf.create(redact(to_plain(config)))))


def redact_yaml(path: Path) -> None:
    """Redact a YAML file that Hydra wrote; nothing where there is none."""
    from binventory.files import write_text

    if path.exists():
        plain = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
        write_text(path, OmegaConf.to_yaml(OmegaConf.create(redact(plain))))


def load_config(path: Path) -> DictConfig:
    """Read a config that `save_config` wrote. What it names by `_target_` is not judged: see `targets.check_targets`.

    Raises:
        InputError: not such a file, or changed since: it holds interpolations, which could read the environment.
        OSError: it cannot be read.
    """
    plain = load_plain(path)
    try:
        return OmegaConf.create(plain)
    except (OmegaConfBaseException, ValueError) as error:
        raise InputError(f"{path}: not a config of a run ({_first_line(error)}); name another folder") from error


def load_plain(path: Path) -> dict[Any, Any]:
    """Read a config that `save_config` wrote as plain dicts and lists: for who reads hundreds of them.

    What an older version wrote comes in the terms of this one.

    Raises:
        InputError: not such a file, or changed since: it holds interpolations.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    if len(data) > MAX_CONFIG_BYTES:
        raise InputError(f"{path}: {len(data):,} bytes are no config of a run; name another folder")
    try:
        _check_structure(data)
        plain = yaml.load(data.decode(), Loader=_loader())  # noqa: S506  a safe loader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a config of a run ({_first_line(error)}); name another folder") from error
    if plain is None:
        return {}
    if not isinstance(plain, dict):
        raise InputError(f"{path}: not a config of a run but a {type(plain).__name__}; name another folder")
    refuse_interpolations(plain, str(path))
    return plain if data.startswith(HEADER.encode()) else upgrade_config(plain)


@functools.cache
def _loader() -> Any:
    """Return OmegaConf's YAML loader, on libyaml where PyYAML was built with it: eight times as fast."""
    from omegaconf._utils import get_yaml_loader

    loader = get_yaml_loader()
    if not yaml.__with_libyaml__:
        return loader
    own = {name: getattr(loader, name) for name in ("yaml_constructors", "yaml_implicit_resolvers")}
    return type("ConfigLoader", (yaml.CSafeLoader, loader), own)  # parses as the first, constructs as the second


def _check_structure(data: bytes) -> None:
    """Raise YAMLError for aliases, a few of which can become gigabytes, and for nesting that takes minutes to read."""
    depth = 0
    for event in yaml.parse(data, Loader=yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("it holds an alias")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_CONFIG_DEPTH:
            raise yaml.YAMLError(f"it is nested more than {MAX_CONFIG_DEPTH} deep")


def refuse_interpolations(plain: Any, where: str) -> None:
    """Refuse plain values of a file in which `${…}` would be resolved: it reads the environment or makes folders.

    Raises:
        InputError: names the file and the key.
    """
    for dotted, value in leaves(plain):
        if isinstance(value, str) and "${" in value:
            raise InputError(f"{where}: {dotted}={value[:80]!r}: a frozen config holds no ${{…}}; write the value")


def leaves(plain: Any) -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value) of everything in plain values that is no dict or list; a list's places are numbers."""
    waiting = [("", plain)]
    while waiting:  # not recursive: a file can be nested at will
        dotted, node = waiting.pop()
        if isinstance(node, Mapping):
            waiting.extend((f"{dotted}.{key}" if dotted else str(key), child) for key, child in node.items())
        elif isinstance(node, list):
            waiting.extend((f"{dotted}.{place}" if dotted else str(place), child) for place, child in enumerate(node))
        else:
            yield dotted, node


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
