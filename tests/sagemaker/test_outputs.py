"""Archives that jobs bring back: whole ones become a folder, hostile or broken ones leave nothing behind."""

from __future__ import annotations

import gzip
import io
import os
import stat
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from binventory.data.sources.s3 import S3Connection
from binventory.errors import InputError
from binventory.sagemaker.bucket import S3Folder
from binventory.sagemaker.collect import fetch_folder
from binventory.sagemaker.outputs import extract, fetch_output
from tests.s3 import s3_client, s3_config

Members = list[tuple[tarfile.TarInfo, bytes]]


def member(name: str, content: bytes = b"", **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, content


def tar_gz(members: Members, format: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", format=format) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content) if content else None)
    return buffer.getvalue()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def folder_entry(name: str, **fields: object) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.DIRTYPE, **fields)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


GOOD: Members = [
    folder_entry("./"),
    folder_entry("./run", mode=0o000),
    member("./run/metrics.json", b"{}", mode=0o7777, uid=0, uname="root", mtime=10**11),
    member("bundle/" + "long" * 40 + "/weights", b"w" * 100_000, mode=0o000),
    member("zählen.txt", b"1"),
]


def test_whole_archive_becomes_a_folder_of_plain_files(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "output"
    extract(write(tmp_path / "a.tar.gz", tar_gz(GOOD)), target)
    found = {path.relative_to(target).as_posix(): path for path in target.rglob("*")}
    assert {name for name, path in found.items() if path.is_file()} == {
        "run/metrics.json",
        "bundle/" + "long" * 40 + "/weights",
        "zählen.txt",
    }
    assert found["run/metrics.json"].read_bytes() == b"{}"
    assert names(tmp_path / "deep") == ["output"]
    made = (tmp_path / "plain").open("w")
    made.close()
    usual = stat.S_IMODE((tmp_path / "plain").stat().st_mode)
    for path in found.values():
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == usual if path.is_file() else mode & 0o700 == 0o700, path
        assert path.stat().st_mtime < 10**10
        assert path.stat().st_uid == os.getuid()


def bomb() -> bytes:
    return tar_gz([member("zeros", bytes(30_000_000))])


def big_header() -> bytes:
    """An extended header of 30 MB, which tarfile reads into memory."""
    return tar_gz([member("a", b"1", pax_headers={"comment": "x" * 30_000_000})], tarfile.PAX_FORMAT)


def not_padded() -> bytes:
    """A second member's header is damaged: tarfile alone takes that for the end."""
    raw = bytearray(gzip.decompress(tar_gz([member("a", b"1"), member("b", b"2")])))
    raw[1024 + 100] ^= 1
    return gzip.compress(bytes(raw))


def without_end() -> bytes:
    return gzip.compress(gzip.decompress(tar_gz([member("a", b"1"), member("b", b"2")]))[: 2 * 1024])


def wrong_checksum() -> bytes:
    data = bytearray(tar_gz([member("a", b"1")]))
    data[-8] ^= 1
    return bytes(data)


def bad_deflate() -> bytes:
    raw = gzip.decompress(tar_gz([member("a", bytes(200_000))]))
    packer = zlib.compressobj(wbits=31)
    return packer.compress(raw[:100_000]) + packer.flush(zlib.Z_FULL_FLUSH) + b"\xff" * 20


def sparse() -> bytes:
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "s", "GNU.sparse.realsize": "5"}
    return tar_gz([member("s", b"1\n0\n5\n" + bytes(506) + b"hello", pax_headers=headers)], tarfile.PAX_FORMAT)


def long_number() -> bytes:
    """An extended header whose length has more digits than int() takes."""
    record = b"9" * 5000 + b" comment=x\n"
    header = member("x", record, type=tarfile.XHDTYPE)
    return tar_gz([header, member("a", b"1")])


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "parent": (lambda: tar_gz([member("ok", b"1"), member("../evil", b"1")]), r"\.\./evil: leads out of the folder"),
    "inner parent": (lambda: tar_gz([member("a/../b", b"1")]), r"a/\.\./b: leads out"),
    "absolute": (lambda: tar_gz([member("/tmp/evil", b"1")]), "/tmp/evil: leads out"),
    "symbolic link": (lambda: tar_gz([member("l", type=tarfile.SYMTYPE, linkname="a")]), "l: is a link"),
    "hard link": (lambda: tar_gz([member("a", b"1"), member("l", type=tarfile.LNKTYPE, linkname="a")]), "l: is a link"),
    "device": (lambda: tar_gz([member("d", type=tarfile.CHRTYPE)]), "d: is no regular file"),
    "pipe": (lambda: tar_gz([member("p", type=tarfile.FIFOTYPE)]), "p: is no regular file"),
    "sparse": (sparse, "s: is no regular file"),
    "twice": (lambda: tar_gz([member("a", b"1"), member("./a", b"2")]), "a: stands in it twice"),
    "file as folder": (lambda: tar_gz([member("a", b"1"), member("a/b", b"2")]), "a/b: is a file and a folder"),
    "terminal code": (lambda: tar_gz([member("a\x1b[2J", b"1")]), r"a\\x1b\[2J: cannot be a file's name"),
    "line end": (lambda: tar_gz([member("a\nb", b"1")]), "cannot be a file's name"),
    "backslash": (lambda: tar_gz([member("..\\a", b"1")]), "cannot be a file's name"),
    "long name": (lambda: tar_gz([member("a" * 300, b"1")]), "cannot be a file's name"),
    "no name": (lambda: tar_gz([member(".", b"1")]), "a file without a name"),
    "bomb": (bomb, "zeros: unpacks to more than 10.0 MB"),
    "bomb behind": (lambda: tar_gz([member("a", b"1")]) + gzip.compress(bytes(30_000_000)), "more than 10.0 MB"),
    "many": (lambda: tar_gz([member(str(n)) for n in range(101)]), "over 100 files"),
    "big header": (big_header, r"header of 30,\d+,\d+ bytes"),
    "long number": (long_number, "is no whole .tar.gz"),
    "damaged header": (not_padded, "is no whole .tar.gz: bad header"),
    "without end": (without_end, "is no whole .tar.gz"),
    "cut": (lambda: tar_gz([member("a", os.urandom(100_000))])[:50_000], "is no whole .tar.gz"),
    "wrong checksum": (wrong_checksum, "is no whole .tar.gz: CRC"),
    "bad deflate": (bad_deflate, "is no whole .tar.gz: Error -3"),
    "no gzip": (lambda: b"<html>", "is no whole .tar.gz: Not a gzipped file"),
    "no tar": (lambda: gzip.compress(b"text" * 300), "is no whole .tar.gz"),
    "empty": (lambda: b"", "is no whole .tar.gz"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archive_leaves_nothing(kind: str, tmp_path: Path) -> None:
    content, said = HOSTILE[kind]
    archive = write(tmp_path / "a.tar.gz", content())
    inside = tmp_path / "inside"
    inside.mkdir()
    with pytest.raises(InputError, match=said) as caught:
        extract(archive, inside / "output", max_bytes=10_000_000, max_members=100)
    message = str(caught.value)
    assert message.startswith(f"{archive}: ")
    assert message.isprintable()
    assert names(inside) == []
    assert names(tmp_path) == ["a.tar.gz", "inside"]


@given(flips=st.lists(st.tuples(st.integers(0, 3000), st.integers(1, 255)), min_size=1, max_size=4))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_damage_is_told_or_harmless(tmp_path_factory: pytest.TempPathFactory, flips: list[tuple[int, int]]) -> None:
    folder = tmp_path_factory.mktemp("flips")
    raw = bytearray(gzip.decompress(tar_gz(GOOD[:3])))
    for position, change in flips:
        raw[position] ^= change
    archive = write(folder / "a.tar.gz", gzip.compress(bytes(raw), 1))
    (folder / "in").mkdir()
    message = None
    try:
        extract(archive, folder / "in" / "output", max_bytes=10_000_000)
    except InputError as error:
        message = str(error)
    assert message is None or message.isprintable()
    assert names(folder / "in") == (["output"] if message is None else [])
    assert not any(path.is_symlink() for path in folder.rglob("*"))
    assert names(folder) == ["a.tar.gz", "in"]


def test_what_is_there_is_left_alone(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar.gz", tar_gz(GOOD))
    for name in ("file", "link"):
        target = tmp_path / name
        target.write_text("mine") if name == "file" else target.symlink_to("nowhere")
        with pytest.raises(InputError, match="is there already"):
            extract(archive, target)
    assert (tmp_path / "file").read_text() == "mine"
    with pytest.raises(InputError, match="cannot be written"):
        extract(archive, tmp_path / "file" / "below")
    with pytest.raises(InputError, match=r"none\.tar\.gz: cannot be read: No such file"):
        extract(tmp_path / "none.tar.gz", tmp_path / "output")


def test_fetch_from_s3(s3_server: str, tmp_path: Path) -> None:
    client, s3 = s3_client(s3_server), S3Connection(s3_config(s3_server, anonymous=True))
    client.create_bucket(Bucket="outputs")
    for name, content in (("good", tar_gz(GOOD)), ("bad", tar_gz([member("../x", b"1")])), ("large", bytes(2_000_000))):
        client.put_object(Bucket="outputs", Key=f"job/{name}.tar.gz", Body=content, ACL="public-read")
    assert fetch_output("s3://outputs/job/good.tar.gz", tmp_path / "output", s3)
    assert (tmp_path / "output" / "run" / "metrics.json").read_bytes() == b"{}"
    assert not fetch_output("s3://outputs/job/none.tar.gz", tmp_path / "none", s3)
    with pytest.raises(InputError, match=r"^s3://outputs/job/bad\.tar\.gz: \.\./x: leads out"):
        fetch_output("s3://outputs/job/bad.tar.gz", tmp_path / "bad", s3)
    with pytest.raises(InputError, match="too large: 2 MiB, at most 1 MiB"):
        fetch_output("s3://outputs/job/large.tar.gz", tmp_path / "large", s3, max_bytes=2**20)
    with pytest.raises(InputError, match="no such bucket"):
        fetch_output("s3://nowhere/job/none.tar.gz", tmp_path / "none", s3)
    assert names(tmp_path) == ["output"]


def test_a_run_folder_without_an_archive_comes_from_its_objects(s3_server: str, tmp_path: Path) -> None:
    """Of a job that was ended before it could pack its output."""
    client, s3 = s3_client(s3_server), S3Connection(s3_config(s3_server, anonymous=True))
    client.create_bucket(Bucket="checkpoints")
    for key in ("0/run/metrics.csv", "0/run/checkpoints/last.ckpt", "00/run/another"):
        client.put_object(Bucket="checkpoints", Key=key, Body=key.encode(), ACL="public-read")
    there = S3Folder(s3, "checkpoints", "0")
    assert fetch_folder(there, "run", tmp_path / "fetched") == tmp_path / "fetched/run"
    assert (tmp_path / "fetched/run/metrics.csv").read_bytes() == b"0/run/metrics.csv"
    assert names(tmp_path / "fetched/run") == ["checkpoints", "metrics.csv"]
    assert fetch_folder(S3Folder(s3, "checkpoints", "1"), "run", tmp_path / "none") is None
    client.put_object(Bucket="checkpoints", Key="0/run/../../outside", Body=b"1", ACL="public-read")
    with pytest.raises(InputError, match="cannot be a file's name; not fetched"):
        fetch_folder(there, "run", tmp_path / "hostile")
    assert names(tmp_path) == ["fetched"]
