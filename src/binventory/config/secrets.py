"""What is a secret: by its name, judged word by word, and by where it came from, the environment."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
from collections.abc import Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

REDACTED = "<redacted>"

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
# What follows them is no longer a part of what is named: access_key_id, KAGGLE_KEY_2.
_AFTER_THE_LAST = ("id", "value", "base64", "prod", "dev", "test", "old", "new", "v")
# Wherever they stand in a name, and also at the end of a longer word: PGPASSWORD, authtoken.
_ANYWHERE = (
    *("password", "passwd", "passphrase", "passcode", "secret", "token", "credential", "authorization", "webhook"),
    *("apikey", "accesskey", "privatekey", "secretkey", "authkey"),
)
# These mean other things as well: a secret where they end the name.
SHORT_NAMES = {
    *("key", "pat", "pw", "pwd", "pass", "pgpass", "auth", "bearer", "creds", "dsn", "sig", "signature", "jwt", "otp"),
    *("totp", "cookie", "sas"),
}  # fmt: skip
_PLURALS = ("passwords", "credentials", "secrets", "webhooks")  # not tokens: max_tokens
_KEYS_ANYWHERE = {"api", "access", "private", "secret", "signing", "encryption", "account"}  # api_key_header
_NO_SECRET_KEYS = {
    *("sort", "primary", "foreign", "public", "cache", "partition", "group", "index", "metric", "lookup", "dict"),
    *("object", "bucket", "order", "unique", "row", "column", "label", "image", "photo", "monitor", "batch", "state"),
    *("data", "file", "path", "map"),
}  # fmt: skip
_NUMBER = re.compile(r"[-+]?[\d.]+([eE][-+]?\d+)?|true|false|null", re.I)
_PLACE = re.compile(r"_(file|path|dir|folder|helper|ur[il]|sock)$", re.I)

# Of variables that a config reads: where and how a process runs, and nobody's secret. Others of ours and of Slurm too.
HARMLESS_VARIABLES = frozenset(
    (
        *("HOME", "USER", "USERNAME", "LOGNAME", "PWD", "OLDPWD", "PATH", "SHELL", "TERM", "TMPDIR", "TMP", "TEMP"),
        *("SCRATCH", "HOST", "HOSTNAME", "TZ", "LANG", "LC_ALL", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"),
        *("RANK", "LOCAL_RANK"),
        *("NODE_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_PROFILE"),
        *("WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY"),
    )
)  # fmt: skip
HARMLESS_PREFIXES = ("BINVENTORY_", "SLURM_", "SM_", "XDG_")

# Keys that say where something lies. A run that hid them could not be resumed; credentials in them are hidden.
PLACES = (
    *("paths", "data.source", "data.file_list", "data.split_list", "model.weights", "init_from", "resume"),
    *("resume_sweep", "run", "input", "source", "output", "s3_uri", "s3.endpoint_url", "s3.region"),
)  # fmt: skip
SERVICES = "logger"  # what is told to others; nothing that a run computes depends on it
MIN_LENGTH = 6  # of a value that is looked for in texts; shorter ones are parts of too much


@functools.cache
def is_secret_name(name: str, *, of_number: bool = False) -> bool:
    """Whether what has this name is a secret: `api_key`, `apiKey`, `PGPASSWORD`, `GITHUB_PAT`; not `monkey`, `key`.

    Args:
        name: of a key or an environment variable.
        of_number: whether it is a number, which is one only where the name ends so: token=123456, not token_width=64.
    """
    words = [word.lower() for word in _WORD.findall(name)]
    while len(words) > 1 and words[-1] in _AFTER_THE_LAST:
        words.pop()
    if not words:
        return False
    if of_number:
        return words[-1].endswith(_ANYWHERE) or _ends_as_secret(words)
    pairs = itertools.pairwise(words)
    return (
        any(word.endswith((*_ANYWHERE, *_PLURALS)) for word in words)
        or _ends_as_secret(words)
        or any(after in ("key", "keys") and before in _KEYS_ANYWHERE for before, after in pairs)
    )


def _ends_as_secret(words: list[str]) -> bool:
    if words[-1] == "key":
        return len(words) > 1 and words[-2] not in _NO_SECRET_KEYS
    return words[-1] in SHORT_NAMES or (words[-1].endswith("pwd") and len(words[-1]) > len("pwd"))


def is_harmless(variable: str) -> bool:
    """Whether a config may show what it took from an environment variable."""
    is_known = variable in HARMLESS_VARIABLES or variable.startswith(HARMLESS_PREFIXES)
    return variable in HARMLESS_VARIABLES or (is_known and not is_secret_name(variable))


def secret_variables(min_length: int) -> list[str]:
    """Return the values of environment variables whose names say secret, the longest first: it may contain another."""
    found = {
        value
        for name, value in os.environ.items()
        if len(value) >= min_length
        and name not in HARMLESS_VARIABLES
        and is_secret_name(name)
        and not _PLACE.search(name)
    }
    return sorted(found, key=len, reverse=True)


# What configs of this process took from the environment.


class _Hidden:
    """What is hidden in this process: dotted keys, and whether it decides what a run computes; parts of any text."""

    def __init__(self) -> None:
        self.keys: dict[str, bool] = {}
        self.values: set[str] = set()


_hidden = _Hidden()
_read: list[str] = []  # names that the resolver was called with


def _environment(name: str, *default: Any) -> Any:
    """`oc.env` as OmegaConf has it, which remembers what it was called with."""
    if name in os.environ:
        _read.append(name)
    return oc.env(name, *default)


def forget_hidden() -> None:
    """Begin anew with another command."""
    _hidden.keys.clear()
    _hidden.values.clear()


def hide_what_is_read(config: DictConfig) -> None:
    """Hide every value of an unresolved config that is made of environment variables, but of harmless ones.

    It does not matter how: as a whole, in a text, through other resolvers or other keys.
    """
    OmegaConf.register_new_resolver("oc.env", _environment, replace=True)
    _hidden.keys.clear()
    for name in config:
        if name != "hydra":
            look_at(config, name, str(name))


def look_at(parent: Any, name: Any, dotted: str) -> None:
    """Hide what is read by one key, and by all below it.

    Args:
        parent: the node that holds the key.
        name: of the key.
        dotted: the same, from the top.
    """
    _read.clear()
    try:
        value = None if OmegaConf.is_missing(parent, name) else parent[name]
    except OmegaConfBaseException:
        return  # said where the config is checked
    variables = [variable for variable in _read if not is_harmless(variable)]
    if variables:
        _hide_all(OmegaConf.to_container(value) if OmegaConf.is_config(value) else value, dotted, variables)
    if isinstance(value, DictConfig | ListConfig):
        for key in range(len(value)) if isinstance(value, ListConfig) else list(value):
            look_at(value, key, f"{dotted}.{key}")


def _hide_all(value: Any, dotted: str, variables: Sequence[str]) -> None:
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            _hide_all(child, f"{dotted}.{key}", variables)
        return
    is_named = any(map(is_secret_name, variables))
    if value is not None and (is_named or not is_place(dotted)):
        decides = not is_named and not dotted.startswith(f"{SERVICES}.")
        for part in (value, *(os.environ[variable] for variable in variables)):
            hide(dotted, part, decides=decides)


def hide(dotted: str, value: Any, *, decides: bool) -> None:
    """Hide the value of a key from here on, also where it is a part of a text.

    Args:
        dotted: the key.
        value: plain.
        decides: whether a run computes with it, and nothing says that it is a password.
    """
    _hidden.keys[dotted] = decides
    text = str(value)
    if len(text) >= MIN_LENGTH and not (decides and _NUMBER.fullmatch(text)):
        _hidden.values.add(text)


def is_place(dotted: str) -> bool:
    """Whether a key says where something lies."""
    return any(dotted == place or dotted.startswith(f"{place}.") for place in PLACES)


def is_hidden(dotted: str) -> bool:
    """Whether the value of a key came from the environment."""
    return dotted in _hidden.keys


def hidden_values() -> list[str]:
    """Return what is hidden in every text, the longest first."""
    return sorted(_hidden.values, key=len, reverse=True)


def stand_in(dotted: str, value: Any) -> Any:
    """Return what is shown of a hidden value.

    Numbers that a run computes with say little and stay. For a text that it computes with the stand-in differs from
    that of another one, by 16 bits: no run shall be resumed with another value.
    """
    if isinstance(value, str) and value.startswith(REDACTED):
        return value
    if not _hidden.keys[dotted]:
        return REDACTED
    if isinstance(value, int | float):
        return value
    return f"{REDACTED} ({hashlib.sha256(f'{dotted}={value}'.encode()).hexdigest()[:4]})"
