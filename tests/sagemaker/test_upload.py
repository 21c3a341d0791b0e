"""Uploads to a real S3 server: what jobs read from there are the same bins, sent once, also after failures."""

from __future__ import annotations

import copy
import functools
import io
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig, OmegaConf
from typer.testing import CliRunner

from binventory.cli import app
from binventory.config.compose import compose_checked
from binventory.data.prepare import PreparedBins, prepare_bins
from binventory.data.sources.s3 import S3Connection
from binventory.errors import InputError
from binventory.launch.entry import main
from binventory.sagemaker.bucket import S3Folder
from binventory.sagemaker.dataset import DatasetObject
from binventory.sagemaker.inputs import InputSender
from binventory.tasks.upload import run as run_upload
from tests.s3 import draw_bins, s3_client, s3_config
from tests.sagemaker.put_proxy import PutProxy

NO_MODEL = {"model": {"weights": "none"}, "init_from": None}
BINS = {f"{100_000 + 10 * number}": number % 2 + 1 for number in range(22)} | {"1000": 1, "01000": 2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bins in bucket layout; nothing writes to them."""
    folder = tmp_path_factory.mktemp("photos")
    draw_bins(folder, BINS)
    return folder


@pytest.fixture
def proxy(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[PutProxy]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setattr("binventory.data.sources.s3.FIRST_BACKOFF_S", 0.01)
    s3_client(s3_server).create_bucket(Bucket="sets")
    proxy = PutProxy(s3_server)
    yield proxy
    proxy.close()


Facts = dict[str, Any]
Send = Callable[..., Facts]


@functools.cache
def composed(layout: str) -> DictConfig:
    """What the command line composes, once for each layout: it takes most of a second."""
    config = compose_checked("upload", [f"data={layout}", "data.source=.", "s3_uri=s3://sets", "s3=credentials"])[0]
    OmegaConf.set_struct(config, False)
    return config


def configured(layout: str, folder: Path, source: object, **changes: object) -> DictConfig:
    """A config whose data settings are `changes`, or any others with the group before `__`."""
    config = copy.deepcopy(composed(layout))
    config.data.source, config.data.counts, config.data.val_fraction = str(source), [1, 2], 0.2
    config.paths.data_dir, config.paths.cache_dir = f"{folder}/data", f"{folder}/cache"
    for name, value in changes.items():
        group, _, key = name.rpartition("__")
        OmegaConf.update(config, f"{group or 'data'}.{key}", value)
    return config


@pytest.fixture
def send(proxy: PutProxy, tmp_path: Path) -> Send:
    """Upload and return what summary.json says."""

    def send(
        layout: str, source: object, uri: str = "s3://sets", kms_key: str | None = None, **changes: object
    ) -> Facts:
        target = {"target__endpoint_url": proxy.url, "target__region": "us-east-1", "target__max_attempts": 3}
        config = configured(layout, tmp_path, source, **(target | changes))
        config.s3_uri, config.kms_key = uri, kms_key
        said = run_upload(config, tmp_path)
        facts: Facts = json.loads((tmp_path / "summary.json").read_text())
        assert said == facts["source"]
        return facts

    return send


def prepared(layout: str, folder: Path, source: object, **changes: object) -> PreparedBins:
    config = configured(layout, folder, source, **changes)
    return prepare_bins(config.data, config.s3, config.paths)


def from_s3(folder: Path, facts: Facts, endpoint_url: str, **changes: object) -> PreparedBins:
    words = dict(word.split("=") for word in facts["overrides"])
    layout, source = words.pop("data"), words.pop("data.source")
    given = {name.removeprefix("data."): value for name, value in words.items()}
    s3 = {"s3__endpoint_url": endpoint_url, "s3__region": "us-east-1"}
    return prepared(layout, folder / "there", source, **given, **s3, **changes)


def keys(server: str, facts: Facts) -> dict[str, bytes]:
    client = s3_client(server)
    prefix = facts["source"].removeprefix("s3://sets/").removesuffix("/table.csv") + "/"
    listed = client.list_objects_v2(Bucket="sets", Prefix=prefix).get("Contents", [])
    return {
        entry["Key"].removeprefix(prefix): client.get_object(Bucket="sets", Key=entry["Key"])["Body"].read()
        for entry in listed
    }


def stamps(folder: Path) -> dict[Path, tuple[int, bytes]]:
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def test_bucket_layout_is_the_same_bins_there_and_sent_once(
    photos: Path, send: Send, proxy: PutProxy, s3_server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = stamps(photos)
    facts = send("abid", photos, "s3://sets/some/prefix/")
    assert f"data=abid data.source={facts['source']}" in capsys.readouterr().out.splitlines()
    assert stamps(photos) == before
    here = prepared("abid", tmp_path, photos)
    assert here.fingerprint == facts["fingerprint"]
    assert from_s3(tmp_path, facts, s3_server).fingerprint == here.fingerprint
    by_list = [prepared("abid", tmp_path, photos, split="report"), from_s3(tmp_path, facts, s3_server, split="report")]
    assert by_list[0].fingerprint == by_list[1].fingerprint != here.fingerprint

    found = keys(s3_server, facts)
    assert found["bin-images/01000.jpg"] == (photos / "bin-images" / "01000.jpg").read_bytes()
    assert found["metadata/1000.json"] == (photos / "metadata" / "1000.json").read_bytes()
    assert facts["source"].startswith("s3://sets/some/prefix/")
    (name,) = [key for key in found if key.endswith("index.parquet")]
    index = pq.read_table(io.BytesIO(found[name]))
    assert index["path"].to_pylist() == [f"bin-images/{bin_id}.jpg" for bin_id in index["id"].to_pylist()]
    assert index["split"].to_pylist() == here.index["split"].to_pylist()
    assert index["mtime_ns"].null_count == len(BINS), "this machine's times would make every machine's index another"
    assert str(tmp_path).encode() not in b"".join(found.values())
    assert list(proxy.puts)[-1].endswith("/complete.json"), "the marker comes last"
    assert len(found) == len(proxy.puts) == 2 * len(BINS) + 1 + 2 + 1

    proxy.puts.clear()
    proxy.num_heads = 0
    again = send("abid", photos, "s3://sets/some/prefix")
    assert proxy.num_heads == 1, "of the bucket; the marker says that the objects are whole"
    assert (again["sent"], again["present"], again["source"]) == (0, len(found) - 1, facts["source"])
    assert not proxy.puts
    other = send("abid", photos, "s3://sets/some/prefix", split_seed=1)  # the same photos, another index
    assert (other["sent"], other["source"]) == (2, facts["source"])


@pytest.mark.long
def test_imagefolder_tree(photos: Path, send: Send, s3_server: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for bin_id, count in BINS.items():
        (tree / str(count)).mkdir(parents=True, exist_ok=True)
        shutil.copy(photos / "bin-images" / f"{bin_id}.jpg", tree / str(count) / f"{bin_id}.JPG")
    facts = send("imagefolder", tree)
    assert from_s3(tmp_path, facts, s3_server).fingerprint == facts["fingerprint"]
    assert "1/100000.jpg" in keys(s3_server, facts)
    # a file list goes along, and is named
    shutil.copy(photos / "file_list.json", tree)
    listed = send("imagefolder", tree, split="report")
    assert listed["overrides"][2] == f"data.file_list={listed['source']}/file_list.json"
    assert from_s3(tmp_path, listed, s3_server, split="report").fingerprint == listed["fingerprint"]


def test_table_keeps_groups_and_unlabelled_photos(photos: Path, send: Send, s3_server: str, tmp_path: Path) -> None:
    numbered = enumerate(BINS.items())
    rows = [f"{photos}/bin-images/{bin_id}.jpg,{count},g{number // 3}" for number, (bin_id, count) in numbered]
    rows[3] = rows[3].replace(",2,", ",,")
    rows[4] = rows[4].replace(",1,", ",many,")
    table = tmp_path / "bins.csv"
    table.write_text("path,quantity,group\n" + "\n".join(rows) + "\n")
    facts = send("table", table)
    assert facts["source"].endswith("/table.csv")
    here, there = prepared("table", tmp_path, table), from_s3(tmp_path, facts, s3_server)
    assert here.fingerprint == there.fingerprint == facts["fingerprint"]
    assert here.summary.unlabelled == there.summary.unlabelled == 1
    assert here.summary.num_bad == there.summary.num_bad == 1
    assert here.index["group"].to_pylist() == there.index["group"].to_pylist()


def test_bad_bins_are_as_bad_there(
    photos: Path, send: Send, s3_server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(photos, folder)
    (folder / "file_list.json").unlink()
    (folder / "bin-images" / "100000.jpg").write_bytes(b"no photo")
    (folder / "bin-images" / "100010.jpg").unlink()
    (folder / "bin-images" / "100020.jpg").unlink()
    (folder / "bin-images" / "100020.jpg").symlink_to("nowhere")
    (folder / "metadata" / "100030.json").write_text("{")
    facts = send("abid", folder, max_bad_fraction=0.5)
    here = prepared("abid", tmp_path, folder, max_bad_fraction=0.5)
    there = from_s3(tmp_path, facts, s3_server, max_bad_fraction=0.5)
    assert here.fingerprint == there.fingerprint == facts["fingerprint"]
    assert here.summary.num_bad == there.summary.num_bad == 4
    assert "cannot be sent" not in capsys.readouterr().out
    (folder / "bin-images" / "a b\n.jpg").write_bytes(b"no id")
    send("abid", folder, max_bad_fraction=0.5)
    assert "warning: 1 bins have no file that can be sent, e.g. ~" in capsys.readouterr().out


def test_transient_failures_are_tried_again(photos: Path, send: Send, proxy: PutProxy) -> None:
    proxy.faults = {"100100.jpg": ["500 InternalError", "503 SlowDown"]}
    send("abid", photos, "s3://sets/transient")
    (retried,) = [key for key in proxy.puts if key.endswith("bin-images/100100.jpg")]
    assert proxy.puts[retried] == 3


def test_failed_upload_is_taken_up_again(photos: Path, send: Send, proxy: PutProxy, s3_server: str) -> None:
    proxy.faults = {"100030.json": ["403 AccessDenied"] * 9}
    proxy.delay_s = 0.05  # else the rest may be there before the refusal is
    said = r"^s3://sets/resumed/\w+/metadata/100030\.json: access denied \(HTTP 403\); .*, change target\.anonymous$"
    with pytest.raises(InputError, match=said):
        send("abid", photos, "s3://sets/resumed", target__max_concurrency=2)
    assert not any(key.endswith("complete.json") for key in proxy.puts)
    proxy.delay_s = 0.0
    arrived = {key for key in proxy.puts if not key.endswith("100030.json")}
    assert 20 < len(arrived) < 2 * len(BINS) - 5, "the first refusal ends it"
    other = min(key for key in arrived if key.endswith(".jpg"))
    # what lies there of the same size may still be something else
    client, key = s3_client(s3_server), other.removeprefix("sets/")
    size = client.head_object(Bucket="sets", Key=key)["ContentLength"]
    client.put_object(Bucket="sets", Key=key, Body=bytes(size))

    proxy.puts.clear()
    proxy.faults.clear()
    facts = send("abid", photos, "s3://sets/resumed")
    assert other in proxy.puts
    assert not (arrived - {other}) & proxy.puts.keys()
    assert facts["sent"] == len(proxy.puts) - 1
    name = other.rpartition("/")[2]
    assert keys(s3_server, facts)[f"bin-images/{name}"] == (photos / "bin-images" / name).read_bytes()


def test_concurrency_and_key(photos: Path, send: Send, proxy: PutProxy, s3_server: str) -> None:
    proxy.delay_s = 0.02
    facts = send("abid", photos, "s3://sets/encrypted", "alias/bins", target__max_concurrency=3)
    assert proxy.max_in_flight == 3
    client = s3_client(s3_server)
    for name in ("complete.json", "bin-images/1000.jpg"):
        head = client.head_object(Bucket="sets", Key=f"{facts['source'].removeprefix('s3://sets/')}/{name}")
        assert (head["ServerSideEncryption"], head["SSEKMSKeyId"]) == ("aws:kms", "alias/bins")


def test_file_that_changed_since_it_was_hashed(tmp_path: Path) -> None:
    path = tmp_path / "1.jpg"
    path.write_bytes(b"one")
    entry = DatasetObject("1.jpg", 3, "0" * 64, path)
    with pytest.raises(InputError, match=r"1\.jpg: changed since it was read; upload again"):
        entry.read()
    with pytest.raises(InputError, match=r"none: cannot be read: No such file.*; changed since it was read"):
        replace(entry, origin=tmp_path / "none").read()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"uri": "s3://nowhere"},
            "s3://nowhere: no such bucket; check its name, target.endpoint_url and target.region",
        ),
        ({"target__endpoint_url": "http://127.0.0.1:9"}, "check target.endpoint_url and the network"),
        ({"target__endpoint_url": "nonsense"}, "target.endpoint_url=nonsense"),
        ({"target__region": "no region"}, "target.region=no region"),
    ],
)
def test_bucket_that_cannot_be_had(
    changes: dict[str, Any], said: str, photos: Path, send: Send, proxy: PutProxy, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        send("abid", photos, **changes)
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
    assert not proxy.puts
    assert not list(tmp_path.iterdir()), "nothing is prepared for a bucket that cannot be written"


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["s3_uri=bucket/prefix"], "s3_uri=bucket/prefix: is no S3 URI; write s3://BUCKET"),
        (["s3_uri=s3://two words/x"], "names no bucket; write s3://BUCKET"),
        ([], "s3_uri"),
        (["s3_uri=s3://sets", "targt.region=x"], "did you mean"),
    ],
)
def test_mistake_on_the_command_line(
    overrides: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        main("upload", overrides)
    assert exit_.value.code == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: ")
    assert said in error
    assert not list(tmp_path.iterdir())


def test_command(
    proxy: PutProxy, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["data=abid", f"data.source={photos}", "data.counts=[1,2]", "data.val_fraction=0.2"]
    words += ["s3_uri=s3://sets/typed", f"target.endpoint_url={proxy.url}"]
    done = CliRunner().invoke(app, ["sagemaker", "upload", *words])
    assert done.exit_code == 0, done.output
    assert "data=abid data.source=s3://sets/typed/" in done.output


def test_without_credentials_or_boto3(
    photos: Path, send: Send, proxy: PutProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    with pytest.raises(InputError, match=r"^s3://sets: Unable to locate credentials; log in, e.g. by `aws configure`"):
        send("abid", photos)
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(InputError, match=r"pip install 'binventory\[s3\]'"):
        send("abid", photos)
    assert not proxy.puts
    assert not list(tmp_path.iterdir())


def test_lists_that_are_no_files_of_this_machine(
    s3_server: str, proxy: PutProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The report's list comes with the package; what a web server has is sent, so that all jobs read the same."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_server)
    content = json.dumps({"1": ["data/metadata/00001.json"]}).encode()
    s3_client(s3_server).create_bucket(Bucket="lists")
    s3_client(s3_server).put_object(Bucket="lists", Key="l.json", Body=content, ACL="public-read")
    config = configured("abid", tmp_path, f"s3://{'x' * 5}", file_list="report", split_list=f"{s3_server}/lists/l.json")
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    folder = S3Folder(S3Connection(replace(s3_config(s3_server), anonymous=False)), "sets", "launch")
    inputs = InputSender(folder, "s3://sets/mounted").send({str(k): v for k, v in (plain | NO_MODEL).items()})
    assert list(inputs.files) == ["split_list"]
    assert inputs.config["data"]["file_list"] == "report"
    assert inputs.config["data"]["split_list"] == "channel://split_list/file_list.json"
    where = inputs.files["split_list"].removeprefix("s3://sets/")
    sent = s3_client(s3_server).get_object(Bucket="sets", Key=f"{where}/file_list.json")
    assert sent["Body"].read() == content
