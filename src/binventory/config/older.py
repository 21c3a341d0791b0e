"""What older versions wrote, in the terms of today.

Version 1 held every limit of batches as a float, and one of 1.0 or more was a count. Since version 2 the type tells, as
in Lightning: 1 is one batch, 1.0 all of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from binventory.files import MAX_FILE_BYTES, open_limited

CONFIG_VERSION = 2
# The first line of a config.yaml. In the file itself, so that no kill can part the two.
HEADER = f"# config version {CONFIG_VERSION}\n"

LIMITS = ("limit_train_batches", "limit_val_batches", "limit_test_batches")
_LIMIT_KEY = re.compile(rf"[+]*trainer\.(?:{'|'.join(LIMITS)})")
# Of a text such as choice(1.0,2.0,0.5): numbers from 1.0 up without a fraction.
_WHOLE_FLOAT = re.compile(r"(?<![\w.+-])0*([1-9]\d*)\.0*(?![\w.+-])|(?<![\w.+-])0*([1-9]\d*)[eE][+]?0+(?![\w.+-])")


def is_older(path: Path) -> bool:
    """Whether a config.yaml is there and of version 1."""
    try:
        with open_limited(path, MAX_FILE_BYTES) as file:
            return file.read(len(HEADER)) != HEADER.encode()
    except OSError:
        return False


def upgrade_config(plain: dict[Any, Any]) -> dict[Any, Any]:
    """Return a config of version 1 in which whole limits of batches are counts."""
    trainer = plain.get("trainer")
    if not isinstance(trainer, dict):
        return plain
    counts = {name: int(trainer[name]) for name in LIMITS if _is_whole(trainer.get(name))}
    return {**plain, "trainer": {**trainer, **counts}}


def upgrade_overrides(overrides: Sequence[Any]) -> list[Any]:
    """Return overrides of version 1 in which whole limits of batches are counts; what is no text stays."""
    return [_upgrade_override(text) if isinstance(text, str) else text for text in overrides]


def _upgrade_override(text: str) -> str:
    key, equals, value = text.partition("=")
    if not _LIMIT_KEY.fullmatch(key):
        return text
    return key + equals + _WHOLE_FLOAT.sub(lambda match: match[1] or match[2], value)


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and value >= 1 and value.is_integer()
