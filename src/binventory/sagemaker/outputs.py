"""What a training job leaves on S3 as model.tar.gz or output.tar.gz, brought back. The archive is not trusted."""

from __future__ import annotations

import gzip
import secrets
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, cast

from binventory.data.sources.s3 import S3Connection, split_uri
from binventory.data.text import printable
from binventory.errors import InputError

MAX_BYTES = 20 * 2**30  # unpacked, and of the archive itself
MAX_MEMBERS = 100_000
MAX_HEADER_BYTES = 2**20  # of a member's long name or extended header, which are read into memory
MAX_NAME_BYTES = 1024
MAX_PART_BYTES = 255
CHUNK_BYTES = 2**20


def fetch_output(
    uri: str, target: Path, connection: S3Connection, *, max_bytes: int = MAX_BYTES, max_members: int = MAX_MEMBERS
) -> bool:
    """Download an archive from S3 and unpack it to the new folder `target`; False when there is no such object.

    Raises:
        InputError: it cannot be had, or as `extract`.
    """
    bucket, key = split_uri(uri)
    with _new_folder(target) as folder:
        archive = folder / "archive.tar.gz"

        def send() -> bool:
            with archive.open("wb") as file:
                for chunk in connection.chunks(bucket, key, max_bytes):
                    file.write(chunk)
            return True

        if connection.answer(uri, send) is None:
            return False
        extract(archive, target, name=uri, max_bytes=max_bytes, max_members=max_members)
        return True


def extract(
    archive: Path, target: Path, *, name: str | None = None, max_bytes: int = MAX_BYTES, max_members: int = MAX_MEMBERS
) -> None:
    """Unpack a .tar.gz into the new folder `target`, which appears whole or not at all.

    Only regular files and folders are taken, with this process's permissions and today's times.

    Args:
        archive: the file.
        target: a folder that is not there yet; its parents are made.
        name: what messages call the archive; None: its path.
        max_bytes: most bytes that the archive may unpack to, its headers and padding included.
        max_members: most files and folders in it.

    Raises:
        InputError: it is no whole .tar.gz, is larger than the limits, or holds a link, a device, or a name that is
            absolute, leads upwards, stands twice or cannot be a file's name; or `target` exists or cannot be written.
            Names the member.
    """
    where = printable(name or str(archive))
    with _new_folder(target) as folder:
        try:
            with _open(archive, where) as file, gzip.open(file) as unzipped:
                stream = _Limited(cast(IO[bytes], unzipped), max_bytes, where)
                _extract_stream(stream, folder, where, max_members)
                while stream.read(CHUNK_BYTES):  # to the end, where gzip's own checksum is
                    pass
        except InputError:
            raise
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError) as error:  # ValueError: a number
            reason = printable(" ".join(str(error).split()) or "damaged", 200)
            raise InputError(f"{where}: is no whole .tar.gz: {reason}; was its upload cut off?") from error
        folder.replace(target)


def _open(archive: Path, where: str) -> IO[bytes]:
    try:
        return archive.open("rb")
    except OSError as error:
        raise InputError(f"{where}: cannot be read: {error.strerror}") from error


def _extract_stream(stream: _Limited, folder: Path, where: str, max_members: int) -> None:
    seen: set[str] = set()
    with tarfile.open(fileobj=cast(IO[bytes], stream), mode="r|", tarinfo=_Member) as tar:
        for number, member in enumerate(tar, start=1):
            if number > max_members:
                raise InputError(f"{where}: holds over {max_members:,} files; not unpacked")
            _check(member, where)
            if not 0 <= member.size <= stream.left:
                raise _too_large(where, stream.max_bytes, member.name)
            path = str(PurePosixPath(member.name))
            if path in seen and not member.isdir():
                raise InputError(f"{where}: {printable(member.name)}: stands in it twice; not unpacked")
            seen.add(path)
            try:
                tar.extract(member, folder, filter=_plain)
            except (FileExistsError, NotADirectoryError, IsADirectoryError) as error:
                raise InputError(f"{where}: {printable(member.name)}: is a file and a folder; not unpacked") from error
            tar.members = []  # type: ignore[attr-defined]  # else every header is kept


def _check(member: tarfile.TarInfo, where: str) -> None:
    name = printable(member.name, 200)
    if not (member.isdir() or member.isreg()) or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "no regular file"
        raise InputError(f"{where}: {name}: is {kind}; only files and folders are unpacked")
    parts = member.name.split("/")
    if member.name.startswith("/") or ".." in parts:
        raise InputError(f"{where}: {name}: leads out of the folder; not unpacked")
    encoded = [part.encode("utf-8", "replace") for part in parts]
    too_long = len(member.name) > MAX_NAME_BYTES or max(map(len, encoded)) > MAX_PART_BYTES
    if too_long or not member.name.isprintable() or "\\" in member.name:
        raise InputError(f"{where}: {name}: cannot be a file's name; not unpacked")
    if member.isreg() and PurePosixPath(member.name) == PurePosixPath("."):
        raise InputError(f"{where}: {name}: a file without a name; not unpacked")


def _plain(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """The standard library's own check once more, and nothing of the sender's owners, permissions and times."""
    checked = tarfile.data_filter(member, folder)
    return checked.replace(mode=None, mtime=None, uid=None, gid=None, uname=None, gname=None, deep=False)  # type: ignore[arg-type]


class _Member(tarfile.TarInfo):
    """A header that is refused where tarfile would take it for the archive's end, or read any size into memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Member:
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the zeros that an archive ends with
            raise tarfile.ReadError(f"bad header: {error}") from error
        if member.type not in tarfile.REGULAR_TYPES and member.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"header of {member.size:,} bytes")
        return member


class _Limited:
    """Reads a stream up to `max_bytes`: a few KB may unpack to any size."""

    def __init__(self, stream: IO[bytes], max_bytes: int, where: str) -> None:
        self.max_bytes = max_bytes
        self.left = max_bytes
        self._stream = stream
        self._where = where

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise _too_large(self._where, self.max_bytes, None)
        return data


def _too_large(where: str, max_bytes: int, member: str | None) -> InputError:
    at = "" if member is None else f"{printable(member, 200)}: "
    return InputError(f"{where}: {at}unpacks to more than {max_bytes / 1e6:,.1f} MB; not unpacked")


@contextmanager
def _new_folder(target: Path) -> Iterator[Path]:
    """Give a folder beside `target` to fill, which the block moves there; whatever is left of it is removed."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        if target.exists() or target.is_symlink():
            raise InputError(f"{target}: is there already; name a new folder or remove it")
        temporary.mkdir(parents=True)
        yield temporary
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{target}: cannot be written: {reason}; free space or name another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
