"""What `predict.py input=…` finds."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from binventory.data.inputs import InputPhoto, list_inputs
from binventory.errors import InputError
from tests.s3 import BINS, BUCKET, FaultProxy, draw_bins, s3_client, s3_config, upload

NO_S3 = s3_config("http://127.0.0.1:9")


def inputs(location: object) -> list[InputPhoto]:
    return list_inputs(str(location), NO_S3, Path("unused"))


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a photo")


def test_single_photo_whatever_its_name(tmp_path: Path) -> None:
    touch(tmp_path / "01000.jpg", tmp_path / "odd[1].JPG", tmp_path / "noise.bin")
    for name, photo_id in (("01000.jpg", "01000"), ("odd[1].JPG", "odd[1]"), ("noise.bin", "noise")):
        assert inputs(tmp_path / name) == [InputPhoto(photo_id, tmp_path / name)]


def test_folder_at_any_depth_in_natural_order(tmp_path: Path) -> None:
    names = ["p2.jpg", "p10.jpg", "P1.JPEG", "deep/er/p3.png", "x/7.jpg", "y/7.jpg"]
    touch(*(tmp_path / name for name in names))
    touch(tmp_path / "README.md", tmp_path / ".hidden.jpg", tmp_path / ".git/a.jpg", tmp_path / "deep/._p3.png")
    found = inputs(tmp_path)
    assert [photo.path for photo in found] == [
        tmp_path / name for name in ("P1.JPEG", "deep/er/p3.png", "p2.jpg", "p10.jpg", "x/7.jpg", "y/7.jpg")
    ]
    assert [photo.id for photo in found] == ["P1", "p3", "p2", "p10", "x__7.jpg", "y__7.jpg"]
    assert {(photo.quantity, photo.error) for photo in found} == {(None, None)}


def test_any_photo_is_taken_and_what_is_not_is_named(
    s3_server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = ["a.JPG", "b.webp", "c/d.Bmp", "c/e.jfif", "c/f.TIFF", "g.jpeg"]
    touch(*(tmp_path / "here" / name for name in [*taken, "c/h.heic", "i.gif", "notes.txt"]))
    upload(s3_server, "anything", tmp_path / "here")
    s3 = s3_config(s3_server)
    for location in (tmp_path / "here", f"{tmp_path}/here/**/*", "s3://anything"):
        photos = list_inputs(str(location), s3, tmp_path / "data", key="source")
        assert sorted(photo.id for photo in photos) == list("abdefg")
        expected = "warning: source: 2 files that look like photos are not read (1 .gif, 1 .heic), e.g. "
        assert capsys.readouterr().err.splitlines()[-1].startswith(expected)
    for location in (f"{tmp_path}/here/*.gif", f"{tmp_path}/here/c/*.heic"):
        with pytest.raises(
            InputError, match=r"holds no photo; 1 file that looks like a photo is not read \(1 \.(gif|heic)"
        ):
            inputs(location)
    (one,) = list_inputs("s3://anything/c/h.heic", s3, tmp_path / "data")  # the decoder says what it is
    assert one.path is not None


def test_glob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "a/1.jpg", tmp_path / "a/b/2.jpg", tmp_path / "a/b/3.txt", tmp_path / "4.png")
    assert [photo.id for photo in inputs(tmp_path / "**" / "*.jpg")] == ["1", "2"]
    assert [photo.id for photo in inputs(tmp_path / "a" / "*" / "*")] == ["2"]
    assert [photo.id for photo in inputs(tmp_path / "?.png")] == ["4"]
    monkeypatch.chdir(tmp_path)
    assert inputs("a/*.jpg") == [InputPhoto("1", Path("a/1.jpg"))]


def test_bucket_layout_has_quantities_where_they_can_be_read(tmp_path: Path) -> None:
    draw_bins(tmp_path, {"2": 3, "10": 5, "1": 1, "01": 4})
    (tmp_path / "metadata/10.json").write_text("{")
    (tmp_path / "metadata/1.json").unlink()
    (tmp_path / "bin-images/01.jpg").unlink()
    (tmp_path / "file_list.json").write_text('{"3": ["data/metadata/2.json"]}')  # a choice for training, not for this
    assert [(photo.id, photo.quantity) for photo in inputs(tmp_path)] == [("1", None), ("2", 3), ("10", None)]
    assert inputs(tmp_path)[1].path == tmp_path / "bin-images/2.jpg"


def test_image_folder_tree_has_quantities(tmp_path: Path) -> None:
    touch(tmp_path / "2/a.jpg", tmp_path / "10/b.jpg", tmp_path / "10/a.jpg")
    (tmp_path / "meta.csv").touch()
    found = [(photo.id, photo.quantity) for photo in inputs(tmp_path)]
    assert found == [("2__a.jpg", 2), ("10__a.jpg", 10), ("b", 10)]
    touch(tmp_path / "loose.jpg")  # then it is a folder like any other
    assert {photo.quantity for photo in inputs(tmp_path)} == {None}


def test_index_with_its_problems(tmp_path: Path) -> None:
    draw_bins(tmp_path, {"01000": 3})
    columns = {
        "id": ["01000", "1000", "5"],
        "path": [str(tmp_path / "bin-images/01000.jpg"), None, str(tmp_path / "bin-images/gone.jpg")],
        "quantity": [3, None, 2],
        "problem": [None, "photo is empty", None],
    }
    parquet.write_table(pa.table(columns), tmp_path / "index.parquet")
    assert inputs(tmp_path / "index.parquet") == [
        InputPhoto("01000", tmp_path / "bin-images/01000.jpg", 3),
        InputPhoto("1000", None, None, "photo is empty"),
        InputPhoto("5", None, 2, f"no photo at its path: {tmp_path}/bin-images/gone.jpg"),
    ]


def test_table_needs_no_quantity(tmp_path: Path) -> None:
    touch(tmp_path / "b.jpg", tmp_path / "a.jpg")
    (tmp_path / "t.csv").write_text("path\nb.jpg\na.jpg\n")
    expected = [InputPhoto("b", tmp_path / "b.jpg"), InputPhoto("a", tmp_path / "a.jpg")]
    assert inputs(tmp_path / "t.csv") == expected
    (tmp_path / "t.csv").write_text("path,quantity\nb.jpg,many\na.jpg,\n")  # and a bad one is no reason not to predict
    problem = "quantity is no whole number from 0 up: 'many'"
    assert inputs(tmp_path / "t.csv") == [replace(expected[0], quantity_problem=problem), expected[1]]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("gone", r"^input: .*gone: no such file or folder"),
        (
            "empty",
            r"^input: .*empty: holds no photo; name a \.jpg, \.png, \.webp, \.bmp or \.tif file, or a folder or glob",
        ),
        ("*.jpg", r"^input: .*\*\.jpg: holds no photo"),
        ("text", r"^input: .*text: holds no photo"),
        ("gone.csv", r"^input: .*gone\.csv: cannot be read: No such file"),
        ("bad.csv", r"^input: .*bad\.csv: has no column 'path' but x"),
    ],
)
def test_nothing_found(tmp_path: Path, location: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "text/a.txt")
    (tmp_path / "bad.csv").write_text("x\n1\n")
    with pytest.raises(InputError, match=message):
        inputs(tmp_path / location)
    with pytest.raises(InputError, match=r"^source: "):
        list_inputs(str(tmp_path / location), NO_S3, tmp_path, key="source")


def test_pipe_and_dangling_link_are_listed_for_the_decoder_to_name(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jpg")
    (tmp_path / "b.jpg").symlink_to(tmp_path / "gone")
    assert [photo.id for photo in inputs(tmp_path)] == ["a", "b"]


def test_s3_object_prefix_and_layout(s3_faults: FaultProxy, tmp_path: Path) -> None:
    s3 = s3_config(s3_faults.url)
    (one,) = list_inputs(f"s3://{BUCKET}/bin-images/00001.jpg", s3, tmp_path)
    assert one.id == "00001"
    assert one.path is not None
    assert one.path.is_file()
    photos = list_inputs(f"s3://{BUCKET}/bin-images", s3, tmp_path)
    assert sorted(photo.id for photo in photos) == sorted(BINS)
    assert [photo.id for photo in photos[:3]] == ["00001", "00002", "00710"]
    assert s3_faults.objects()["00001.jpg"] == 1
    layout = list_inputs(f"s3://{BUCKET}", s3, tmp_path)
    assert {photo.id: photo.quantity for photo in layout} == BINS


def test_s3_object_that_fails_is_a_row(s3_faults: FaultProxy, tmp_path: Path) -> None:
    s3_faults.faults[f"/{BUCKET}/bin-images/00002.jpg"] = ["500"] * 6
    s3_faults.faults[f"/{BUCKET}/metadata/00710.json"] = ["500"] * 3  # the photo can be predicted without it
    for location in (f"s3://{BUCKET}/bin-images/", f"s3://{BUCKET}"):
        photos = {photo.id: photo for photo in list_inputs(location, s3_config(s3_faults.url), tmp_path)}
        assert len(photos) == len(BINS)
        assert photos["00002"].path is None
        assert photos["00002"].error == f"s3://{BUCKET}/bin-images/00002.jpg: gave up after 3 attempts: HTTP 500 Fault"
        assert [photo.id for photo in photos.values() if photo.error] == ["00002"]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (f"s3://{BUCKET}/none.jpg", r"^input: s3://bins/none\.jpg: no such object"),
        (f"s3://{BUCKET}/none", r"^input: s3://bins/none: holds no photo"),
        ("s3://nowhere/x", r"^input: s3://nowhere/x/.*: no such bucket"),
    ],
)
def test_nothing_on_s3(s3_server: str, tmp_path: Path, location: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list_inputs(location, s3_config(s3_server), tmp_path)


def test_empty_folder_marker_on_s3_is_no_bucket_layout(s3_server: str, tmp_path: Path) -> None:
    client = s3_client(s3_server)
    client.create_bucket(Bucket="marked")
    for key in ("bin-images/", "loose/7.jpg"):
        client.put_object(Bucket="marked", Key=key, Body=b"", ACL="public-read")
    assert [photo.id for photo in list_inputs("s3://marked", s3_config(s3_server), tmp_path)] == ["7"]


@pytest.mark.abid
def test_real_photos(abid: Path) -> None:
    native = inputs(abid / "native")
    assert len(native) == 389
    assert all(photo.quantity is not None for photo in native)
    blind = inputs(abid / "blind")
    assert len(blind) == 1374
    assert {photo.quantity for photo in blind} == {None}
