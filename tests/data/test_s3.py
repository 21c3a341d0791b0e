"""Mirroring from a real S3 server process, also through broken connections and SIGKILL."""

from __future__ import annotations

import errno
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from binventory.config.schema import S3Config
from binventory.data.sources import mirror, progress
from binventory.data.sources.base import Listing
from binventory.data.sources.bucket import BucketSource
from binventory.data.sources.file_list import read_file_list
from binventory.data.sources.mirror import target_of
from binventory.data.sources.photo_tree import fetch_uris
from binventory.data.sources.s3 import S3Connection, mirror_folder, read_object
from binventory.errors import InputError
from tests.running import run_here
from tests.s3 import BINS, BUCKET, FaultProxy, draw_bins, s3_client, s3_config, upload


def fetch(
    s3: S3Config,
    data_dir: Path,
    location: str = f"s3://{BUCKET}",
    file_list: str | None = None,
    limit: int | None = None,
) -> Listing:
    return BucketSource(location, file_list=file_list, limit=limit, s3=s3, data_dir=data_dir).fetch()


def photo(bin_id: str, bucket: str = BUCKET) -> str:
    return f"/{bucket}/bin-images/{bin_id}.jpg"


def files_below(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and not path.name.endswith(".lock"))


def test_mirror_gives_the_files_of_the_listed_bins(s3_server: str, tmp_path: Path) -> None:
    draw_bins(tmp_path / "seed", {"7": 3})
    (tmp_path / "seed" / "file_list.json").unlink()
    upload(s3_server, "other", tmp_path / "seed", "deep/er/")
    listing = fetch(s3_config(s3_server), tmp_path / "data", "s3://other/deep/er/")
    (found,) = listing.bins
    assert found.photo is not None
    assert found.photo.read_bytes() == (tmp_path / "seed/bin-images/7.jpg").read_bytes()
    assert found.metadata is not None
    assert found.metadata.read_bytes() == (tmp_path / "seed/metadata/7.json").read_bytes()
    assert (found.needs_metadata, found.problem, listing.absent, listing.split_list) == (True, None, (), None)


def test_own_file_list_is_taken_and_splits_in_file_order(s3_server: str, tmp_path: Path) -> None:
    listing = fetch(s3_config(s3_server), tmp_path)
    assert [found.id for found in listing.bins] == sorted(BINS, key=lambda bin_id: f"{bin_id}.jpg")
    assert {"1000", "01000"} <= {found.id for found in listing.bins}  # two photos, not one number
    assert list((listing.split_list or {}).items()) == sorted(BINS.items(), key=lambda pair: pair[1])
    assert read_file_list(f"s3://{BUCKET}/file_list.json", s3_config(s3_server)) == BINS


def test_second_run_downloads_nothing(s3_faults: FaultProxy, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    s3 = s3_config(s3_faults.url)
    first = fetch(s3, tmp_path)
    assert "downloaded 16, already there 0, missing 0, failed 0" in capsys.readouterr().err
    assert set(s3_faults.objects().values()) == {1}
    s3_faults.gets.clear()
    assert fetch(s3, tmp_path) == first
    assert "downloaded 0, already there 16, missing 0, failed 0; 0.0 MB" in capsys.readouterr().err
    assert list(s3_faults.objects()) == ["file_list.json"]


def test_what_is_here_needs_no_server(s3_faults: FaultProxy, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('{"1": ["data/metadata/00001.json", "data/metadata/00002.json"]}')
    s3 = s3_config(s3_faults.url)
    first = fetch(s3, tmp_path, file_list=str(tmp_path / "list.json"))
    s3_faults.close()
    assert fetch(s3, tmp_path, file_list=str(tmp_path / "list.json")) == first


def test_fatal_error_ends_the_rest_at_once(s3_faults: FaultProxy, tmp_path: Path) -> None:
    s3_faults.delay_s = 0.1
    s3_faults.faults = {photo("00001"): ["500"] * 50, photo("00002"): ["400 ExpiredToken"]}
    started = time.monotonic()
    with pytest.raises(InputError, match=r"00002\.jpg: the credentials have expired"):
        fetch(s3_config(s3_faults.url, max_concurrency=2, max_attempts=50), tmp_path)
    assert time.monotonic() - started < 5  # one thread was waiting for its next attempt, which is minutes in all
    assert len(s3_faults.objects()) < 8


def test_full_disk_ends_the_download(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(InputError, match=r"data.source: .*: cannot be written: No space left on device"):
        fetch(s3_config(s3_server), tmp_path)
    assert files_below(tmp_path) == []


def test_key_that_is_also_a_folder(s3_server: str, tmp_path: Path) -> None:
    client = s3_client(s3_server)
    client.create_bucket(Bucket="both")
    keys = ("1/x.jpg", "1/x.jpg/y.jpg")
    for key in keys:
        client.put_object(Bucket="both", Key=key, Body=b"a photo", ACL="public-read")
    for order in (keys, keys[::-1]):
        for _ in "ab":  # the second run must not take the folder for the photo
            photos = {}
            for key in order:
                photos |= fetch_uris([f"s3://both/{key}"], s3_config(s3_server), tmp_path / order[0][-5], "test")
            assert [found.path is None for found in photos.values()] == [False, True]
            assert "cannot become a file" in (photos[f"s3://both/{order[1]}"].error or "")


@pytest.mark.parametrize("fault", ["500", "503 SlowDown", "429", "cut", "drop", "400 RequestTimeout"])
def test_passing_fault_is_tried_again(s3_faults: FaultProxy, tmp_path: Path, fault: str) -> None:
    s3_faults.faults[photo("00001")] = [fault, fault]
    listing = fetch(s3_config(s3_faults.url), tmp_path, limit=2)
    assert [found.problem for found in listing.bins] == [None, None]
    assert s3_faults.objects()["00001.jpg"] == 3
    assert s3_faults.objects()["00002.jpg"] == 1
    whole = read_object(f"s3://{BUCKET}/bin-images/00001.jpg", s3_config(s3_faults.url))
    assert listing.bins[0].photo is not None
    assert listing.bins[0].photo.read_bytes() == whole


def test_body_that_stalls_is_tried_again(s3_faults: FaultProxy, tmp_path: Path) -> None:
    s3_faults.faults[photo("00001")] = ["hang"]
    listing = fetch(s3_config(s3_faults.url, timeout_s=0.3), tmp_path, limit=1)
    assert listing.bins[0].problem is None
    assert s3_faults.hanging.is_set()
    assert s3_faults.objects()["00001.jpg"] == 2


def test_fault_in_list_and_listing_is_tried_again(s3_faults: FaultProxy, tmp_path: Path) -> None:
    s3_faults.faults |= {f"/{BUCKET}/file_list.json": ["500"], f"/{BUCKET}": ["cut", "500", ""]}
    assert [found.id for found in fetch(s3_config(s3_faults.url), tmp_path, limit=1).bins] == ["00001"]
    connection = S3Connection(s3_config(s3_faults.url))
    assert len(list(connection.list_objects(BUCKET, "bin-images", recursive=False))) == len(BINS)
    assert s3_faults.gets[f"/{BUCKET}"] == 3


def test_object_that_stays_unavailable_is_that_bins_problem(
    s3_faults: FaultProxy, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    s3_faults.faults[photo("00002")] = ["500"] * 9
    s3_faults.faults[f"/{BUCKET}/metadata/00710.json"] = ["403 AccessDenied"] * 9
    s3 = s3_config(s3_faults.url)
    bins = {found.id: found for found in fetch(s3, tmp_path).bins}
    assert len(bins) == len(BINS)
    assert bins["00002"].photo is None
    assert bins["00002"].problem == f"s3://{BUCKET}/bin-images/00002.jpg: gave up after 3 attempts: HTTP 500 Fault"
    assert bins["00710"].problem == f"s3://{BUCKET}/metadata/00710.json: access denied (HTTP 403)"
    assert bins["00710"].photo is not None
    assert [bin_id for bin_id, found in bins.items() if found.problem] == ["00002", "00710"]
    assert (s3_faults.objects()["00002.jpg"], s3_faults.objects()["00710.json"]) == (3, 1)
    error = capsys.readouterr().err
    assert "downloaded 14, already there 0, missing 0, failed 2" in error
    assert "failed: 00002.jpg: gave up after 3 attempts: HTTP 500" in error
    s3_faults.faults.clear()
    assert all(found.problem is None for found in fetch(s3, tmp_path).bins)  # and the next run heals it


def test_missing_keys_are_missing_not_tried_again(s3_faults: FaultProxy, tmp_path: Path) -> None:
    wanted = tmp_path / "list.json"
    wanted.write_text('{"1": ["data/metadata/00001.json", "data/metadata/55555.json"], "2": ["data/metadata/77.json"]}')
    s3_faults.answers[photo("77")] = b"a photo without metadata"
    listing = fetch(s3_config(s3_faults.url), tmp_path / "data", file_list=str(wanted))
    assert [(found.id, found.photo is None, found.metadata is None) for found in listing.bins] == [
        ("00001", False, False),
        ("77", False, True),
    ]
    assert [found.problem for found in listing.bins] == [None, None]
    assert listing.absent == ("55555",)
    assert list((listing.split_list or {}).items()) == [("00001", 1), ("55555", 1), ("77", 2)]
    assert (s3_faults.objects()["55555.jpg"], s3_faults.objects()["77.json"]) == (1, 1)


def test_listing_takes_the_union_and_stops_at_the_limit(s3_server: str, s3_faults: FaultProxy, tmp_path: Path) -> None:
    draw_bins(tmp_path / "seed", {f"{number:05d}": 1 for number in range(8)})
    for name in ("bin-images/00001.jpg", "metadata/00002.json", "file_list.json"):
        (tmp_path / "seed" / name).unlink()
    (tmp_path / "seed/bin-images/0").mkdir()
    (tmp_path / "seed/bin-images/0/00001.jpg").touch()  # no part of the layout, least of all bin 00001's photo
    upload(s3_server, "many", tmp_path / "seed")
    s3 = s3_config(s3_faults.url)
    listing = fetch(s3, tmp_path / "data", "s3://many", limit=3)
    assert [(found.id, found.photo is None, found.metadata is None) for found in listing.bins] == [
        ("00000", False, False),
        ("00001", True, False),
        ("00002", False, True),
    ]
    assert len(s3_faults.objects()) == 5  # 4 files and the question for file_list.json
    assert s3_faults.gets["/many"] == 3  # the whole of both folders would be 6 pages
    s3_faults.gets.clear()
    connection = S3Connection(s3)
    assert len(list(connection.list_objects("many", "metadata", recursive=False, page_keys=2))) == 7
    assert s3_faults.gets["/many"] == 4  # pages of two


def test_file_of_another_size_than_listed_is_fetched_again(s3_server: str, tmp_path: Path) -> None:
    draw_bins(tmp_path / "seed", {"1": 1})
    (tmp_path / "seed/file_list.json").unlink()
    upload(s3_server, "sizes", tmp_path / "seed")
    s3 = s3_config(s3_server)
    (found,) = fetch(s3, tmp_path / "data", "s3://sizes").bins
    assert found.photo is not None
    whole = found.photo.read_bytes()
    found.photo.write_bytes(whole[:100])
    fetch(s3, tmp_path / "data", "s3://sizes")
    assert found.photo.read_bytes() == whole


def test_no_more_objects_in_flight_than_asked_for(s3_faults: FaultProxy, tmp_path: Path) -> None:
    s3_faults.delay_s = 0.05
    fetch(s3_config(s3_faults.url, max_concurrency=3), tmp_path)
    assert s3_faults.max_in_flight == 3


def test_two_at_once_download_once(s3_faults: FaultProxy, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    s3_faults.delay_s = 0.1
    listings: list[Listing] = []
    jobs = [threading.Thread(target=lambda: listings.append(fetch(s3_config(s3_faults.url), tmp_path))) for _ in "ab"]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert listings[0] == listings[1]
    del s3_faults.gets[f"/{BUCKET}/file_list.json"]
    assert set(s3_faults.objects().values()) == {1}
    assert "waiting for another process that downloads into" in capsys.readouterr().err


def test_sigkill_in_the_middle_then_goes_on(s3_faults: FaultProxy, tmp_path: Path) -> None:
    s3_faults.faults[photo("09915")] = ["hang"]
    s3 = s3_config(s3_faults.url, max_concurrency=1, timeout_s=60.0)
    code = (
        "from binventory.config.schema import S3Config\n"
        "from binventory.data.sources.bucket import BucketSource\n"
        f"s3 = S3Config(**{asdict(s3)!r})\n"
        f"BucketSource('s3://{BUCKET}', file_list=None, limit=None, s3=s3, data_dir={str(tmp_path)!r}).fetch()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
        assert s3_faults.hanging.wait(60)
        half_written = mirror_folder(BUCKET, s3, tmp_path) / "bin-images" / ".09915.jpg.part"
        while not half_written.exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    whole = files_below(tmp_path)
    whole.remove(".09915.jpg.part")
    assert 4 <= len(whole) < 16
    s3_faults.gets.clear()
    s3_faults.release.set()
    listing = fetch(s3_config(s3_faults.url), tmp_path)
    assert [found.problem for found in listing.bins] == [None] * len(BINS)
    assert len(files_below(tmp_path)) == 16
    fetched = set(s3_faults.objects()) - {"file_list.json"}
    assert fetched == set(files_below(tmp_path)) - set(whole)
    for found in listing.bins:
        assert found.photo is not None
        assert found.photo.read_bytes() == read_object(f"s3://{BUCKET}/bin-images/{found.id}.jpg", s3)


def test_leftovers_of_a_killed_run_are_removed(s3_server: str, tmp_path: Path) -> None:
    folder = mirror_folder(BUCKET, s3_config(s3_server), tmp_path) / "bin-images"
    folder.mkdir(parents=True)
    (folder / ".99999.jpg.part").write_bytes(b"half")
    fetch(s3_config(s3_server), tmp_path, limit=1)
    assert [path.name for path in folder.iterdir()] == ["00001.jpg"]


def test_custom_endpoints_never_share_files() -> None:
    public = mirror_folder("b", replace(s3_config(""), endpoint_url=None), "data")
    folders = {public, *(mirror_folder("b", s3_config(url), "data") for url in ("http://a:1", "http://a", "https://a"))}
    assert public == Path("data/s3/b")
    assert len(folders) == 4


@pytest.mark.parametrize(
    "key", ["../x.jpg", "a/../../x.jpg", "/x.jpg", "a//x.jpg", "a\\..\\x.jpg", "./x.jpg", "a\0.jpg"]
)
def test_keys_cannot_leave_the_folder(key: str) -> None:
    assert target_of("b", key, s3_config("http://a"), "data") is None


@pytest.mark.parametrize(
    ("location", "fault", "message"),
    [
        ("s3://nowhere", None, r"^data\.source: s3://nowhere/.*no such bucket; check its name, s3\.endpoint_url"),
        (f"s3://{BUCKET}/no/such", None, r"^data\.source: s3://bins/no/such: has neither bin-images/ID\.jpg nor"),
        (f"s3://{BUCKET}", ("/bins", "403 AccessDenied"), r"data\.source: .*access denied.*change s3\.anonymous"),
        (f"s3://{BUCKET}", ("/bins/file_list.json", "403 AccessDenied"), r"file_list\.json: access denied"),
        (f"s3://{BUCKET}", ("/bins/file_list.json", "400 ExpiredToken"), r"credentials have expired; renew them"),
        (f"s3://{BUCKET}/../x", None, r"cannot be a path"),
        ("s3://", None, r"names no bucket; write s3://BUCKET"),
        ("s3://two words/x", None, r"^data\.source: s3://two words/x: names no bucket"),
    ],
)
def test_location_that_cannot_be_used(
    s3_faults: FaultProxy, tmp_path: Path, location: str, fault: tuple[str, str] | None, message: str
) -> None:
    if fault is not None:
        s3_faults.faults = {"/bins/file_list.json": ["404 NoSuchKey"]} | {fault[0]: [fault[1]] * 3}
    with pytest.raises(InputError, match=message) as caught:
        fetch(s3_config(s3_faults.url), tmp_path, location)
    assert "\n" not in str(caught.value)
    assert files_below(tmp_path) == []


def test_missing_bucket_is_told_before_any_object_is_tried(s3_faults: FaultProxy, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('{"1": ["data/metadata/00001.json"]}')
    with pytest.raises(InputError, match="s3://nowhere: no such bucket"):
        fetch(s3_config(s3_faults.url), tmp_path, "s3://nowhere", str(tmp_path / "list.json"))
    assert not s3_faults.objects()


def test_server_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text('{"1": ["data/metadata/00001.json"]}')
    with pytest.raises(InputError, match=r"gave up after 2 attempts: .*check s3\.endpoint_url and the network"):
        fetch(s3_config("http://127.0.0.1:9", max_attempts=2), tmp_path, "s3://b", str(tmp_path / "list.json"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"endpoint_url": "nonsense"}, r"s3\.endpoint_url=nonsense .*Invalid endpoint"),
        ({"region": "no region"}, r"s3\.region=no region: .*supported format"),
    ],
)
def test_s3_config_that_cannot_be(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fetch(replace(s3_config("http://127.0.0.1:9"), **changes), tmp_path)


def test_credentials_chain(s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    s3 = s3_config(s3_server, anonymous=False)
    with pytest.raises(InputError, match=r"Unable to locate credentials; set s3\.anonymous=true"):
        fetch(s3, tmp_path, limit=1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    assert len(fetch(s3, tmp_path, limit=1).bins) == 1


def test_without_boto3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(InputError, match=r"pip install 'binventory\[s3\]'"):
        fetch(s3_config("http://127.0.0.1:9"), tmp_path)


def test_data_dir_that_cannot_be_written(s3_server: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written: .*change paths\.data_dir"):
        fetch(s3_config(s3_server), tmp_path / "file")


def test_plain_progress_lines(s3_server: str, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    fetch(s3_config(s3_server), tmp_path)
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("s3://bins: 16 of 16 files, ") and line.endswith("0.0 s left") for line in lines)


def test_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        with progress.DownloadProgress("s3://bins", 10) as shown:
            shown.show(4, 4_000_000)
            assert shown._bar is not None
            shown._bar.refresh()
            shown.finish(4, 0, 0, {}, 4_000_000)
        said = ""
        while " MB in " not in said:
            said += os.read(ours, 100_000).decode()
    os.close(ours)
    assert "4/10" in said
    assert "MB/s" in said
    assert "downloaded 4, already there 0, missing 0, failed 0; 4.0 MB" in said


def exit_of(capsys: pytest.CaptureFixture[str], folder: Path, task: str, *overrides: str) -> tuple[object, str]:
    """Exit code and stderr of a task."""
    capsys.readouterr()
    code: object = 0
    try:
        run_here(folder, task, *overrides)
    except SystemExit as left:
        code = left.code
    return code, capsys.readouterr().err


def test_more_than_20000_photos_are_downloaded_only_when_confirmed(
    s3_faults: FaultProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mirror.MAX_UNCONFIRMED == 20_000
    monkeypatch.setattr(mirror, "MAX_UNCONFIRMED", 2_000)  # as much is shown, in less time
    listed = {"1": [f"data/metadata/{number:06d}.json" for number in range(2_001)]}
    (tmp_path / "list.json").write_text(json.dumps(listed))
    options = [
        "data=abid",
        f"data.source=s3://{BUCKET}",
        "data.file_list=list.json",
        f"s3.endpoint_url={s3_faults.url}",
    ]
    code, said = exit_of(capsys, tmp_path, "prepare", *options)
    assert (code, said.count("\n")) == (2, 1)
    assert "2,001 photos to download, about 0.1 GB, more than 2,000; set data.confirm_download=true" in said
    assert not s3_faults.gets, "nothing was requested"
    assert exit_of(capsys, tmp_path, "train", *options)[0] == 2
    assert not s3_faults.gets


def test_only_photos_that_are_not_here_are_counted(
    s3_server: str, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A photo and its metadata are one; sizes come from the listing."""
    monkeypatch.setattr(mirror, "MAX_UNCONFIRMED", 6)
    total = sum(
        entry.size_bytes
        for entry in S3Connection(s3_config(s3_server)).list_objects(BUCKET, "bin-images", recursive=True)
    )
    options = [f"run={trained}", f"s3.endpoint_url={s3_server}"]
    code, said = exit_of(capsys, tmp_path, "predict", f"input=s3://{BUCKET}", *options)
    assert code == 2
    assert f"error: input: s3://{BUCKET}: 8 photos to download, {total / 1e9:,.1f} GB, more than 6" in said
    assert not list(tmp_path.rglob("*.jpg"))
    assert exit_of(capsys, tmp_path, "evaluate", f"source=s3://{BUCKET}/bin-images", *options)[0] == 2
    prepared = ["data=abid", f"data.source=s3://{BUCKET}", "data.counts=[1,2]", "data.test_fraction=0.5", options[1]]
    exit_of(capsys, tmp_path, "prepare", *prepared, "data.limit=2", "data.val_fraction=0")
    assert len(list(tmp_path.rglob("*.jpg"))) == 2
    code, said = exit_of(capsys, tmp_path, "predict", f"input=s3://{BUCKET}", *options)
    assert (code, "to download" in said) == (0, False), "6 are left"
    shutil.rmtree(tmp_path / ".cache")
    code, said = exit_of(capsys, tmp_path, "evaluate", f"source=s3://{BUCKET}", *options, "data.confirm_download=true")
    assert (code, "8 photos to download" in said) == (0, True)
