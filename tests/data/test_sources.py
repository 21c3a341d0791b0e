"""Bins from folders, trees, tables and file lists."""

from __future__ import annotations

import json
import os
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from pyarrow import parquet

from binventory.config.schema import S3Config
from binventory.data.index import build_index
from binventory.data.inputs import list_inputs
from binventory.data.sources import make_source
from binventory.data.sources.base import BinFiles, Listing
from binventory.data.sources.file_list import check_id, parse_file_list, read_file_list
from binventory.data.sources.photo_tree import list_photos
from binventory.data.sources.s3 import read_object
from binventory.errors import ConfigError, InputError
from tests.s3 import BINS, BUCKET, FaultProxy, draw_bins, put, s3_client, s3_config, upload

NO_S3 = s3_config("http://127.0.0.1:9")
READERS = {
    "bucket": "binventory.data.sources.bucket.BucketSource",
    "imagefolder": "binventory.data.sources.imagefolder.ImageFolderSource",
    "table": "binventory.data.sources.table.TableSource",
}


def fetch(kind: str, source: object, data_dir: Path = Path("unused"), s3: S3Config = NO_S3, **changes: Any) -> Listing:
    reader = {"_target_": READERS[kind]}
    data = OmegaConf.create({"reader": reader, "source": str(source), "file_list": None, "limit": None} | changes)
    return make_source(data, OmegaConf.structured(s3), data_dir).fetch()


def ids(listing: Listing) -> list[str]:
    return [found.id for found in listing.bins]


def write_list(path: Path, counts: dict[str, list[str]]) -> str:
    entries = {count: [f"data/metadata/{name}.json" for name in names] for count, names in counts.items()}
    path.write_text(json.dumps(entries))
    return str(path)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a photo")


# The bucket layout


def test_bucket_folder_without_a_list_is_listed_as_s3_would(tmp_path: Path) -> None:
    draw_bins(tmp_path, {"b": 1, "a": 2, "a-b": 1, "B": 3, "10": 1, "9": 2})
    (tmp_path / "file_list.json").unlink()
    (tmp_path / "bin-images/9.jpg").unlink()
    (tmp_path / "metadata/b.json").unlink()
    touch(tmp_path / "bin-images/._a.jpg", tmp_path / "bin-images/Thumbs.db", tmp_path / "metadata/readme.txt")
    listing = fetch("bucket", tmp_path)
    assert ids(listing) == ["10", "9", "B", "a-b", "a", "b"]  # "-" sorts before the "." of ".jpg"
    assert listing.bins[0] == BinFiles(
        "10", tmp_path / "bin-images/10.jpg", tmp_path / "metadata/10.json", needs_metadata=True
    )
    assert (listing.bins[1].photo, listing.bins[5].metadata) == (None, None)
    assert (listing.absent, listing.split_list) == ((), None)


def test_list_given_wins_over_the_own_list(tmp_path: Path) -> None:
    draw_bins(tmp_path / "source", BINS)
    assert len(ids(fetch("bucket", tmp_path / "source"))) == len(BINS)
    given_list = write_list(tmp_path / "mine.json", {"2": ["00002", "77"], "1": ["1000", "00001"]})
    listing = fetch("bucket", tmp_path / "source", file_list=given_list)
    assert ids(listing) == ["00001", "00002", "1000"]
    assert listing.absent == ("77",)
    assert list((listing.split_list or {}).items()) == [("00002", 2), ("77", 2), ("1000", 1), ("00001", 1)]


def test_limit_takes_the_first_by_name(tmp_path: Path) -> None:
    draw_bins(tmp_path, BINS)
    listing = fetch("bucket", tmp_path, limit=3)
    assert ids(listing) == ["00001", "00002", "00710"]
    assert {found.metadata for found in listing.bins} == {tmp_path / f"metadata/{name}.json" for name in ids(listing)}
    assert listing.split_list is not None
    assert len(listing.split_list) == len(BINS)


def test_dangling_link_is_a_bad_photo_not_a_missing_one(tmp_path: Path) -> None:
    draw_bins(tmp_path, {"1": 1})
    (tmp_path / "bin-images/1.jpg").unlink()
    (tmp_path / "bin-images/1.jpg").symlink_to(tmp_path / "gone")
    assert fetch("bucket", tmp_path).bins[0].photo == tmp_path / "bin-images/1.jpg"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ([], r"data\.source: .*no such folder; check the path"),
        (
            ["here/x.csv"],
            r"data\.source: .*has neither bin-images/ID\.jpg nor metadata/ID\.json; name the",
        ),
        (["here/3/x.jpg"], r"for <count>/<id>\.jpg set data=imagefolder"),
        (["here"], r"is a file, not a folder; for a CSV or Parquet table set data=table"),
        (["here/bin-images/x.txt"], r"data\.source: .*holds no bins"),
    ],
)
def test_folder_that_is_no_bucket(tmp_path: Path, make: list[str], message: str) -> None:
    touch(*(tmp_path / name for name in make))
    with pytest.raises(InputError, match=message) as caught:
        fetch("bucket", tmp_path / "here")
    assert "\n" not in str(caught.value)


def test_list_of_another_source(tmp_path: Path) -> None:
    draw_bins(tmp_path, {"1": 1})
    given_list = write_list(tmp_path / "mine.json", {"2": ["5", "6"]})
    with pytest.raises(InputError, match=r"holds none of the 2 bins of the file list; check .* data\.file_list"):
        fetch("bucket", tmp_path, file_list=given_list)


def many_endings(folder: Path) -> dict[str, str]:
    """A bucket folder with photos of all endings, two of one id, and pictures that are not read. Return id -> name."""
    names = {
        str(place): f"{place}{ending}"
        for place, ending in enumerate(
            [".jpg", ".JPG", ".jpeg", ".PNG", ".WebP", ".tif", ".TIFF", ".bmp", ".jfif", ".mpo"]
        )
    }
    draw_bins(folder, dict.fromkeys([*names, "x.y", "twice"], 1))
    (folder / "file_list.json").unlink()
    for bin_id, name in names.items():
        (folder / f"bin-images/{bin_id}.jpg").rename(folder / "bin-images" / name)
    touch(folder / "bin-images/twice.Png", folder / "bin-images/x.y.HEIC", folder / "bin-images/._0.jpg")
    return names | {"x.y": "x.y.jpg"}


def test_bucket_takes_photos_whatever_their_ending(s3_server: str, tmp_path: Path) -> None:
    names = many_endings(tmp_path / "here")
    upload(s3_server, "endings", tmp_path / "here")
    (tmp_path / "here/bin-images/noending").write_bytes(b"\xff\xd8\xff")  # on S3 nothing tells it before it is fetched
    given_list = write_list(tmp_path / "list.json", {"1": [*names, "twice", "gone"]})
    s3 = s3_config(s3_server)
    for source, not_taken in ((tmp_path / "here", ("noending", "x.y.HEIC")), ("s3://endings", ("x.y.HEIC",))):
        listing = fetch("bucket", source, tmp_path / "data", s3)
        assert {found.id: found.photo and found.photo.name for found in listing.bins} == names | {"twice": None}
        assert tuple(sorted(listing.not_taken)) == not_taken
        (twice,) = (found for found in listing.bins if found.problem is not None)
        assert (twice.id, twice.problem) == ("twice", "several photos of one id: twice.Png, twice.jpg")
        assert all(found.metadata is not None for found in listing.bins)
        limited = fetch("bucket", source, tmp_path / "data", s3, limit=3)
        assert {found.id: found.photo and found.photo.name for found in limited.bins} == dict(list(names.items())[:3])
        listed = fetch("bucket", source, tmp_path / "data", s3, file_list=given_list)
        photos = {found.id: found.photo and found.photo.name for found in listed.bins}
        assert listed.absent == ("gone",)
        assert {bin_id: name for bin_id, name in photos.items() if bin_id != "twice"} == names
        assert photos["twice"] in (None, "twice.jpg")  # on S3 a listed bin's .jpg is asked for by its name


def test_of_many_listed_photos_with_another_ending_the_folder_is_listed_once(
    s3_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("binventory.data.sources.bucket.MAX_LISTINGS", 2)
    touch(*(tmp_path / f"here/bin-images/{number}.JPG" for number in range(6)))
    upload(s3_server, "upper", tmp_path / "here", prefix="b/")
    given_list = write_list(tmp_path / "list.json", {"1": [str(number) for number in range(5)]})
    s3 = s3_config(s3_server)
    listing = fetch("bucket", "s3://upper/b", tmp_path / "data", s3, file_list=given_list)
    assert [found.photo and found.photo.name for found in listing.bins] == [f"{number}.JPG" for number in range(5)]


def test_folder_that_cannot_be_read(tmp_path: Path) -> None:
    touch(tmp_path / "bin-images/1.jpg", tmp_path / "metadata")
    with pytest.raises(InputError, match=r"metadata: cannot be read: Not a directory"):
        fetch("bucket", tmp_path)


@pytest.mark.abid
def test_real_photos_with_the_full_list(abid: Path) -> None:
    listing = fetch("bucket", abid / "udacity224", file_list=str(abid / "file_list.json"))
    assert (len(listing.bins), len(listing.absent)) == (6019, 10441 - 6019)
    assert listing.split_list is not None
    assert list(listing.split_list)[:2] == ["100313", "09915"]
    counts = list(listing.split_list.values())
    assert [counts.count(count) for count in range(1, 6)] == [1228, 2299, 2666, 2373, 1875]
    assert counts == sorted(counts)
    assert len(fetch("bucket", abid / "udacity224").bins) == 6019
    native = fetch("bucket", abid / "native")
    assert len(native.bins) == 389
    assert native.split_list is None


# File lists


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", r"list\.json: is not JSON: .*line 1 column 2"),
        ("[" * 100_000, r"is not JSON"),
        ("\xff", r"is not JSON: .*decode"),
        ("[1]", r"holds \[1\], not an object of count -> list"),
        ("{}", r"lists no bins"),
        ('{"1": []}', r"lists no bins"),
        ('{"one": ["data/metadata/1.json"]}', r"key 'one' is no count"),
        ('{"-1": ["data/metadata/1.json"]}', r"key '-1' is no count"),
        ('{"1": "data/metadata/1.json"}', r"count 1 holds 'data/metadata/1\.json', not a list"),
        ('{"1": [7]}', r"count 1: entry 7 is no text"),
        ('{"1": ["00001"]}', r"entry '00001' is not of the form data/metadata/ID\.json"),
        ('{"1": ["data/../x.json"]}', r"entry 'data/\.\./x\.json' is not of the form"),
        ('{"1": ["data/metadata/..\\\\x.json"]}', r"is not of the form data/metadata/ID\.json"),
        ('{"1": ["data/metadata/a\\u0000.json"]}', r"'a\\x00' cannot be a bin id"),
        ('{"1": ["' + "é" * 101 + '.json"]}', r"cannot be a bin id: .* at most 200 bytes"),
        ('{"1": ["a/7.json"], "3": ["b/7.json"]}', r"id 7 is listed twice, under 1 and 3"),
        ('{"1": ["a/7.json"], "1": ["b/8.json"]}', r"a key stands twice among \['1', '1'\]"),
    ],
)
def test_bad_file_list_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.json"
    path.write_bytes(text.encode("latin-1" if text == "\xff" else "utf-8"))
    with pytest.raises(InputError, match=message) as caught:
        read_file_list(path)
    assert str(caught.value).startswith(f"file list {path}: ")
    assert str(caught.value).count(str(path)) == 1
    assert "\n" not in str(caught.value)
    draw_bins(tmp_path, {"1": 1})
    with pytest.raises(InputError, match=r"^data\.file_list: file list"):
        fetch("bucket", tmp_path, file_list=str(path))


def test_file_list_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"file list .*gone\.json: cannot be read: No such file"):
        read_file_list(tmp_path / "gone.json")
    with pytest.raises(InputError, match="needs the s3 config"):
        read_file_list("s3://bins/file_list.json")


def test_file_list_written_on_windows() -> None:
    entries = [r"data\metadata\00001.json", r"C:\data\metadata\1.json", "data/metadata/7.json"]
    assert parse_file_list(json.dumps({"2": entries}).encode(), "x") == {"00001": 2, "1": 2, "7": 2}


def test_file_list_keeps_both_of_a_padded_pair() -> None:
    assert parse_file_list(b'{"3": ["m/1000.json"], "1": ["m/01000.json"]}', "x") == {"1000": 3, "01000": 1}


@given(st.text(max_size=250))
def test_an_accepted_id_stays_in_its_folder(bin_id: str) -> None:
    try:
        check_id(bin_id, "here")
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    path = Path(os.path.normpath(Path("/folder") / f"{bin_id}.jpg"))
    assert path.parent == Path("/folder")
    assert path.name == f"{bin_id}.jpg"
    assert len(os.fsencode(path.name)) <= 255


# ImageFolder trees


def test_image_folder(tmp_path: Path) -> None:
    touch(tmp_path / "2/01000.jpg", tmp_path / "2/7.PNG", tmp_path / "10/1000.jpeg", tmp_path / "0/b.jpg")
    touch(tmp_path / "train_meta.csv", tmp_path / "2/notes.txt", tmp_path / "2/.hidden.jpg", tmp_path / ".cache/x.jpg")
    listing = fetch("imagefolder", tmp_path)
    assert [(found.id, found.quantity) for found in listing.bins] == [("01000", 2), ("1000", 10), ("7", 2), ("b", 0)]
    assert listing.bins[1] == BinFiles("1000", tmp_path / "10/1000.jpeg", quantity=10)
    assert ids(fetch("imagefolder", tmp_path, limit=2)) == ["01000", "1000"]


def test_image_folder_takes_any_photo_and_names_what_it_does_not_take(tmp_path: Path) -> None:
    taken = ["1/a.JPG", "1/b.jpeg", "1/c.webp", "2/d.BMP", "2/e.jfif", "2/f.tif", "2/g.MPO", "2/h.png"]
    other = ["1/i.heic", "1/j.GIF", "2/k.cr2"]
    touch(*(tmp_path / name for name in [*taken, *other]))
    touch(tmp_path / "2/Thumbs.db", tmp_path / "2/.DS_Store", tmp_path / "2/._a.jpg", tmp_path / "2/@eaDir/a.jpg/t.jpg")
    (tmp_path / "1/l").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "1/m.dat").write_bytes(b"\xff\xd8\xff\xe0")
    os.mkfifo(tmp_path / "1/n")  # is not waited for
    listing = fetch("imagefolder", tmp_path)
    assert ids(listing) == list("abcdefgh")
    assert sorted(listing.not_taken) == sorted([*other, "1/l", "1/m.dat"])


def test_same_file_name_in_two_count_folders(tmp_path: Path) -> None:
    touch(tmp_path / "1/a.jpg", tmp_path / "2/a.jpg", tmp_path / "2/b.jpg", tmp_path / "2/b.png", tmp_path / "3/c.jpg")
    listing = fetch("imagefolder", tmp_path)
    found = {found.id: (found.quantity, found.note is not None) for found in listing.bins}
    assert found == {
        **{"1__a.jpg": (1, True), "2__a.jpg": (2, True)},
        **{"2__b.jpg": (2, True), "2__b.png": (2, True), "c": (3, False)},
    }


def test_tree_that_cannot_be_read_is_not_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone: cannot be read: No such file"):
        list_photos(str(tmp_path / "gone"), NO_S3, "unused")


def test_image_folder_takes_its_own_list(tmp_path: Path) -> None:
    touch(tmp_path / "2/1.jpg", tmp_path / "2/7.jpg")
    write_list(tmp_path / "file_list.json", {"2": ["7", "8"]})
    listing = fetch("imagefolder", tmp_path)
    assert (ids(listing), listing.absent, listing.split_list) == (["7"], ("8",), {"7": 2, "8": 2})


def test_image_folder_of_links_is_followed_once(tmp_path: Path) -> None:
    touch(tmp_path / "elsewhere/a.jpg", tmp_path / "tree/1/b.jpg")
    (tmp_path / "tree/2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "tree/1/.up").symlink_to(tmp_path / "tree")
    assert ids(fetch("imagefolder", tmp_path / "tree")) == ["a", "b"]
    (tmp_path / "elsewhere/again").symlink_to(tmp_path / "tree")  # a circle ends
    assert ids(fetch("imagefolder", tmp_path / "tree")) == ["a", "b"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        ([], r"data\.source: .*tree: no such folder"),
        (
            ["tree/train/1/a.jpg", "tree/test/1/b.jpg"],
            r"has test/ and train/; name one, e\.g\. .*tree/test$",
        ),
        (["tree/1/a.jpg", "tree/many/b.jpg"], r"folder 'many' is no count; folders are named by quantity"),
        (["tree/-1/a.jpg"], r"folder '-1' is no count"),
        (
            ["tree/1/a.jpg", "tree/2/a.png", "tree/3/2__a.png.jpg"],
            r"2/a\.png and 3/2__a\.png\.jpg would have the same id 2__a\.png; rename one",
        ),
        (
            ["tree/1/a.heic", "tree/2/b.gif"],
            r"holds no bins; 2 files that look like photos are not read \(1 \.gif, 1 \.heic",
        ),
        (["tree/a.jpg"], r"a\.jpg is not <count>/<id>\.jpg"),
        (["tree/1/deep/a.jpg"], r"1/deep/a\.jpg is not <count>/<id>\.jpg"),
        (["tree/1/notes.txt"], r"holds no bins"),
    ],
)
def test_tree_that_cannot_be_used(tmp_path: Path, make: list[str], message: str) -> None:
    touch(*(tmp_path / name for name in make))
    with pytest.raises(InputError, match=message):
        fetch("imagefolder", tmp_path / "tree")


def test_image_folder_on_s3(s3_server: str, s3_faults: FaultProxy, tmp_path: Path) -> None:
    client = s3_client(s3_server)
    client.create_bucket(Bucket="trees")
    for key in ("t/1/a.jpg", "t/4/b.jpg", "t/4/.c.jpg", "t/train_meta.csv"):
        client.put_object(Bucket="trees", Key=key, Body=b"a photo", ACL="public-read")
    s3_faults.faults["/trees/t/4/b.jpg"] = ["500"] * 3
    listing = fetch("imagefolder", "s3://trees/t/", tmp_path, s3_config(s3_faults.url))
    assert [(found.id, found.quantity) for found in listing.bins] == [("a", 1), ("b", 4)]
    assert listing.bins[0].photo is not None
    assert listing.bins[1].photo is None
    assert listing.bins[1].problem == "s3://trees/t/4/b.jpg: gave up after 3 attempts: HTTP 500 Fault"


# Tables


def write_table(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_csv(tmp_path: Path) -> None:
    touch(tmp_path / "photos/01000.jpg", tmp_path / "x/1000.jpg", tmp_path / "a/1.jpg", tmp_path / "b/1.jpg")
    table = write_table(
        tmp_path / "t/bins.csv",
        f"group,extra,path,quantity\ng1,3,../photos/01000.jpg,3\n,,{tmp_path}/x/1000.jpg,\n"
        "g2,x,../a/1.jpg,4.0\ng2,x,../b/1.jpg,three\ng2,x,gone.jpg,1\n",
    )
    listing = fetch("table", table)
    assert [(found.id, found.quantity, found.group, found.problem) for found in listing.bins] == [
        ("01000", 3, "g1", None),
        ("1000", None, None, None),
        ("a__1.jpg", 4, "g2", None),
        ("b__1.jpg", None, "g2", "quantity is no whole number from 0 up: 'three'"),
        ("gone", 1, "g2", f"no photo at its path: {tmp_path}/t/gone.jpg"),
    ]
    photos = [found.photo and found.photo.resolve() for found in listing.bins]
    assert photos == [tmp_path / name for name in ("photos/01000.jpg", "x/1000.jpg", "a/1.jpg", "b/1.jpg")] + [None]
    assert all(not found.needs_metadata for found in listing.bins)
    assert ids(fetch("table", table, limit=1)) == ["01000"]


def test_parquet_and_csv_say_the_same(tmp_path: Path) -> None:
    touch(tmp_path / "p.jpg", tmp_path / "q.jpg")
    csv = write_table(tmp_path / "t.csv", "id,path,quantity\n007,p.jpg,2\n7,q.jpg,\n")
    columns = {"id": ["007", "7"], "path": ["p.jpg", "q.jpg"], "quantity": [2, None], "other": [1.5, 2.5]}
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    listing = fetch("table", csv)
    assert fetch("table", tmp_path / "t.parquet") == listing
    assert [(found.id, found.quantity) for found in listing.bins] == [("007", 2), ("7", None)]
    given_list = write_list(tmp_path / "list.json", {"2": ["007", "8"]})
    chosen = fetch("table", csv, file_list=given_list)
    assert (ids(chosen), chosen.absent) == (["007"], ("8",))


MISSING = ["", " ", '""', "nan", "NaN", "None", "NULL", "null", "NA", "N/A", "<NA>", "NaT", "#N/A", r"\N"]


@pytest.mark.parametrize("cell", MISSING)
def test_missing_is_missing_in_every_column(tmp_path: Path, cell: str) -> None:
    touch(*(tmp_path / f"{name}.jpg" for name in "abc"))
    rows = [f"{name},a.jpg,{cell},{cell},{cell}" for name in "ab"]
    table = write_table(tmp_path / "t.csv", f"id,path,quantity,group,problem\n{rows[0]}\nb,b.jpg,2,g,{cell}\n")
    listing = fetch("table", table)
    assert [(found.quantity, found.group, found.problem) for found in listing.bins] == [
        (None, None, None),
        (2, "g", None),
    ]
    for column, row in (("path", f"b,{cell},1"), ("id", f"{cell},b.jpg,1")):
        bad = write_table(tmp_path / "bad.csv", f"id,path,quantity\na,a.jpg,1\n{row}\n")
        with pytest.raises(InputError, match=rf"bad\.csv: row 2(: '' cannot be a bin id| has no {column})"):
            fetch("table", bad)


def test_groups_that_are_missing_are_no_group(tmp_path: Path) -> None:
    """Not one, which a split would not part: 40 bins would be all of a split."""
    ids_ = [str(number) for number in range(8)]
    touch(*(tmp_path / f"{bin_id}.jpg" for bin_id in ids_))
    columns = {"path": [f"{bin_id}.jpg" for bin_id in ids_], "quantity": [1.0, 2.0] * 4}
    groups: dict[str, pa.Array] = {
        "float": pa.array([3.0, None, float("nan"), 3.0, 7.0, None, 4.0, 4.0]),
        "text": pa.array(["3", "nan", "None", "3", "7", "NULL", "4", "4"], pa.large_string()),
        "joined": pa.array(["3", "", "NaN", "3.0", "7", "", "4.0", "4"]),
        "categories": pa.array(["3", None, None, "3", "7", None, "4", "4"]).dictionary_encode(),
        "numbers": pa.array([3, None, None, 3, 7, None, 4, 4]).dictionary_encode(),
    }
    for name, group in groups.items():
        parquet.write_table(pa.table(columns | {"group": group}), tmp_path / "t.parquet")
        listing = fetch("table", tmp_path / "t.parquet")
        assert [found.group for found in listing.bins] == ["3", None, None, "3", "7", None, "4", "4"], name
        index, _ = build_index(listing, tmp_path / "scan.parquet")
        # 7 is also an id: the bin of that id is not in it
        assert index["group"].to_pylist() == ["3", "1", "2", "3", "7", "5", "4", "4"], name
    columns["group"] = ["1", "1", "2.0", "", "5.50", "3.0", "3.0", "7"]
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    index, _ = build_index(fetch("table", tmp_path / "t.parquet"), tmp_path / "scan.parquet")
    assert index["group"].to_pylist() == ["1", "1", "2.0", "3", "5.50", "3.0", "3.0", "7"]


def test_bin_without_a_group_is_not_in_one_that_is_called_as_its_id(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{name}.jpg" for name in "123"))
    table = write_table(tmp_path / "t.csv", "path,quantity,group\n1.jpg,1,3\n2.jpg,1,3\n3.jpg,1,\n")
    index, _ = build_index(fetch("table", table), tmp_path / "scan.parquet")
    assert index["group"].to_pylist() == ["3", "3", "3 alone"]


def test_parquet_columns_of_any_type(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{name}.jpg" for name in "abc"))
    paths = pa.array(["a.jpg", "b.jpg", "c.jpg"])
    quantities = [
        pa.array([3, None, 1], pa.int8()),
        pa.array([3.0, float("nan"), 1.0], pa.float32()),
        pa.array(["3", "nan", "1.0"]),
        pa.array([Decimal("3.00"), None, Decimal("1.00")]),
        pa.array([3, None, 1]).dictionary_encode(),
    ]
    for quantity in quantities:
        parquet.write_table(pa.table({"path": paths.dictionary_encode(), "quantity": quantity}), tmp_path / "t.parquet")
        assert [found.quantity for found in fetch("table", tmp_path / "t.parquet").bins] == [3, None, 1], quantity.type
    for odd, shown in ((pa.array([True, None, False]), "true"), (pa.array([1, None, 2], pa.timestamp("s")), "1970")):
        parquet.write_table(pa.table({"path": paths, "quantity": odd}), tmp_path / "t.parquet")
        problems = [found.problem for found in fetch("table", tmp_path / "t.parquet").bins]
        assert problems[1] is None
        assert f"quantity is no whole number from 0 up: '{shown}" in str(problems[0])
    parquet.write_table(pa.table({"path": paths, "quantity": pa.array([[1], [2], [3]])}), tmp_path / "t.parquet")
    with pytest.raises(
        InputError, match=r"t\.parquet: cannot be read as parquet: column 'quantity' holds list<.*write it"
    ):
        fetch("table", tmp_path / "t.parquet")


def test_table_written_on_windows(tmp_path: Path) -> None:
    touch(tmp_path / "photos/a.jpg", tmp_path / "odd\\name.jpg")
    rows = [
        r"C:\photos\a.jpg",
        r"photos\b.jpg",
        r"photos\c.jpg",
        r"more\c.jpg",
        r"\\server\share\d.jpg",
        r"odd\name.jpg",
    ]
    listing = fetch("table", write_table(tmp_path / "t.csv", "path,quantity\n" + "\n".join(f"{row},1" for row in rows)))
    found = {found.id: found.problem or "" for found in listing.bins}
    (named,) = (bin_id for bin_id in found if bin_id.startswith("~"))  # of the file whose name has a backslash
    assert set(found) == {"a", "b", "photos__c.jpg", "more__c.jpg", "d", named}
    reason = "no photo at its path, written as on Windows (give / for \\ and no drive)"
    assert {problem.rpartition(": ")[0] for bin_id, problem in found.items() if bin_id != named} == {reason}
    assert found[named].startswith("name cannot be a bin id")


@pytest.mark.parametrize(("cell", "quantity"), [("0", 0), ("3.0", 3), (" 5 ", 5), ("nan", None), ('""', None)])
def test_quantity_cells(tmp_path: Path, cell: str, quantity: int | None) -> None:
    touch(tmp_path / "p.jpg")
    (found,) = fetch("table", write_table(tmp_path / "t.csv", f"path,quantity\np.jpg,{cell}\n")).bins
    assert (found.quantity, found.problem) == (quantity, None)


@pytest.mark.parametrize("cell", ["-1", "2.5", "three", "1e3", "12345678901234567890", "True"])
def test_bad_quantity_is_the_rows_problem(tmp_path: Path, cell: str) -> None:
    touch(tmp_path / "p.jpg")
    (found,) = fetch("table", write_table(tmp_path / "t.csv", f"path,quantity\np.jpg,{cell}\n")).bins
    assert found.problem == f"quantity is no whole number from 0 up: '{cell}'"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "file,quantity\na.jpg,1\n", r"has no column 'path' but file, quantity; name it so in the first line"),
        ("t.csv", "path;quantity\na.jpg;1\n", r"has no column 'path' but path;quantity"),
        ("t.csv", "path\na.jpg\n", r"has no column 'quantity'"),
        ("t.csv", "path,quantity\n", r"has no rows"),
        ("t.csv", "", r"cannot be read as csv: Empty CSV file"),
        ("t.csv", "path,quantity\na.jpg,1,2\n", r"cannot be read as csv: .*Expected 2 columns, got 3"),
        ("t.csv", "path,path,quantity\na.jpg,b.jpg,2\n", r"has column 'path' twice"),
        ("t.csv", "path,quantity\na.jpg,1\n,2\n", r"row 2 has no path; fill it in"),
        ("t.csv", "path,quantity\na.jpg,1\nb.jpg,1\na.jpg,2\n", r"rows 1 and 3 have the same path .*a\.jpg"),
        ("t.csv", "path,quantity\na/1.jpg,1\na/../a/1.jpg,2\n", r"rows 1 and 2 have the same path .*/a/1\.jpg"),
        ("t.csv", "path,quantity\nx/b__c/1.jpg,1\nx__b/c/1.jpg,2\n", r"the same id x__b__c__1\.jpg; rename one"),
        ("t.csv", "path,quantity,id\na.jpg,1,7\nb.jpg,1,7\n", r"rows 1 and 2 have the same id 7"),
        ("t.csv", "path,quantity,id\na.jpg,1,../7\n", r"row 1: '\.\./7' cannot be a bin id"),
        ("t.csv", "path,quantity,id\na.jpg,1,\n", r"row 1: '' cannot be a bin id"),
        ("t.parquet", "path,quantity\na.jpg,1\n", r"cannot be read as parquet: "),
        ("t.txt", "path,quantity\na.jpg,1\n", r"is no table; name a \.csv or \.parquet file"),
    ],
)
def test_table_that_cannot_be_used(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        fetch("table", write_table(tmp_path / name, text))
    assert str(caught.value).startswith(f"data.source: {tmp_path / name}: ")
    assert "\n" not in str(caught.value)


def test_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.source: .*t\.csv: cannot be read: No such file or directory; check"):
        fetch("table", tmp_path / "t.csv")


def test_table_cells_that_can_be_no_path(tmp_path: Path) -> None:
    long = "x" * 5000
    listing = fetch("table", write_table(tmp_path / "t.csv", f"path,quantity,id\n{long}.jpg,1,a\nb\0.jpg,1,b\n"))
    assert [(found.problem or "")[:12] for found in listing.bins] == ["no photo at "] * 2


def test_table_with_photos_on_s3(s3_faults: FaultProxy, tmp_path: Path) -> None:
    touch(tmp_path / "here.jpg")
    rows = [f"s3://{BUCKET}/bin-images/{name}.jpg,1" for name in ("00001", "00002", "absent", "a//b")]
    table = write_table(tmp_path / "t.csv", "\n".join(["path,quantity", *rows, "here.jpg,2"]))
    listing = fetch("table", table, tmp_path / "data", s3_config(s3_faults.url))
    found = {found.id: found for found in listing.bins}
    assert found["00001"].photo is not None
    assert found["00001"].photo.read_bytes()[:2] == b"\xff\xd8"
    assert found["here"].photo == tmp_path / "here.jpg"
    assert found["absent"].problem == f"s3://{BUCKET}/bin-images/absent.jpg: no such object"
    assert found["b"].problem is not None
    assert "cannot be a path" in found["b"].problem
    s3_faults.gets.clear()
    fetch("table", table, tmp_path / "data", s3_config(s3_faults.url), limit=1)
    assert not s3_faults.objects()  # 00001 alone is wanted, and here


def test_table_on_s3_has_its_photos_beside_it(s3_server: str, tmp_path: Path) -> None:
    client = s3_client(s3_server)
    body = b"path,quantity\nbin-images/00001.jpg,1\n"
    client.put_object(Bucket=BUCKET, Key="t.csv", Body=body, ACL="public-read")
    (found,) = fetch("table", f"s3://{BUCKET}/t.csv", tmp_path, s3_config(s3_server)).bins
    assert found.photo is not None
    assert found.photo.is_file()
    with pytest.raises(InputError, match=r"s3://bins/none\.csv: no such object"):
        fetch("table", f"s3://{BUCKET}/none.csv", tmp_path, s3_config(s3_server))


# Names as they stand


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        (" a.jpg", " a.jpg"),
        ("a.jpg ", None),
        ("a.jpg", "a.jpg"),
        ("./a.jpg", "a.jpg"),
        ("photos/../a.jpg", "a.jpg"),
        ("a.jpg/", None),
        ("a.jpg/.", None),
        ("none/../a.jpg", None),
        ("link/../b.jpg", "elsewhere/b.jpg"),
        ("e\u0301.jpg", "e\u0301.jpg"),
        ("\u00e9.jpg", None),
        ("A.jpg", None),
        ("%61.jpg", None),
    ],
)
def test_path_of_a_table_is_that_file_or_none(tmp_path: Path, cell: str, found: str | None) -> None:
    for name in ("a.jpg", " a.jpg", "b.jpg", "e\u0301.jpg", "elsewhere/b.jpg", "elsewhere/in/c.jpg", "photos/x.jpg"):
        touch(tmp_path / name)
    (tmp_path / "link").symlink_to("elsewhere/in")
    (listed,) = fetch("table", write_table(tmp_path / "t.csv", f'path,quantity\n"{cell}",1\n')).bins
    if found is None:
        assert listed.photo is None
        assert (listed.problem or "").startswith("no photo at its path: ")
    else:
        assert listed.photo is not None
        assert listed.photo.samefile(tmp_path / found)


def test_id_of_a_table_is_taken_as_it_stands(tmp_path: Path) -> None:
    touch(tmp_path / "a.jpg", tmp_path / "b.jpg")
    table = write_table(tmp_path / "t.csv", 'path,quantity,id\na.jpg,1," 7"\nb.jpg,2,7\n')
    assert {found.id: found.quantity for found in fetch("table", table).bins} == {" 7": 1, "7": 2}


def put_keys(endpoint_url: str, bucket: str, *keys: str) -> None:
    """Store every key's own name under it."""
    s3_client(endpoint_url).create_bucket(Bucket=bucket)
    for key in keys:
        put(endpoint_url, bucket, key, key.encode())


def test_key_is_that_object_or_refused(s3_server: str, tmp_path: Path) -> None:
    put_keys(
        s3_server, "exact", *("lead.jpg", "/lead.jpg", " lead.jpg", "a/b.jpg", "a%2Fb.jpg", "e\u0301.jpg", "a+b.jpg")
    )
    s3 = s3_config(s3_server)
    for key in ("lead.jpg", " lead.jpg", "a/b.jpg", "a%2Fb.jpg", "e\u0301.jpg", "a+b.jpg"):
        (photo,) = list_inputs(f"s3://exact/{key}", s3, tmp_path)
        assert photo.path is not None
        assert photo.path.read_bytes() == key.encode()
    for key in ("/lead.jpg", "a/../lead.jpg", "./lead.jpg", "a//b.jpg"):
        with pytest.raises(InputError, match="cannot be a path on this machine"):
            list_inputs(f"s3://exact/{key}", s3, tmp_path)
    for key in ("\u00e9.jpg", "LEAD.jpg", "%6Cead.jpg", "a b.jpg"):
        with pytest.raises(InputError, match="no such object"):
            list_inputs(f"s3://exact/{key}", s3, tmp_path)
    for key in ("lead.jpg ", "lead.jpg/", "a/b.jpg/"):
        with pytest.raises(InputError, match="holds no photo"):
            list_inputs(f"s3://exact/{key}", s3, tmp_path)


@pytest.mark.parametrize("layout", ["bucket", "imagefolder"])
@pytest.mark.parametrize("prefix", ["/", "//", "/deep", "deep//", "de//ep", "deep/.", "x/../deep"])
def test_prefix_is_that_one_or_refused(tmp_path: Path, layout: str, prefix: str) -> None:
    with pytest.raises(InputError, match=r"^data\.source: s3://folders/.*: the prefix cannot be a path"):
        fetch(layout, f"s3://folders/{prefix}", tmp_path)


@pytest.mark.parametrize("name", ["/list.json", "x/../list.json", "list.json/", "t.csv/"])
def test_lists_and_tables_are_read_by_their_own_name(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "list.json", tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"key has '\.', '\.\.' or empty parts"):
        read_object(f"s3://lists/{name}", NO_S3)
    if name.endswith("/"):
        with pytest.raises(InputError, match="Not a directory"):
            read_file_list(f"{tmp_path}/{name}")
        with pytest.raises(InputError, match="Not a directory"):
            fetch("table", f"{tmp_path}/t.csv/")


def test_paths_of_a_table_on_s3_are_resolved_as_those_of_a_local_one(s3_server: str, tmp_path: Path) -> None:
    keys = ("tab/rel.jpg", "photos/a.jpg", "tab/deep/b.jpg", "root.jpg", "tab/ c.jpg")
    put_keys(s3_server, "tables", *keys)
    cells = {
        "./rel.jpg": "tab/rel.jpg",
        "../photos/a.jpg": "photos/a.jpg",
        "deep/../deep/./b.jpg": "tab/deep/b.jpg",
        "../root.jpg": "root.jpg",
        " c.jpg": "tab/ c.jpg",
    }
    refused = ["../../tables/photos/a.jpg", "../..", ".//d.jpg", "..//photos/e.jpg", "rel.jpg/", "deep/b.jpg/."]
    lines = "".join(f'"{cell}",1,{number}\n' for number, cell in enumerate([*cells, *refused]))
    put(s3_server, "tables", "tab/t.csv", f"path,quantity,id\n{lines}".encode())
    bins = list(fetch("table", "s3://tables/tab/t.csv", tmp_path, s3_config(s3_server)).bins)
    assert [found.photo.read_text() for found in bins if found.photo is not None] == list(cells.values())
    assert [found.problem for found in bins if found.photo is None] == [
        "the key cannot be a path on this machine"
    ] * len(refused)


# Choosing the reader


@pytest.mark.parametrize(
    ("reader", "message"),
    [
        (None, r"data\.reader=None: needs _target_"),
        ({"size": 3}, r"data\.reader=\{'size': 3\}: needs _target_"),
        (
            {"_target_": "binventory.data.sources.nothing.Here"},
            r"_target_=.*cannot import .*No module",
        ),
        ({"_target_": "binventory.data.sources.bucket.Buket"}, r"_target_=.*bucket has no Buket"),
        ({"_target_": "Buket"}, r"data\.reader\._target_=Buket: cannot import"),
        ({"_target_": "binventory.data.sources.bucket.PHOTOS"}, r"is not a class or function"),
        ({"_target_": READERS["bucket"], "size": 3}, r"data\.reader: .*unexpected keyword argument 'size'"),
    ],
)
def test_reader_that_cannot_be(reader: object, message: str) -> None:
    data = OmegaConf.create({"reader": reader, "source": "x", "file_list": None, "limit": None})
    with pytest.raises(ConfigError, match=message):
        make_source(data, NO_S3, "data")


def test_reader_of_ones_own_gets_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "class Mine:\n    def __init__(self, location, **given):\n        self.given = [location, given]\n"
    (tmp_path / "my_reader.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    reader = {"_target_": "my_reader.Mine", "sizes": [1, 2]}
    data = OmegaConf.create({"reader": reader, "source": "x", "file_list": "l.json", "limit": 5})
    source: Any = make_source(data, NO_S3, "d")
    options = {"file_list": "l.json", "limit": 5, "s3": NO_S3, "data_dir": "d", "sizes": [1, 2]}
    assert source.given == ["x", options]
    sys.modules.pop("my_reader")
