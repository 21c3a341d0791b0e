"""The config as a file: resolved, without secrets, loadable again. What hides secrets in any other text is here too."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from binventory.config.older import HEADER, upgrade_config
from binventory.config.secrets import (
    REDACTED,
    SHORT_NAMES,
    hidden_values,
    is_hidden,
    is_place,
    is_secret_name,
    secret_variables,
    stand_in,
)
from binventory.errors import InputError
from binventory.files import read_limited, write_text

MAX_CONFIG_BYTES = 1_000_000
MAX_CONFIG_DEPTH = 64

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
_NAME = re.compile(r"(?<![\w.-])((?:[\w.-]{0,80}\.)?([\w-]{1,80}|(?i:api key)))(['\"]?\s{0,8}[:=]\s{0,8})")
_VALUE = re.compile(
    r"\"[^\"\n]+\"|'[^'\n]+'|\$\{oc\.env:\w+\}|(?:(?i:bearer|basic|token)\s+)?[^\s,;&'\")}\]]*[^\s,;&'\")}\]:.]"
)
_REFERENCE = re.compile(r"['\"]?\$\{oc\.env:\w+\}['\"]?")
_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?")
_NO_TEXT = re.compile(r"true|false|null", re.I)  # of a config; a value that is one of these is no secret
_SECRET_VALUE = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")
# Shorter values of the environment are too likely to be words of any text; these names say where a secret lies.
_MIN_ENVIRONMENT_SECRET = 8


def redact(value: Any, name: str = "", at: str = "") -> Any:
    """Return a copy of plain config values in which everything that is or looks like a secret is replaced.

    Args:
        value: plain.
        name: of the secret that it is a part of; else its own.
        at: its dotted key in the config.
    """
    if isinstance(value, Mapping):
        below = f"{at}." if at else ""
        inner = {key: name if is_secret_name(name) else str(key) for key in value}
        return {key: redact(child, inner[key], f"{below}{key}") for key, child in value.items()}
    if isinstance(value, list):
        return [redact(child, name, f"{at}.{place}") for place, child in enumerate(value)]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if (is_number or (isinstance(value, str) and value)) and is_secret_name(name, of_number=is_number):
        return value if isinstance(value, str) and _REFERENCE.fullmatch(value) else REDACTED
    if value is not None and is_hidden(at):
        return stand_in(at, value)
    return _redact_text(value, hides_values=not is_place(at)) if isinstance(value, str) else value


def redact_text(text: str) -> str:
    """Replace secrets in any text: an override, an error, a traceback, a line of a log.

    These are: user info and secret query values in URLs, what follows a secret's name and `=` or `:`, AWS key ids, the
    values of environment variables that are named as secrets are, and what a config took from the environment. What
    says where in the environment it is, `${oc.env:NAME}`, stays.
    """
    key = re.match(r"^[+~]*([\w./@-]+)=", text)
    return _redact_text(text, hides_values=key is None or not is_place(key[1]))


def _redact_text(text: str, *, hides_values: bool) -> str:
    if match := re.match(r"^([+~]*[\w./@-]+)=(.+)$", text):
        key, value = match.groups()
        name = key.lstrip("+~").rsplit(".", 1)[-1]
        is_shown = _REFERENCE.fullmatch(value) or _NO_TEXT.fullmatch(value)
        if not is_shown and is_secret_name(name, of_number=_NUMBER.fullmatch(value) is not None):
            return f"{key}={REDACTED}"
    for secret in [*secret_variables(_MIN_ENVIRONMENT_SECRET), *(hidden_values() if hides_values else ())]:
        if secret in text:  # not within a word: a short one is a part of many
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", REDACTED, text)
    text = _URL_USERINFO.sub(f"{REDACTED}@", text)
    text = _USERINFO.sub(f"{REDACTED}@", text)
    text = _URL_QUERY_SECRET.sub(rf"\1{REDACTED}", text)
    text = _redact_assigned(text)
    return _SECRET_VALUE.sub(REDACTED, text)


def _redact_assigned(text: str) -> str:
    """Replace what follows a secret's name."""
    parts, end = [], 0
    for name in _NAME.finditer(text):
        value = _VALUE.match(text, name.end())
        if name.start() < end or value is None or _REFERENCE.fullmatch(value[0]) or _NO_TEXT.fullmatch(value[0]):
            continue
        # "sig: SIGTERM", "auth: basic": after one short word a colon says less than a sign of equality
        is_word = "=" not in name[3] and name[2].lower() in SHORT_NAMES
        if not is_word and is_secret_name(name[2], of_number=_NUMBER.fullmatch(value[0]) is not None):
            parts += [text[end : name.end()], REDACTED]
            end = value.end()
    return "".join([*parts, text[end:]])


def one_line(text: str) -> str:
    """Return a text as one printable line without secrets: a name in it may be somebody else's."""
    line = redact_text(" ".join(text.split()))
    return "".join(char if char.isprintable() else "?" for char in line)


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
    write_text(path, HEADER + OmegaConf.to_yaml(OmegaConf.create(redact(to_plain(config)))))


def redact_yaml(path: Path) -> None:
    """Redact a YAML file that Hydra wrote; nothing where there is none."""
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
    data = read_limited(path)
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
