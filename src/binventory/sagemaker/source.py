"""The source archive of a launch: a project's own files in one .tar.gz, the same bytes for the same content."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from binventory.data.text import printable
from binventory.errors import ConfigError, InputError
from binventory.files import atomic_path
from binventory.sagemaker.checkout import CheckoutFile, list_files, read_file, read_link
from binventory.sagemaker.secret_scan import ALLOW_COMMENT, Finding, find_secrets

MAX_SOURCE_MB = 50.0  # the default of `max_source_mb`, in 10**6 bytes
NUM_NAMED = 5  # files or findings that a message spells out


@dataclass(frozen=True)
class SourceFile:
    """An entry of the archive: its name in it, its size, and the SHA-256 of its bytes (of a link: of its target)."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True)
class SourceArchive:
    """A written archive.

    Attributes:
        path: the file, `<sha256>.tar.gz`.
        sha256: of the archive, in hexadecimal.
        files: what it holds, in the order of their names' bytes.
    """

    path: Path
    sha256: str
    files: tuple[SourceFile, ...]

    def manifest(self) -> list[str]:
        """Return a line for each file, `<sha256>  <bytes>  <name>`, and one that sums up."""
        width = len(f"{max((file.size_bytes for file in self.files), default=0):,}")
        lines = [f"{file.sha256}  {file.size_bytes:>{width},}  {printable(file.name)}" for file in self.files]
        unpacked = sum(file.size_bytes for file in self.files)
        packed = self.path.stat().st_size
        return [*lines, f"{len(self.files):,} files, {unpacked / 1e6:.1f} MB, packed {packed / 1e6:.1f} MB"]


@dataclass(frozen=True)
class _Entry:
    name: str
    content: bytes
    is_link: bool = False
    is_executable: bool = False


def write_source(
    root: Path,
    folder: Path,
    *,
    max_source_mb: float = MAX_SOURCE_MB,
    allow_secrets: Sequence[str] = (),
    extra: Mapping[str, bytes] | None = None,
) -> SourceArchive:
    """Pack the files of a project that git tracks or would track.

    Args:
        root: the project's folder, in a git checkout; what lies above it is not sent.
        folder: where the archive is written.
        max_source_mb: most bytes that it may hold before compression, in 10**6.
        allow_secrets: patterns (`tests/*.py`; `*` also stands for '/') of files in which secrets are not looked for.
        extra: further files, archive name -> content.

    Raises:
        InputError: no checkout, a file that cannot be sent, or one with a secret in it.
        ConfigError: the files are larger than `max_source_mb`, or an extra file has the name of one of them.
    """
    files = list_files(root)
    if not files:
        raise InputError(f"{root}: has no files that git tracks or would track; is .gitignore right?")
    max_bytes = round(max_source_mb * 1e6)
    _check_size(files, max_source_mb)
    entries = [_entry(file, root, max_bytes) for file in files]
    entries += _extra_entries(extra or {}, {file.name for file in files})
    _check_secrets(entries, allow_secrets)
    data = _pack(sorted(entries, key=lambda entry: os.fsencode(entry.name)))
    sha256 = hashlib.sha256(data).hexdigest()
    path = folder / f"{sha256}.tar.gz"
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)
    described = [
        SourceFile(entry.name, len(entry.content), hashlib.sha256(entry.content).hexdigest()) for entry in entries
    ]
    return SourceArchive(path, sha256, tuple(sorted(described, key=lambda file: os.fsencode(file.name))))


def _check_size(files: Sequence[CheckoutFile], max_source_mb: float) -> None:
    total = sum(file.size_bytes for file in files)
    if total <= max_source_mb * 1e6:
        return
    largest = sorted(files, key=lambda file: -file.size_bytes)[:NUM_NAMED]
    named = ", ".join(f"{printable(file.name)} ({file.size_bytes / 1e6:.1f} MB)" for file in largest)
    raise ConfigError(
        f"max_source_mb={max_source_mb:g}: the project's {len(files):,} files have {total / 1e6:.1f} MB, the largest"
        f" {named}; add what no job needs to .gitignore, or raise the limit"
    )


def _entry(file: CheckoutFile, root: Path, max_bytes: int) -> _Entry:
    target = read_link(file, root)
    if target is not None:
        return _Entry(file.name, os.fsencode(target), is_link=True)
    content, is_executable = read_file(file, max_bytes)
    return _Entry(file.name, content, is_executable=is_executable)


def _extra_entries(extra: Mapping[str, bytes], names: set[str]) -> list[_Entry]:
    folders = {str(parent) for name in names for parent in Path(name).parents}
    for name in extra:
        assert not name.startswith("/"), name
        assert ".." not in name.split("/"), name
        if name in names or name in folders or any(str(parent) in names for parent in Path(name).parents):
            raise ConfigError(f"{name}: the project has a file or folder of that name, which a job needs; rename it")
    return [_Entry(name, content) for name, content in extra.items()]


def _check_secrets(entries: Sequence[_Entry], allow_secrets: Sequence[str]) -> None:
    found: list[Finding] = []
    for entry in entries:
        if not entry.is_link and not any(fnmatchcase(entry.name, pattern) for pattern in allow_secrets):
            found += find_secrets(entry.name, entry.content)
    if found:
        named = "; ".join(printable(str(finding)) for finding in found[:NUM_NAMED])
        more = f" and {len(found) - NUM_NAMED} more" if len(found) > NUM_NAMED else ""
        raise InputError(
            f"secrets would be sent: {named}{more}; remove them, add the files to .gitignore, or, where it is none, let"
            f" a line pass by the comment `{ALLOW_COMMENT.decode()}` or a file by allow_secrets"
        )


def _pack(entries: Sequence[_Entry]) -> bytes:
    """Nothing but names, content and executability is in it: no times, no owners, no name in gzip's header."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=6, mtime=0) as packed,
        # GNU's format holds the bytes of any name as they are
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8") as tar,
    ):
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.mode = 0o777 if entry.is_link else 0o755 if entry.is_executable else 0o644
            if entry.is_link:
                info.type, info.linkname = tarfile.SYMTYPE, os.fsdecode(entry.content)
                tar.addfile(info)
            else:
                info.size = len(entry.content)
                tar.addfile(info, io.BytesIO(entry.content))
    return buffer.getvalue()
