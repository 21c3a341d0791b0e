"""Text from outside, such as file names, metadata and cells, made fit to be stored, shown and used as an id."""

from __future__ import annotations

import hashlib
import reprlib

MAX_ID_BYTES = 200  # a file name holds 255, of which the suffixes of photo and temporary file need some
MADE_ID = "~"  # what ids start with that `id_of_name` had to make
KEPT_CHARS = 60  # of a name whose id had to be made

# What pandas, R, SQL, spreadsheets and Python write where there is no value, in small letters
MISSING = {
    *(
        "",
        "nan",
        "-nan",
        "na",
        "n/a",
        "<na>",
        "nat",
        "none",
        "null",
        "<null>",
        "(null)",
        "\\n",
        "#n/a",
        "#na",
        "#n/a n/a",
    ),
    *("1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"),
}

_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 2  # what is nested deeper than Python recurses cannot be shown whole
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 60


def utf8(text: str) -> str:
    """Return text that files and Parquet can hold: names and JSON may contain what is no UTF-8."""
    return text.encode("utf-8", "replace").decode()


def printable(text: str, max_chars: int = 1000) -> str:
    """Return text for one line of a message: line ends, terminal codes and the like are escaped, long text is cut."""
    cut = text if len(text) <= max_chars else text[: max_chars - 1] + "…"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in cut)


def brief(value: object) -> str:
    """Return a value for a message, in one line of some 60 characters however large or deep it is."""
    return _BRIEF.repr(value)


def cell_text(value: object) -> str | None:
    """Return a table cell's text without blanks around it; None where it is missing, as null, blank or `MISSING`."""
    text = "" if value is None else str(value).strip()
    return None if text.lower() in MISSING else text


def can_be_id(name: str) -> bool:
    """Whether text can be a file name in any folder, and never one outside of it."""
    if not name or name.startswith(".") or "/" in name or "\\" in name or not name.isprintable():
        return False
    return len(name.encode()) <= MAX_ID_BYTES


def id_of_name(name: str) -> tuple[str, str | None]:
    """Return an id for a file name, and why a bin of that name cannot be used.

    A name that can be an id is its own id and has no problem. Any other gets an id that can be one and that no other
    name has: `~`, a hash of the name, `~` and its first characters, percent-encoded where need be.
    """
    if can_be_id(name) and not name.startswith(MADE_ID):
        return name, None
    digest = hashlib.sha256(_bytes(name)).hexdigest()[:12]
    kept = "".join(map(_id_char, name[:KEPT_CHARS]))[: MAX_ID_BYTES // 4]  # a character takes at most 4 bytes
    return f"{MADE_ID}{digest}{MADE_ID}{kept}", f"name cannot be a bin id: {brief(name)}"


def _id_char(char: str) -> str:
    if char.isprintable() and char not in "/\\%":
        return char
    return "".join(f"%{byte:02X}" for byte in _bytes(char))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")  # names that are no UTF-8 come as half surrogate pairs
