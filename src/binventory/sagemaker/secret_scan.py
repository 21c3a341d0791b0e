"""Secrets in files that are about to leave this machine. Only what has a form of its own: no guessing by entropy."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import PurePosixPath

ALLOW_COMMENT = b"pragma: allowlist secret"  # what detect-secrets reads too

MAX_FINDINGS = 100  # of one file: a list of a million keys is told from a few

# Files that hold secrets by what they are, whatever they look like inside.
SECRET_FILES = {
    ".env": "environment file",
    ".env.*": "environment file",
    "*.env": "environment file",
    ".envrc": "environment file",
    ".netrc": "login file",
    "_netrc": "login file",
    ".pgpass": "login file",
    ".pypirc": "login file",
    ".git-credentials": "credentials file",
    "credentials": "credentials file",
    "credentials.csv": "credentials file",
    "*_accessKeys.csv": "credentials file",
    "application_default_credentials.json": "credentials file",
    "id_rsa": "private key",
    "id_ecdsa": "private key",
    "id_ed25519": "private key",
}
TEMPLATE_ENDINGS = (".example", ".sample", ".template", ".dist")

_AFTER_NAME = rb"""["']?\s{0,8}[:=]\s{0,8}["']?"""
_PATTERNS: tuple[tuple[str, re.Pattern[bytes]], ...] = (
    ("AWS access key id", re.compile(rb"(?<![A-Za-z0-9])((?:AKIA|ASIA)[A-Z2-7]{16})(?![A-Za-z0-9])")),
    (
        "AWS secret access key",
        re.compile(rb"(?i:secret_?-?(?:access)?_?-?key)" + _AFTER_NAME + rb"([A-Za-z0-9/+]{40})(?![A-Za-z0-9/+=])"),
    ),
    (
        "private key",  # with a body: naming the header is no secret
        re.compile(
            rb"-----BEGIN (?:[A-Z0-9]{1,20} ){0,3}PRIVATE KEY(?: BLOCK)?-----"
            rb"(?:[\s\"',+]|\\[nr])*(?:[A-Za-z-]{1,40}: [^\n]{0,200}\n\s*){0,4}([A-Za-z0-9+/=]{24})"
        ),
    ),
    (
        "W&B API key",
        re.compile(
            rb"(wandb_v1_[A-Za-z0-9_]{40,})|(?i:wandb)[^\n]{0,40}?(?i:key)"
            + _AFTER_NAME
            + rb"([0-9a-f]{40})(?![0-9a-z])"
        ),
    ),
    ("Hugging Face token", re.compile(rb"(?<![A-Za-z0-9_])((?:hf|api_org)_[A-Za-z0-9]{34,40})(?![A-Za-z0-9_])")),
    ("GitHub token", re.compile(rb"(?<![A-Za-z0-9])(gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{60,255})(?!\w)")),
    ("GitLab token", re.compile(rb"(?<![A-Za-z0-9])(glpat-[\w-]{20,60})(?![\w-])")),
    ("PyPI token", re.compile(rb"(pypi-AgEI[\w-]{50,})")),
    ("Slack token", re.compile(rb"(?<![A-Za-z0-9])(xox[abeoprs]-[0-9]{6,}-[\w-]{10,})")),
)
_URL_LOGIN = re.compile(
    rb"(?<=[A-Za-z0-9])://[^\s/:@'\"`<>{}$\[\]()*]{1,100}:([^\s/@'\"`<>{}$\[\]()*]{3,200})@([\w.-]{1,253})"
)
# Values of documents and examples: nobody's.
_PLACEHOLDER = re.compile(rb"(?i)(.)\1*|pass(word)?|passwd|secret|token|user|[x.-]+|.*example(key)?")
_NOBODYS_HOST = re.compile(
    rb"(?i)localhost|127(\.\d+){3}|(.*\.)?example(\.(com|org|net))?|.*\.(test|invalid)|host|[a-z]"
)


@dataclass(frozen=True)
class Finding:
    """A secret: the file's name, its line (None: the file as a whole) and what it is. Never its value."""

    name: str
    line: int | None
    kind: str

    def __str__(self) -> str:
        place = self.name if self.line is None else f"{self.name}:{self.line}"
        return f"{place} ({self.kind})"


def find_secrets(name: str, content: bytes) -> list[Finding]:
    """Return what looks like a secret in a file, in the order of its lines, at most 100.

    A line that holds the comment `pragma: allowlist secret` passes. Files that are not text are judged by name only.

    Args:
        name: path relative to the project, with '/'.
        content: the file's bytes; UTF-16 and UTF-32 are read where they begin with a byte order mark.
    """
    kind = _kind_of_file(PurePosixPath(name).name)
    if kind is not None and content.strip():
        return [Finding(name, None, kind)]
    text = _as_utf8(content)
    if text is None:
        return []
    found = {(text.count(b"\n", 0, start) + 1, kind) for start, kind in islice(_matches(text), MAX_FINDINGS)}
    return [Finding(name, line, kind) for line, kind in sorted(found)]


def _kind_of_file(name: str) -> str | None:
    if name.endswith(TEMPLATE_ENDINGS):
        return None
    return next((kind for pattern, kind in SECRET_FILES.items() if fnmatchcase(name, pattern)), None)


def _matches(text: bytes) -> Iterator[tuple[int, str]]:
    for kind, pattern in _PATTERNS:
        for match in pattern.finditer(text):
            value = next(group for group in match.groups() if group is not None)
            if not _PLACEHOLDER.fullmatch(value) and not _is_allowed(text, match.start()):
                yield match.start(), kind
    for match in _URL_LOGIN.finditer(text):
        password, host = match.groups()
        is_real = not _PLACEHOLDER.fullmatch(password) and not _NOBODYS_HOST.fullmatch(host)
        if is_real and not _is_allowed(text, match.start()):
            yield match.start(), "password in a URL"


def _is_allowed(text: bytes, position: int) -> bool:
    start = text.rfind(b"\n", 0, position) + 1
    end = text.find(b"\n", position)
    return ALLOW_COMMENT in text[start : len(text) if end < 0 else end]


def _as_utf8(content: bytes) -> bytes | None:
    """The text of a file, None where it is none. UTF-32's mark begins like UTF-16's, so it comes first."""
    for mark, encoding in (
        (codecs.BOM_UTF32_LE, "utf-32"),
        (codecs.BOM_UTF32_BE, "utf-32"),
        (codecs.BOM_UTF16_LE, "utf-16"),
        (codecs.BOM_UTF16_BE, "utf-16"),
    ):
        if content.startswith(mark):
            return content.decode(encoding, "replace").encode("utf-8", "replace")
    return None if b"\0" in content[:8192] else content
