"""Whatever a metadata file holds, it gives the quantity that it states or none; and its items fit into the tables."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from binventory.data.metadata import MAX_FLAGS, BinMetadata, MetadataError, read_metadata
from binventory.data.scan import SCAN_SCHEMA
from tests.fuzz.amounts import check_refusal, corpus, fuzz

MAX_SECONDS = 2.0
COLUMNS = pa.schema([SCAN_SCHEMA.field(name) for name in ("quantity", "items", "flags")])

VALID = {
    "BIN_FCSKU_DATA": {
        "B00A": {
            "asin": "B00A",
            "height": {"unit": "IN", "value": 4.2},
            "name": "Mug, \u00e9maill\u00e9",
            "quantity": 2,
            "weight": {"unit": "pounds", "value": 0.5},
        }
    },
    "EXPECTED_QUANTITY": 2,
}
FILES = [json.dumps(VALID).encode(), json.dumps(VALID, indent=4, ensure_ascii=False).encode(), b"\xef\xbb\xbf{}"]

NUMBERS = st.one_of(
    st.integers(-3, 8),
    st.sampled_from([10**6, 10**6 + 1, 2**31, 2**63, 2**64, 10**400, -(10**30)]),
    st.sampled_from([math.nan, math.inf, -math.inf, 3.0, 2.5, -0.0, 1e308]),
)
ATOMS = st.one_of(
    st.none(), st.booleans(), NUMBERS, st.text(max_size=8), st.sampled_from(["3", " 3", "\x1b[2J", "a\nb"])
)
VALUES = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3), max_leaves=6
)  # fmt: skip
MEASURES = st.one_of(
    VALUES, st.fixed_dictionaries({"unit": st.sampled_from(["IN", "pounds", "", "furlong"]) | VALUES, "value": VALUES})
)
ITEMS = st.one_of(
    VALUES,
    st.fixed_dictionaries(
        {},
        optional={"name": VALUES, "quantity": VALUES, "asin": VALUES, "height": MEASURES, "weight": MEASURES},
    ),
)
KEYS = st.one_of(
    st.text(max_size=12),
    st.text(st.characters(categories=["Cs", "Cc", "Lu"]), max_size=6),
    st.sampled_from(["EXPECTED_QUANTITY", "quantity", "B00A"]),
)


class Pairs(list[tuple[str, Any]]):
    """An object whose keys may stand twice."""


def dump(value: Any) -> str:
    if isinstance(value, Pairs):
        return "{" + ", ".join(f"{json.dumps(key)}: {dump(inner)}" for key, inner in value) + "}"
    return json.dumps(value)


@st.composite
def documents(draw: st.DrawFn) -> tuple[bytes, int | None]:
    """A document and the quantity that it states; None where it states none that can be used."""
    listing = Pairs(draw(st.lists(st.tuples(KEYS, ITEMS), max_size=8)))
    stated = draw(st.lists(VALUES | st.integers(0, 6), min_size=0, max_size=2))
    pairs = [("EXPECTED_QUANTITY", value) for value in stated]
    if draw(st.booleans()):
        pairs.append(("BIN_FCSKU_DATA", listing))
    else:
        listing.clear()
        pairs.append(("BIN_FCSKU_DATA", draw(VALUES)))
    pairs += draw(st.lists(st.tuples(st.text(max_size=5), VALUES), max_size=2))
    text = dump(Pairs(draw(st.permutations(pairs))))
    inner_repeat = [key for key, _ in listing].count("EXPECTED_QUANTITY") > 1
    usable = len(stated) == 1 and type(stated[0]) is int and 0 <= stated[0] <= 10**6 and not inner_repeat
    return text.encode(), stated[0] if usable else None


@st.composite
def damaged_files(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(FILES)))
    for _ in range(draw(st.integers(1, 5))):
        place = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["put", "cut", "drop", "repeat"]))
        if kind == "put":
            data[place:place] = draw(
                st.binary(max_size=3)
                | st.sampled_from([b"[" * 3000, b'{"a":' * 2000, b"NaN", b"-", b"1e999", b"9" * 5000])
            )
        elif kind == "cut":
            del data[place:]
        elif kind == "drop":
            del data[place : place + draw(st.integers(1, 9))]
        else:
            data[place:place] = data[max(0, place - draw(st.integers(1, 40))) : place]
    return bytes(data)


def read(path: Path, data: bytes) -> BinMetadata | None:
    path.write_bytes(data)
    started = time.process_time()
    try:
        metadata = read_metadata(path)
    except MetadataError as error:
        check_refusal(error)
        return None
    finally:
        assert time.process_time() - started < MAX_SECONDS
    assert len(metadata.flags) <= MAX_FLAGS + 2
    assert all(flag.isprintable() and len(flag) < 200 for flag in metadata.flags)
    row = {"quantity": metadata.quantity, "items": [asdict(item) for item in metadata.items], "flags": metadata.flags}
    assert pa.Table.from_pylist([row], COLUMNS)["quantity"].to_pylist() == [metadata.quantity]
    return metadata


def check(path: Path, data: bytes) -> None:
    """Where a quantity is given, the standard reader finds it in the file, once and as a whole number."""
    metadata = read(path, data)
    if metadata is not None:
        pairs: list[tuple[str, Any]] = json.loads(data.decode("utf-8-sig"), object_pairs_hook=lambda found: found)
        stated = [value for key, value in pairs if key == "EXPECTED_QUANTITY"]
        assert stated == [metadata.quantity]
        assert type(stated[0]) is int


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("metadata") / "1.json"


@pytest.mark.parametrize("saved", corpus("metadata"))
def test_saved(path: Path, saved: Path) -> None:
    check(path, saved.read_bytes())


@fuzz(150)
@given(documents())
def test_any_document(path: Path, document: tuple[bytes, int | None]) -> None:
    data, quantity = document
    metadata = read(path, data)
    assert (metadata.quantity if metadata else None) == quantity
    check(path, data)


@fuzz(300)
@given(damaged_files())
def test_damaged(path: Path, data: bytes) -> None:
    check(path, data)


@fuzz(200)
@given(st.binary(max_size=200))
def test_random_bytes(path: Path, data: bytes) -> None:
    check(path, data)
