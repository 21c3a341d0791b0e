"""Whatever files, keys, lists and cells are called, ids stay in their folder and every bin is accounted for."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from binventory.data.inputs import list_inputs
from binventory.data.sources.bucket import list_bins
from binventory.data.sources.file_list import check_id, parse_file_list
from binventory.data.sources.mirror import target_of
from binventory.data.sources.photo_tree import ids_of
from binventory.data.sources.s3 import mirror_folder, split_uri
from binventory.data.sources.table import read_rows
from binventory.data.text import can_be_id, id_of_name
from binventory.errors import InputError
from tests.fuzz.amounts import check_refusal, corpus, fuzz
from tests.s3 import s3_config

S3 = s3_config("http://127.0.0.1:9")
ROOT = Path("/data")
MAX_SECONDS = 5.0  # of the processor, for a table

PARTS = ["..", ".", "/", "\\", "\0", "\n", "%2e%2e", "~", "%2F", "\u202e", "\x1b[2J", "00001", "é", "e\u0301", "箱", " ", "a" * 210, ".jpg"]  # fmt: skip
NAMES = st.lists(st.sampled_from(PARTS) | st.text(max_size=6) | st.text(st.characters(categories=["Cs"]), max_size=2), max_size=6).map("".join)  # fmt: skip
# What a file system takes as a name: any bytes but NUL and '/', at most 255 with the suffix
FILE_NAMES = st.one_of(
    st.binary(min_size=1, max_size=20), NAMES.map(lambda name: name.encode("utf-8", "surrogatepass"))
).map(lambda raw: raw.replace(b"\0", b"").replace(b"/", b"")[:250])


def inside(path: Path, folder: Path) -> bool:
    normal = Path(os.path.normpath(path))
    return normal == path and folder in normal.parents


@pytest.mark.parametrize("saved", corpus("name"))
def test_saved_name(saved: Path) -> None:
    check_names([saved.read_bytes().decode("utf-8", "surrogateescape"), "00001"])


@fuzz(300)
@given(st.lists(NAMES, min_size=2, max_size=5))
def test_ids_and_keys(names: list[str]) -> None:
    check_names(names)


def check_names(names: list[str]) -> None:
    for name in names:
        made, problem = id_of_name(name)
        assert inside(ROOT / f"{made}.jpg", ROOT)
        assert (ROOT / f"{made}.jpg").parent == ROOT
        assert check_id(made, "here") == made
        assert len(os.fsencode(made)) <= 200
        assert problem is None or (problem.isprintable() and made != name)
        target = target_of("bins", name, S3, ROOT)
        folder = mirror_folder("bins", S3, ROOT)
        assert target is None or inside(target, folder)
        try:
            bucket, _ = split_uri(f"s3://{name}")
            assert inside(mirror_folder(bucket, S3, ROOT), ROOT)
        except InputError as error:
            assert "names no bucket" in repr(error)  # noqa: PT017
    assert len({id_of_name(name)[0] for name in set(names)}) == len(set(names)), "two names must not become one bin"
    targets = [target for name in set(names) if (target := target_of("bins", name, S3, ROOT)) is not None]
    assert len(set(targets)) == len(targets)
    try:
        assert len(set(ids_of(names))) == len(names)
    except InputError as error:
        assert "same id" in str(error)  # noqa: PT017


@fuzz(100)
@given(st.lists(FILE_NAMES.filter(lambda raw: raw not in {b"", b".", b".."}), min_size=1, max_size=6, unique=True))
def test_files_of_any_name(tmp_path_factory: pytest.TempPathFactory, names: list[bytes]) -> None:
    folder = tmp_path_factory.getbasetemp() / "any_name"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "bin-images").mkdir(parents=True)
    (folder / "loose").mkdir()
    for name in names:
        (folder / "bin-images" / os.fsdecode(name + b".jpg")).touch()
        (folder / "loose" / os.fsdecode(name + b".jpg")).touch()
    expected = {name for name in names if not name.startswith(b".")}
    bins = {found.id: found for found in list_bins(folder).bins}
    assert {os.fsencode(found.photo) for found in bins.values() if found.photo} == {
        os.fsencode(folder / "bin-images") + b"/" + name + b".jpg" for name in expected
    }
    assert len(bins) == len(expected)
    assert all(can_be_id(bin_id) for bin_id in bins)
    assert all(found.problem is None or found.problem.isprintable() for found in bins.values())
    for location in (folder, folder / "loose"):
        try:
            photos = list_inputs(str(location), S3, folder)
        except InputError:
            assert not expected or any("__" in os.fsdecode(name) for name in names)
            continue
        assert len({photo.id for photo in photos}) == len(photos) == len(expected)
        assert all(can_be_id(photo.id) for photo in photos)


ENTRIES = st.one_of(
    NAMES.map(lambda name: f"data/metadata/{name}.json"),
    st.integers(0, 30).map(lambda number: f"data/metadata/{number:05d}.json"),
    NAMES,
    st.none() | st.integers() | st.lists(st.none(), max_size=2),
)
COUNTS = st.one_of(st.integers(-1, 9).map(str), st.text(max_size=4), st.sampled_from(["٣", "1" * 5000, "01"]))
LISTS = st.dictionaries(COUNTS, st.lists(ENTRIES, max_size=4) | ENTRIES, max_size=3).map(lambda value: json.dumps(value).encode())  # fmt: skip
LIST = json.dumps(
    {"1": ["data/metadata/00001.json"], "2": ["data/metadata/01000.json", "data/metadata/1000.json"]}
).encode()


def check_file_list(data: bytes) -> None:
    try:
        counts = parse_file_list(data, "list.json")
    except InputError as error:
        check_refusal(error)
        return
    assert counts
    assert all(can_be_id(bin_id) and type(count) is int and count >= 0 for bin_id, count in counts.items())
    stated = {key: value for key, value in json.loads(data).items() if value}
    assert list(counts.items()) == [
        (Path(entry).name.removesuffix(".json"), int(key)) for key, entries in stated.items() for entry in entries
    ]


@pytest.mark.parametrize("saved", corpus("file_list"))
def test_saved_file_list(saved: Path) -> None:
    check_file_list(saved.read_bytes())


@fuzz(300)
@given(st.one_of(LISTS, st.binary(max_size=100), st.tuples(st.integers(0, len(LIST)), st.binary(max_size=4), st.integers(0, 9)).map(lambda cut: LIST[: cut[0]] + cut[1] + LIST[cut[0] + cut[2] :])))  # fmt: skip
def test_file_lists(data: bytes) -> None:
    check_file_list(data)


CELLS = st.one_of(
    NAMES, st.sampled_from(["3", "3.0", "-1", "", "nan", "1e9", "999999999", "1000000000", '"', ",", "\r\n"])
)
ROWS = st.lists(
    st.lists(CELLS.map(lambda cell: '"' + cell.replace('"', '""') + '"'), min_size=1, max_size=4), max_size=4
)


@st.composite
def tables(draw: st.DrawFn) -> bytes:
    header = draw(st.permutations(["path", "quantity", "id", "group"]))[: draw(st.integers(1, 4))]
    rows = [",".join((row + ['""'] * 4)[: len(header)]) for row in draw(ROWS)]
    data = bytearray("\n".join([",".join(header), *rows]).encode("utf-8", "surrogatepass"))
    for place, value in draw(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=3)):
        data[place % len(data)] = value
    return bytes(data)


def check_table(folder: Path, name: str, data: bytes) -> None:
    path = folder / name
    path.write_bytes(data)
    started = time.process_time()
    try:
        rows = read_rows(str(path), S3)
    except InputError as error:
        check_refusal(error, 1500)
        return
    finally:
        assert time.process_time() - started < MAX_SECONDS
    assert rows
    assert len({row.id for row in rows}) == len(rows)
    assert all(can_be_id(row.id) for row in rows)
    assert all(row.quantity is None or 0 <= row.quantity < 10**9 for row in rows)
    for row in rows:
        for text in (row.location, row.group, row.problem):
            assert text is None or text.encode()


@pytest.mark.parametrize("saved", corpus("table"))
def test_saved_table(tmp_path: Path, saved: Path) -> None:
    check_table(tmp_path, f"t{saved.suffix}", saved.read_bytes())


@fuzz(120)
@given(tables())
def test_csv(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    check_table(tmp_path_factory.getbasetemp(), "t.csv", data)


def parquet_bytes() -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        "id": ["007", "7", None],
        "path": ["p.jpg", "q.jpg", "r.jpg"],
        "quantity": [2, None, 3],
        "group": ["a", "", "a"],
    }
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.table(columns), sink, compression="none")
    data: bytes = sink.getvalue().to_pybytes()
    return data


PARQUET = parquet_bytes()


@fuzz(200)
@given(
    st.lists(st.tuples(st.integers(0, len(PARQUET) - 1), st.integers(0, 255)), min_size=1, max_size=5),
    st.integers(0, 30),
)
def test_parquet(tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(PARQUET)
    for place, value in changes:
        data[place] = value
    if cut < 10:
        del data[-1 - cut :]
    check_table(tmp_path_factory.getbasetemp(), "t.parquet", bytes(data))
