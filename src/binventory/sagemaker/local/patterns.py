"""The service model's patterns are Java's; Python's `re` reads most of them otherwise, or not at all."""

from __future__ import annotations

import functools
import re
import sys
import unicodedata

# What Java calls these classes holds ASCII only.
ASCII_CLASSES = {"Alnum": "a-zA-Z0-9", "Alpha": "a-zA-Z", "Digit": "0-9", "Lower": "a-z", "Upper": "A-Z"}
UNICODE_CATEGORIES = ("L", "M", "N", "P", "S", "Z")
NOT_LINE_END = "[^\\n\\r\\u0085\\u2028\\u2029]"  # Java's dot stops at more line ends than Python's


@functools.cache
def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Compile a pattern of the service model; a value is valid when `fullmatch` finds it.

    Raises:
        ValueError: the pattern uses something of Java's that is not translated here.
    """
    return re.compile(_translate(pattern), re.ASCII)  # \\d, \\w and \\s are ASCII in Java


def _translate(pattern: str) -> str:
    pattern = re.sub(r"\\u([dD][89abAB]\w\w)\\u([dD][c-fC-F]\w\w)", _join_surrogates, pattern)
    tokens = re.compile(r"\\[pP]\{(\w+)\}|\\.|&&|.", re.DOTALL)
    translated, in_class = [], False
    for token in tokens.finditer(pattern):
        text = token.group()
        if text.startswith(("\\p{", "\\P{")):
            members = _class_members(token.group(1), pattern)
            if text[1] == "P":
                raise ValueError(f"pattern {pattern!r}: \\P is not translated")
            text = members if in_class else f"[{members}]"
        elif in_class and text in ("[", "&&"):
            raise ValueError(f"pattern {pattern!r}: classes within classes are not translated")
        elif text == "[":
            in_class = True
        elif text == "]":
            in_class = False
        elif text == "." and not in_class:
            text = NOT_LINE_END
        translated.append(text)
    return "".join(translated)


def _join_surrogates(pair: re.Match[str]) -> str:
    """Java writes a character beyond U+FFFF as two; Python's `re` would take them for two characters."""
    high, low = (int(part, 16) for part in pair.groups())
    return f"\\U{0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00):08x}"


def _class_members(name: str, pattern: str) -> str:
    if name in ASCII_CLASSES:
        return ASCII_CLASSES[name]
    if name in UNICODE_CATEGORIES:
        return _unicode_members(name)
    raise ValueError(f"pattern {pattern!r}: class {name} is not known here")


@functools.cache
def _unicode_members(category: str) -> str:
    """Characters of a general category as the inside of a character class."""
    ranges: list[list[int]] = []
    for code in range(sys.maxunicode + 1):
        if unicodedata.category(chr(code))[0] == category:
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)
