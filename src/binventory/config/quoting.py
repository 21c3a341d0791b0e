"""Values as overrides of a command line: for Hydra's grammar, and for a shell."""

from __future__ import annotations

import re
import shlex

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException


def quote_value(value: object) -> str:
    """Quote a value so that Hydra takes it as it is: its grammar, and what resolves interpolations after it."""
    return QuotedString(literal(value), Quote.single).with_quotes()


def literal(value: object) -> str:
    """Return a text that a config resolves to this value, `${` included."""
    return re.sub(r"(\\*)\$\{", lambda match: f"{match[1] * 2}\\${{", str(value))


def override_text(key: str, value: object) -> str:
    """Return an override that sets a key to a text, quoted only where Hydra's grammar needs it."""
    plain = f"{key}={value}"
    try:
        is_taken = OverridesParser.create().parse_override(plain).value() == str(value) and "${" not in plain
    except (HydraException, ValueError):
        is_taken = False
    return plain if is_taken else f"{key}={quote_value(value)}"


def pasteable(key: str, value: object) -> str:
    """Return an override that can be pasted into a POSIX shell, whatever its value."""
    return shlex.quote(override_text(key, value))
