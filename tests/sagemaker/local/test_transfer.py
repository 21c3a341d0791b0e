"""What is carried between S3 and an instance, file by file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from binventory.sagemaker.local.transfer import (
    ORDERS,
    CheckpointSync,
    DownloadError,
    download,
    relative_name,
    split_uri,
)
from tests.s3 import s3_client

BUCKET = "carried"


@pytest.fixture(scope="module")
def s3(s3_server: str) -> Any:
    client = s3_client(s3_server)
    client.create_bucket(Bucket=BUCKET)
    return client


@pytest.mark.parametrize(
    ("key", "prefix", "name"),
    [
        ("data/a/b.jpg", "data", "a/b.jpg"),
        ("data/a/b.jpg", "data/", "a/b.jpg"),
        ("data/a/b.jpg", "", "data/a/b.jpg"),
        ("data/job.json", "data/job.json", "job.json"),
        ("data-2/b.jpg", "data", "data-2/b.jpg"),
        ("x/data-2/b.jpg", "x/da", "data-2/b.jpg"),
    ],
)
def test_where_an_object_lies_in_its_channel(key: str, prefix: str, name: str) -> None:
    assert relative_name(key, prefix) == name


def test_uris() -> None:
    assert split_uri("s3://bucket/some/key") == ("bucket", "some/key")
    assert split_uri("s3://bucket") == ("bucket", "")
    assert split_uri("s3://bucket/odd?key") == ("bucket", "odd?key")
    assert split_uri("s3://bucket/odd#key") == ("bucket", "odd#key")


@pytest.mark.parametrize("key", ["../escape", "{here}/outside", "a/../../b"])
def test_keys_that_would_leave_the_channel(s3: Any, tmp_path: Path, key: str) -> None:
    """Only as far as this test's own folder: with the guard taken out, they do leave."""
    prefix = f"leaving-{len(key)}"
    key = key.format(here=tmp_path)
    for name in ("a.txt", key):
        s3.put_object(Bucket=BUCKET, Key=f"{prefix}/{name}", Body=b"")
    with pytest.raises(DownloadError, match=r"^ClientError: Data download failed: key "):
        download(s3, f"s3://{BUCKET}/{prefix}", tmp_path / "channel")
    assert {path.name for path in tmp_path.rglob("*")} <= {"channel", "a.txt"}


def test_a_key_that_is_a_file_and_a_folder(s3: Any, tmp_path: Path) -> None:
    for key in ("both/a", "both/a/b"):
        s3.put_object(Bucket=BUCKET, Key=key, Body=b"")
    with pytest.raises(DownloadError, match="is a file and a folder"):
        download(s3, f"s3://{BUCKET}/both", tmp_path)


def test_checkpoints_go_up_and_come_down(s3: Any, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    (here / "deep").mkdir(parents=True)
    (here / "deep" / "last.ckpt").write_text("1")
    (here / "link").symlink_to("/etc/passwd")
    sync = CheckpointSync(s3, here, f"s3://{BUCKET}/ckpt/", ORDERS["name"])
    sync.push()
    sync.push()
    assert sync.uploaded == ["deep/last.ckpt"]  # once, and no link
    (here / "deep" / "last.ckpt").write_text("22")
    (here / "b").touch()
    (here / "a").touch()
    sync.push(limit=2)
    assert sync.uploaded[1:] == ["a", "b"]
    sync.push(limit=0)
    (here / "a").unlink()
    sync.push()
    assert sync.uploaded[3:] == ["deep/last.ckpt"]
    back = CheckpointSync(s3, there, f"s3://{BUCKET}/ckpt", ORDERS["name"])
    back.pull()
    assert sorted(path.relative_to(there).as_posix() for path in there.rglob("*")) == [
        "a",
        "b",
        "deep",
        "deep/last.ckpt",
    ]
    assert (there / "deep" / "last.ckpt").read_text() == "22"
    back.push()
    assert back.uploaded == []  # what came down has not changed
    assert back.has("deep/*.ckpt")
    assert not back.has("*.ckpt")
