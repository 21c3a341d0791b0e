"""Values that name a file or folder: none is empty, and `~` is the home."""

from __future__ import annotations

import os
import re
from collections.abc import Container

from binventory.errors import ConfigError

# Where the presets take a path from the environment.
VARIABLES = {"paths.data_dir": "BINVENTORY_DATA_DIR", "paths.cache_dir": "BINVENTORY_CACHE_DIR"}

# Of Hydra's own settings.
HYDRA_PATHS = ("hydra.run.dir", "hydra.sweep.dir")

# A path with a ~ in it where Hydra's grammar has no quotes around it: alone, or in a sweep or a list.
_PART = r"(?:\$\{[^}]*\}|[^,\[\](){}'\"~])*"
_BARE_TILDE = re.compile(rf"(?<=[=,\[(])(\s*)({_PART}~(?:{_PART}~?)*)")


def as_path(key: str, text: str) -> str:
    """Return a path as it is meant: `~` and `~user` at its start are home folders, as in a shell.

    Args:
        key: the config key or option, for the error.
        text: what was written; a URI and any other path stay as they are, blanks included.

    Raises:
        ConfigError: it is empty or blank, or there is no such user.
    """
    if not text.strip():
        variable = VARIABLES.get(key, "")
        source = f" ({variable} is set to it)" if variable and not os.environ.get(variable, variable).strip() else ""
        raise ConfigError(f"{key}={text!r}: is an empty path{source}; name a file or folder, or leave it out")
    if not text.startswith("~"):
        return text
    expanded = os.path.expanduser(text)  # noqa: PTH111  of a Path an unknown user is an error of another kind
    if expanded == text:
        user = text.partition("/")[0][:200]
        raise ConfigError(f"{key}={text[:200]}: no home folder of {user}; write ./{user} for a name that begins with ~")
    return expanded


def quote_homes(override: str, keys: Container[str]) -> str:
    """Return an override of a path key whose paths with a `~` are quoted, and homes spelled out, for Hydra's grammar.

    Args:
        override: of the command line.
        keys: those that hold paths; any other override stays as it is.

    Raises:
        ConfigError: as `as_path`.
    """
    from hydra.core.override_parser.types import Quote, QuotedString

    key = override.partition("=")[0].lstrip("+")
    if key not in keys:
        return override

    def quoted(match: re.Match[str]) -> str:
        # Interpolations stay: they are resolved after the grammar.
        return match[1] + QuotedString(as_path(key, match[2].rstrip()), Quote.single).with_quotes()

    return _BARE_TILDE.sub(quoted, override)
