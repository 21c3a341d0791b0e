"""Ids, file names and S3 keys from outside never lead out of their folder, and a strange one costs only its own bin."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from binventory.data.export import export_imagefolder
from binventory.data.inputs import list_inputs
from binventory.data.prepare import prepare_bins
from binventory.data.sources import mirror, s3
from binventory.data.sources.base import Listing
from binventory.data.sources.bucket import BucketSource
from binventory.data.sources.imagefolder import ImageFolderSource
from binventory.data.sources.mirror import target_of
from binventory.errors import InputError
from tests.data import hostile
from tests.data.hostile import HEALTHY, encode, photo, stated, truth, write_bucket
from tests.data.test_hostile import facts, prepare
from tests.data.test_prepare import config
from tests.s3 import BINS, BUCKET, FaultProxy, put, s3_client, s3_config, upload

# File names (without the suffix) that a folder can hold and an id cannot
STRANGE = [
    *(
        b"line\nend",
        b"\x1b[2Jclear",
        b"back\\slash",
        b"a\\..\\..\\evil",
        b"\xff\xfe",
        b"\xe2\x80\xaeright to left",
        b"~made",
    ),
    *(b"x" * 240, "箱".encode() * 75, b"\x7f", b"tab\tbed"),
]
UNICODE = ["箱" * 60, "e\u0301 combined", "é", "a..b", "%2e%2e%2f", "it's $HOME `id`", "=1+1", "null", "0x10", " "]  # fmt: skip


def files_below(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


def test_folder_of_strange_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "source"
    hostile.write_healthy(source)
    alone, _ = prepare(tmp_path, "data=abid", f"data.source={source}")
    for name in STRANGE:
        write_bucket(source, os.fsdecode(name), encode(photo(1)), stated(2))
    for name in UNICODE:
        write_bucket(source, name, encode(photo(2)), stated(2))
    rows, summary = prepare(tmp_path, "data=abid", f"data.source={source}")
    assert len(rows) == summary["total"] == len(HEALTHY) + len(STRANGE) + len(UNICODE)
    assert summary["bad"].keys() == {"name cannot be a bin id"}
    assert len(summary["bad"]["name cannot be a bin id"]) == len(STRANGE)
    for name in UNICODE:
        assert (rows[name]["quantity"], rows[name]["problem"]) == (2, None)
    for bin_id, row in alone.items():
        assert facts(rows[bin_id]) == facts(row)
    strange = [row for bin_id, row in rows.items() if row["problem"]]
    assert all(row["id"].isprintable() and row["problem"].isprintable() and row["split"] is None for row in strange)
    said = capsys.readouterr()
    assert f"bad: {len(STRANGE)} x name cannot be a bin id, e.g. ~" in said.err
    assert "\x1b" not in said.out + said.err


def test_tree_of_strange_names(tmp_path: Path) -> None:
    for place, name in enumerate([*STRANGE, *map(os.fsencode, UNICODE), b"fine"]):
        folder = tmp_path / "tree" / str(place % 2 + 1)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / os.fsdecode(name + b".jpg")).write_bytes(encode(photo(place)))
    source = ImageFolderSource(str(tmp_path / "tree"), file_list=None, limit=None, s3=s3_config(""), data_dir="unused")
    listing = source.fetch()
    assert len(listing.bins) == len(STRANGE) + len(UNICODE) + 1
    assert sum(found.problem is not None for found in listing.bins) == len(STRANGE)
    assert {found.id for found in listing.bins if found.problem is None} == {*UNICODE, "fine"}
    photos = list_inputs(str(tmp_path / "tree"), s3_config(""), "unused")
    assert len({photo.id for photo in photos}) == len(listing.bins)
    assert all(photo.path is not None and photo.id.isprintable() for photo in photos), "they can be predicted"


def test_export_keeps_every_name_it_can(tmp_path: Path) -> None:
    for place, name in enumerate(UNICODE):
        write_bucket(tmp_path / "source", name, encode(photo(place)), stated(place % 2 + 1))
    hostile.write_healthy(tmp_path / "source")
    bins = prepare_bins(*config(tmp_path, tmp_path / "source"))
    outside = files_below(tmp_path)
    output = export_imagefolder(bins, tmp_path / "tree")
    assert {path for path in files_below(tmp_path) if output not in path.parents} == outside
    written = {path.stem: int(path.parent.name) for path in output.glob("*/*/*.jpg")}
    quantities = {name: place % 2 + 1 for place, name in enumerate(UNICODE)}
    assert written == {name: quantities.get(name) or truth(name) for name in [*UNICODE, *HEALTHY]}


def test_links_in_a_folder_of_ones_own_are_followed_and_exported_as_files(tmp_path: Path) -> None:
    hostile.write_healthy(tmp_path / "source")
    linked = tmp_path / "source" / "bin-images" / "100000.jpg"
    (tmp_path / "elsewhere").mkdir()
    linked.rename(tmp_path / "elsewhere" / "photo.jpg")
    linked.symlink_to("../../elsewhere/photo.jpg")
    bins = prepare_bins(*config(tmp_path, tmp_path / "source"))
    assert bins.summary.num_bad == 0
    output = export_imagefolder(bins, tmp_path / "deep" / "er" / "tree")
    (exported,) = output.glob("*/1/100000*")
    assert not exported.is_symlink()
    assert exported.read_bytes() == (tmp_path / "elsewhere" / "photo.jpg").read_bytes()


# S3

EVIL_KEYS = [
    *("../evil.jpg", "bin-images/../../evil.jpg", "bin-images/..\\..\\evil.jpg", "bin-images/%2e%2e%2fevil.jpg"),
    *("/evil.jpg", "//evil.jpg", "bin-images//evil.jpg", "bin-images/./evil.jpg", "bin-images/a\\..\\evil.jpg"),
    *(
        "bin-images/\x1b[2Jevil.jpg",
        f"bin-images/{'evil' * 75}.jpg",
        "metadata/a\\..\\evil.json",
        "bin-images/~evil.jpg",
    ),
    *("bin-images/.evil.jpg", "bin-images/...jpg", "bin-images/..jpg", "bin-images/\tevil.jpg"),
]
EVIL_TREE = ["1/a.jpg", "1/../../evil.jpg", "2/a\\..\\evil.jpg", "../2/evil.jpg", "1//evil.jpg", "2/\tevil.jpg"]


@pytest.fixture(scope="module")
def evil_bucket(s3_server: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A bucket of healthy bins, among whose keys are those that mean to lead out of any folder."""
    folder = tmp_path_factory.mktemp("evil")
    hostile.write_healthy(folder)
    upload(s3_server, "evil", folder)
    client = s3_client(s3_server)
    keys = {*EVIL_KEYS, *(f"tree/{key}" for key in EVIL_TREE)}
    for key in keys:
        put(s3_server, "evil", key, encode(photo(1)))
    assert keys <= {entry["Key"] for entry in client.list_objects_v2(Bucket="evil")["Contents"]}
    return "s3://evil"


def test_keys_stay_below_the_data_folder(evil_bucket: str, s3_server: str, tmp_path: Path) -> None:
    endpoint = f"s3.endpoint_url={s3_server}"
    rows, summary = prepare(tmp_path, "data=abid", f"data.source={evil_bucket}", endpoint)
    assert {bin_id for bin_id, row in rows.items() if row["problem"] is None} == set(HEALTHY)
    assert rows["%2e%2e%2fevil"]["problem"] == "metadata is missing"  # a name like any other: nobody decodes it
    bad_names = summary["bad"]["name cannot be a bin id"]
    assert len(bad_names) == 5  # backslashes, tab, terminal code, 300 characters, ~
    home = target_of("evil", "bin-images/x.jpg", s3_config(s3_server), ".cache/data")
    assert home is not None
    for path in files_below(tmp_path):
        assert "evil" not in path.name or path.suffix == ".lock" or path.parent == tmp_path / home.parent, path
        assert "\\" not in path.name


def test_line_end_in_a_key_costs_that_bin_only(s3_faults: FaultProxy, tmp_path: Path) -> None:
    s3_faults.faults[f"/{BUCKET}/file_list.json"] = ["404 NoSuchKey"]
    keys = b"".join(
        b"<Contents><Key>bin-images/%s.jpg</Key><Size>1</Size></Contents>" % key for key in (b"00001", b"line%0Aend")
    )
    s3_faults.answers[f"/{BUCKET}"] = (
        b"<ListBucketResult><EncodingType>url</EncodingType><IsTruncated>false</IsTruncated>%s</ListBucketResult>"
        % keys
    )
    fine, strange = fetch(s3_config(s3_faults.url), tmp_path).bins
    assert (fine.id, fine.problem) == ("00001", None)
    assert strange.problem == "name cannot be a bin id: 'line\\nend'"
    assert list(s3_faults.objects()) == ["file_list.json", "00001.jpg"]


def test_tree_keys_stay_below_the_data_folder(evil_bucket: str, s3_server: str, tmp_path: Path) -> None:
    source = ImageFolderSource(
        f"{evil_bucket}/tree", file_list=None, limit=None, s3=s3_config(s3_server), data_dir=tmp_path / "data"
    )
    bins = source.fetch().bins
    assert {found.id: found.quantity for found in bins if found.problem is None} == {"a": 1}
    assert {found.problem for found in bins if found.id != "a"} == {"the key cannot be a path on this machine"}
    assert len(bins) == 6
    assert [path.name for path in files_below(tmp_path) if path.suffix != ".lock"] == ["a.jpg"]


@pytest.mark.parametrize(
    "entry", ["data/metadata/../../evil.json", "data/metadata/..\\evil.json", "/data/.evil.json", "data/e\0vil.json"]
)
def test_file_list_entry_is_refused_before_anything_is_fetched(
    s3_faults: FaultProxy, tmp_path: Path, entry: str
) -> None:
    s3_faults.answers[f"/{BUCKET}/file_list.json"] = json.dumps({"1": ["data/metadata/00001.json", entry]}).encode()
    with pytest.raises(InputError, match=r"data\.source: file list s3://bins/file_list\.json: count 1: .*vil"):
        fetch(s3_config(s3_faults.url), tmp_path)
    assert set(s3_faults.objects()) == {"file_list.json"}
    assert files_below(tmp_path) == set()


def fetch(settings: Any, data_dir: Path, location: str = f"s3://{BUCKET}") -> Listing:
    return BucketSource(location, file_list=None, limit=None, s3=settings, data_dir=data_dir).fetch()


@pytest.mark.parametrize("link", ["bin-images", "bucket", "endpoint"])
def test_download_goes_through_no_link(s3_server: str, tmp_path: Path, link: str) -> None:
    target = target_of(BUCKET, "bin-images/00001.jpg", s3_config(s3_server), tmp_path / "data")
    assert target is not None
    place = {"bin-images": target.parent, "bucket": target.parents[1], "endpoint": target.parents[2]}[link]
    place.parent.mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    place.symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match=rf"data\.source: {place}: is a symbolic link, and downloads follow none"):
        fetch(s3_config(s3_server), tmp_path / "data")
    assert list((tmp_path / "outside").iterdir()) == []


def test_linked_files_are_replaced_and_what_they_lead_to_is_untouched(s3_server: str, tmp_path: Path) -> None:
    settings = s3_config(s3_server)
    (tmp_path / "mine.txt").write_text("mine")
    folder = (target_of(BUCKET, "bin-images/x", settings, tmp_path / "data") or tmp_path).parent
    folder.mkdir(parents=True)
    (folder / "00001.jpg").symlink_to(tmp_path / "mine.txt")
    (folder / ".00002.jpg.part").symlink_to(tmp_path / "mine.txt")
    os.link(tmp_path / "mine.txt", folder / ".01000.jpg.part")
    listing = fetch(settings, tmp_path / "data")
    assert [found.problem for found in listing.bins] == [None] * len(BINS)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert not (folder / "00001.jpg").is_symlink()
    assert {path.name for path in folder.iterdir()} == {f"{bin_id}.jpg" for bin_id in BINS}


def test_half_written_file_that_is_a_link_is_not_written_through(s3_server: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / ".photo.jpg.part").symlink_to(tmp_path / "mine.txt")
    connection = s3.S3Connection(s3_config(s3_server))
    assert connection.download(BUCKET, "bin-images/00001.jpg", tmp_path / "photo.jpg") is not None
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_linked_lock_is_refused(s3_server: str, tmp_path: Path) -> None:
    settings = s3_config(s3_server)
    (tmp_path / "mine.txt").write_text("mine")
    bucket = mirror.mirror_folder(BUCKET, settings, tmp_path / "data")
    bucket.parent.mkdir(parents=True)
    (bucket.parent / f".{BUCKET}.lock").symlink_to(tmp_path / "mine.txt")
    with pytest.raises(InputError, match="is a symbolic link"):
        fetch(settings, tmp_path / "data")
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_object_that_is_too_large_is_not_fetched(s3_server: str, s3_faults: FaultProxy, tmp_path: Path) -> None:
    s3_faults.answers[f"/{BUCKET}/metadata/00002.json"] = bytes(65 * 2**20)
    bins = {found.id: found for found in fetch(s3_config(s3_faults.url), tmp_path).bins}
    assert bins["00002"].problem == f"s3://{BUCKET}/metadata/00002.json: too large: 65 MiB, at most 64 MiB are fetched"
    assert [bin_id for bin_id, found in bins.items() if found.problem] == ["00002"]
    assert max(path.stat().st_size for path in files_below(tmp_path)) < 10_000
    assert s3_faults.objects()["00002.json"] == 1


def test_list_that_is_too_large_is_not_read(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "MAX_LIST_BYTES", 2**20)
    s3_client(s3_server).create_bucket(Bucket="large")
    body = b" " * (2**20 + 1)
    s3_client(s3_server).put_object(Bucket="large", Key="file_list.json", Body=body, ACL="public-read")
    with pytest.raises(InputError, match=r"s3://large/file_list\.json: too large: 1 MiB, at most 1 MiB are fetched"):
        fetch(s3_config(s3_server), tmp_path, "s3://large")


@pytest.mark.parametrize(
    "answer",
    [
        b"<ListBucketResult><Contents><Key>bin-images/1.jpg</Key><Size>many</Size></Contents></ListBucketResult>",
        b"<ListBucketResult><Contents><Size>3</Size></Contents></ListBucketResult>",
        b"<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>",
        b"<ListBucketResult><Contents><LastModified>yesterday</LastModified></Contents></ListBucketResult>",
        b"<!DOCTYPE a [<!ENTITY x 'y'>]><a>&x;</a>",
        b"\0\0\0",
        b"",
    ],
)
def test_listing_that_makes_no_sense_is_one_line(s3_faults: FaultProxy, tmp_path: Path, answer: bytes) -> None:
    s3_faults.faults[f"/{BUCKET}/file_list.json"] = ["404 NoSuchKey"]
    s3_faults.answers[f"/{BUCKET}"] = answer
    with pytest.raises(InputError, match=r"^data\.source: s3://bins") as caught:
        fetch(s3_config(s3_faults.url, max_attempts=1), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["file_list.json", "t.csv", "t.parquet"])
def test_pipe_in_place_of_a_list_does_not_hang(tmp_path: Path, name: str) -> None:
    hostile.write_healthy(tmp_path)
    os.mkfifo(tmp_path / name)
    data: dict[str, Any] = {}
    if name.startswith("t."):
        data["reader"] = {"_target_": "binventory.data.sources.table.TableSource"}
    with pytest.raises(InputError, match=rf"{name}: is not a regular file"):
        prepare_bins(*config(tmp_path / "run", tmp_path / name if data else tmp_path, **data))
