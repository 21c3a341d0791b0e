"""A mirror holds what the server has: of the server that is reached, and of the version that it has now."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

from binventory.data.inputs import list_inputs
from binventory.data.prepare import IndexedBins, index_bins
from binventory.data.sources import mirror, s3
from binventory.data.sources.base import Listing
from binventory.data.sources.bucket import BucketSource
from binventory.data.sources.mirror import distrust
from binventory.data.sources.s3 import mirror_folder, resolved
from binventory.data.sources.table import TableSource
from tests.data.test_prepare import config
from tests.s3 import BUCKET, FaultProxy, draw_bins, odd_server, s3_client, s3_config, upload

PROFILE = "[default]\nservices = here\n[services here]\ns3 =\n  endpoint_url = {url}\n"


LABELS = dict.fromkeys("13", 2) | dict.fromkeys("ac", 1)


@pytest.fixture(autouse=True)
def _no_aws_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "aws_config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))


def relabel(endpoint_url: str, bucket: str, bin_id: str, quantity: int) -> None:
    """Give a bin another quantity; the object's size stays."""
    client = s3_client(endpoint_url)
    key = f"metadata/{bin_id}.json"
    before = client.get_object(Bucket=bucket, Key=key)["Body"].read()
    after = json.dumps(json.loads(before) | {"EXPECTED_QUANTITY": quantity}).encode()
    assert len(after) == len(before)
    client.put_object(Bucket=bucket, Key=key, Body=after, ACL="public-read")


@pytest.fixture
def bucket(s3_server: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A bucket of the test's own: the bins of LABELS and no file list."""
    name = f"m{abs(hash(request.node.nodeid)) % 10**12}"
    draw_bins(tmp_path / "seed", LABELS)
    (tmp_path / "seed" / "file_list.json").rename(tmp_path / "list.json")
    upload(s3_server, name, tmp_path / "seed")
    return name


Fetch = Callable[[str, str, Path], Listing]


def listed(url: str, bucket: str, folder: Path) -> Listing:
    return BucketSource(
        f"s3://{bucket}", file_list=None, limit=None, s3=s3_config(url), data_dir=folder / "data"
    ).fetch()


def by_file_list(url: str, bucket: str, folder: Path) -> Listing:
    options: dict[str, Any] = {"limit": None, "s3": s3_config(url), "data_dir": folder / "data"}
    return BucketSource(f"s3://{bucket}", file_list=str(folder / "list.json"), **options).fetch()


def index(folder: Path, bucket: str, url: str | None, **data: Any) -> IndexedBins:
    settings, reached, paths = config(folder, Path(), max_bad_fraction=1.0, **data)
    settings.source = f"s3://{bucket}"
    reached.update({"endpoint_url": url, "region": "us-east-1", "max_attempts": 3})
    return index_bins(settings, reached, paths)


def quantities(listing: Listing) -> dict[str, int]:
    found = {bin.id: json.loads(bin.metadata.read_bytes()) for bin in listing.bins if bin.metadata is not None}
    return {bin_id: facts["EXPECTED_QUANTITY"] for bin_id, facts in found.items()}


# Servers


@pytest.mark.parametrize("setting", ["AWS_ENDPOINT_URL_S3", "profile"])
def test_two_servers_do_not_share_a_mirror(
    s3_server: str, s3_faults: FaultProxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    s3_faults.answers[f"/{bucket}/metadata/1.json"] = b'{"BIN_FCSKU_DATA": {}, "EXPECTED_QUANTITY": 4}'

    def prepare(url: str) -> tuple[int, Path]:
        if setting == "profile":
            (tmp_path / "aws_config").write_text(PROFILE.format(url=url))
        else:
            monkeypatch.setenv(setting, url)
        bins = index(tmp_path, bucket, None)
        return bins.index["quantity"][0].as_py(), bins.folder

    here, there = prepare(s3_server), prepare(s3_faults.url)
    assert (here[0], there[0]) == (2, 4)
    assert here[1] != there[1], "nor do they share an index"
    assert prepare(s3_server) == here


@pytest.mark.parametrize(
    ("url", "is_aws"),
    [
        *((f"https://s3.{region}.amazonaws.com", True) for region in ("us-east-1", "eu-central-1")),
        ("https://s3.dualstack.us-west-2.amazonaws.com", True),
        ("https://s3.us-gov-west-1.amazonaws.com", False),
        ("https://s3.cn-north-1.amazonaws.com.cn", False),
        ("https://s3-1.compute-1.amazonaws.com", False),
        ("https://s3.us-east-1.amazonaws.com:9000", False),
        ("https://s3.us-east-1.amazonaws.com/minio", False),
        ("http://minio.local:9000", False),
    ],
)
def test_aws_is_one_server_and_others_are_themselves(url: str, is_aws: bool) -> None:
    assert s3._is_aws(url) is is_aws


@pytest.mark.parametrize("url", ["https://s3.eu-central-1.amazonaws.com", "http://minio.local:9000"])
def test_mirror_folder_of_a_server_is_one_however_it_is_named(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    folder = mirror_folder("b", resolved(replace(s3_config(""), endpoint_url=None)), "data")
    assert folder == (Path("data/s3/b") if "amazonaws" in url else mirror_folder("b", s3_config(url), "data"))


# Versions


@pytest.mark.parametrize(("fetch", "left_out"), [(listed, set()), (by_file_list, set()), (by_file_list, {"etag"})])
def test_relabelled_object_of_the_same_size(
    s3_server: str, s3_faults: FaultProxy, bucket: str, tmp_path: Path, fetch: Fetch, left_out: set[str]
) -> None:
    s3_faults.left_out = left_out
    first = fetch(s3_faults.url, bucket, tmp_path)
    assert quantities(first) == LABELS
    if left_out:  # only the time is left, in whole seconds
        for found in first.bins:
            assert found.metadata is not None
            os.utime(found.metadata, (1_000_000_000, 1_000_000_000))
    s3_faults.gets.clear()
    for bin_id in "1a":
        relabel(s3_server, bucket, bin_id, 5)
    assert quantities(fetch(s3_faults.url, bucket, tmp_path)) == LABELS | dict.fromkeys("1a", 5)
    if not left_out:
        assert set(s3_faults.objects()) - {"file_list.json"} == {f"{bin_id}.json" for bin_id in "1a"}


@pytest.mark.parametrize("keys_a_hit", [20, 0])
def test_many_files_of_a_list_are_looked_up_in_the_listing(
    s3_server: str,
    s3_faults: FaultProxy,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keys_a_hit: int,
) -> None:
    monkeypatch.setattr(mirror, "MIN_LISTED", 3)
    monkeypatch.setattr(s3, "MAX_KEYS_A_HIT", keys_a_hit)
    monkeypatch.setattr(s3, "PAGE_KEYS", 2)
    by_file_list(s3_faults.url, bucket, tmp_path)
    relabel(s3_server, bucket, "c", 5)
    s3_faults.heads.clear()
    s3_faults.gets.clear()
    assert quantities(by_file_list(s3_faults.url, bucket, tmp_path)) == LABELS | {"c": 5}
    names = [path for path in s3_faults.heads if path.endswith((".jpg", ".json"))]
    assert len(names) == (0 if keys_a_hit else 4), "where they are far apart one page is looked at"
    assert s3_faults.gets[f"/{bucket}"] == (4 if keys_a_hit else 2)


def test_photo_of_a_table_that_was_replaced(s3_server: str, bucket: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        f"path,quantity\ns3://{bucket}/bin-images/1.jpg,1\ns3://{bucket}/bin-images/3.jpg,1\n"
    )
    options: dict[str, Any] = {"file_list": None, "limit": None, "s3": s3_config(s3_server), "data_dir": tmp_path / "d"}
    source = TableSource(str(tmp_path / "t.csv"), **options)
    before = [found.photo.read_bytes() for found in source.fetch().bins if found.photo is not None]
    s3_client(s3_server).put_object(Bucket=bucket, Key="bin-images/1.jpg", Body=before[0][::-1], ACL="public-read")
    after = [found.photo.read_bytes() for found in source.fetch().bins if found.photo is not None]
    assert after == [before[0][::-1], before[1]]


def test_mirror_of_an_earlier_version_is_compared_and_kept(
    s3_server: str, s3_faults: FaultProxy, bucket: str, tmp_path: Path
) -> None:
    listing = listed(s3_faults.url, bucket, tmp_path)
    for found in listing.bins:
        for path in (found.photo, found.metadata):
            assert path is not None
            os.utime(path)  # the time of the download, as files had it
    relabel(s3_server, bucket, "3", 4)
    s3_faults.gets.clear()
    assert quantities(listed(s3_faults.url, bucket, tmp_path))["3"] == 4
    assert set(s3_faults.objects()) - {"file_list.json"} == {"3.json"}


def test_object_that_was_removed_is_missing(s3_server: str, bucket: str, tmp_path: Path) -> None:
    by_file_list(s3_server, bucket, tmp_path)
    for name in ("bin-images/3.jpg", "metadata/3.json", "bin-images/c.jpg"):
        s3_client(s3_server).delete_object(Bucket=bucket, Key=name)
    listing = by_file_list(s3_server, bucket, tmp_path)
    assert listing.absent == ("3",)
    assert {found.id: found.photo is not None for found in listing.bins} == dict.fromkeys("1a", True) | {"c": False}


def test_file_that_is_damaged_here_is_fetched_again(s3_server: str, bucket: str, tmp_path: Path) -> None:
    (one, *_) = by_file_list(s3_server, bucket, tmp_path).bins
    assert one.photo is not None
    whole = one.photo.read_bytes()
    one.photo.write_bytes(bytes(len(whole)))
    by_file_list(s3_server, bucket, tmp_path)
    assert one.photo.read_bytes() == whole


# What cannot be decoded

PAGE = b"<html><body>Sign in to the guest network</body></html>"


def test_page_in_the_place_of_a_photo_or_metadata_does_not_stay(
    s3_faults: FaultProxy, bucket: str, tmp_path: Path
) -> None:
    paths = [f"/{bucket}/bin-images/1.jpg", f"/{bucket}/bin-images/c.jpg", f"/{bucket}/metadata/3.json"]
    s3_faults.answers = dict.fromkeys(paths, PAGE)
    options = {"file_list": str(tmp_path / "list.json")}
    rows = {row["id"]: row for row in index(tmp_path, bucket, s3_faults.url, **options).index.to_pylist()}
    assert {bin_id for bin_id, row in rows.items() if row["problem"]} == {"1", "3", "c"}
    s3_faults.answers.clear()
    s3_faults.gets.clear()
    rows = {row["id"]: row for row in index(tmp_path, bucket, s3_faults.url, **options).index.to_pylist()}
    assert {bin_id: row["quantity"] for bin_id, row in rows.items() if not row["problem"]} == LABELS
    assert sorted(set(s3_faults.objects()) - {"file_list.json"}) == ["1.jpg", "3.json", "c.jpg"]


def test_page_in_the_place_of_a_photo_to_predict_does_not_stay(s3_faults: FaultProxy, tmp_path: Path) -> None:
    reached, uri = s3_config(s3_faults.url), f"s3://{BUCKET}/bin-images/00001.jpg"
    s3_faults.answers[f"/{BUCKET}/bin-images/00001.jpg"] = PAGE
    (photo,) = list_inputs(uri, reached, tmp_path)
    assert photo.path is not None
    distrust(
        [photo.path, tmp_path / "elsewhere.jpg"], tmp_path
    )  # as predict and evaluate do with what they cannot read
    s3_faults.answers.clear()
    (photo,) = list_inputs(uri, reached, tmp_path)
    assert photo.path is not None
    assert photo.path.read_bytes()[:2] == b"\xff\xd8"


def test_object_that_is_broken_on_the_server_is_fetched_once(
    s3_server: str, s3_faults: FaultProxy, bucket: str, tmp_path: Path
) -> None:
    s3_client(s3_server).put_object(Bucket=bucket, Key="bin-images/1.jpg", Body=PAGE, ACL="public-read")
    for number_of_gets in (1, 0):
        s3_faults.gets.clear()
        listing = by_file_list(s3_faults.url, bucket, tmp_path)
        assert s3_faults.objects()["1.jpg"] == number_of_gets
        distrust([found.photo for found in listing.bins if found.photo is not None], tmp_path / "data")


# Out of reach


def test_server_that_ends_meanwhile(s3_faults: FaultProxy, bucket: str, tmp_path: Path, capsys: Any) -> None:
    first = by_file_list(s3_faults.url, bucket, tmp_path)
    s3_faults.close()
    assert by_file_list(s3_faults.url, bucket, tmp_path) == first
    said = capsys.readouterr().err
    assert f"warning: s3://{bucket}: 8 files are taken as they are here: the server does not say whether" in said


def test_server_that_has_trouble_of_its_own(bucket: str, s3_server: str, tmp_path: Path) -> None:
    first = by_file_list(s3_server, bucket, tmp_path)
    with odd_server(lambda request: request.send_error(503)) as url:
        there = mirror_folder(bucket, s3_config(url), tmp_path / "data")
        mirror_folder(bucket, s3_config(s3_server), tmp_path / "data").parent.rename(there.parent)
        assert [found.problem for found in by_file_list(url, bucket, tmp_path).bins] == [None] * len(first.bins)


def test_server_that_only_knows_get(tmp_path: Path) -> None:
    content = b"old"

    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.command == "HEAD":
            request.send_error(501)
            return
        body = b"<ListBucketResult/>" if "list-type" in request.path else content
        request.send_response(200)
        request.send_header("ETag", f'"{body.decode()}"')
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    (tmp_path / "list.json").write_text('{"1": ["data/metadata/7.json"]}')
    with odd_server(answer) as url:
        (before,) = by_file_list(url, "bucket", tmp_path).bins
        assert by_file_list(url, "bucket", tmp_path).bins[0] == before
        content = b"new"
        assert by_file_list(url, "bucket", tmp_path).bins[0].photo == before.photo
    assert before.photo is not None
    assert before.photo.read_bytes() == b"new"


def test_object_that_may_no_longer_be_read_is_not_taken_from_the_mirror(
    s3_server: str, bucket: str, tmp_path: Path
) -> None:
    by_file_list(s3_server, bucket, tmp_path)
    s3_client(s3_server).put_object_acl(Bucket=bucket, Key="bin-images/3.jpg", ACL="private")
    problems = {found.id: found.problem for found in by_file_list(s3_server, bucket, tmp_path).bins}
    assert problems == dict.fromkeys("1ac") | {"3": f"s3://{bucket}/bin-images/3.jpg: access denied (HTTP 403)"}
