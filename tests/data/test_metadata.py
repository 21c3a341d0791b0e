"""Metadata files give a label and an item list, or say why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from binventory.data.metadata import MAX_METADATA_BYTES, Item, MetadataError, read_metadata
from binventory.errors import InputError


def item(quantity: Any = 1, **fields: Any) -> dict[str, Any]:
    return {"asin": "A", "name": "Mug", "quantity": quantity, **fields}


def write(path: Path, document: object) -> Path:
    path.write_text(json.dumps(document))
    return path


def test_a_whole_file(tmp_path: Path) -> None:
    inch = {"unit": "IN", "value": 2.0}
    measures = {"height": inch, "length": {"unit": "CM", "value": 2.54}, "width": None}
    document = {
        "BIN_FCSKU_DATA": {
            "A": item(2, **measures, weight={"unit": "pounds", "value": 3}),
            "B": item(1, **measures, weight={"unit": "kilograms", "value": 0.45359237}),
        },
        "EXPECTED_QUANTITY": 3,
    }
    metadata = read_metadata(write(tmp_path / "1.json", document))
    assert metadata.quantity == 3
    assert metadata.flags == ()
    assert metadata.items[0] == Item("A", "Mug", 2, 2.0, pytest.approx(1.0), None, 3.0)
    assert metadata.items[1].weight_lb == pytest.approx(1.0)


@pytest.mark.parametrize("quantity", [True, 3.0, -1, "3", None, float("nan"), 10**7, [3]])
def test_quantity_that_is_no_whole_number_is_refused(tmp_path: Path, quantity: Any) -> None:
    path = write(tmp_path / "1.json", {"EXPECTED_QUANTITY": quantity, "BIN_FCSKU_DATA": {}})
    with pytest.raises(MetadataError, match="EXPECTED_QUANTITY is no whole number from 0 to 1000000") as error:
        read_metadata(path)
    assert str(error.value).startswith(str(path))


def test_quantity_zero_is_a_label(tmp_path: Path) -> None:
    assert read_metadata(write(tmp_path / "1.json", {"EXPECTED_QUANTITY": 0, "BIN_FCSKU_DATA": {}})).quantity == 0


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "metadata file is empty"),
        (b" \n", "metadata file is empty"),
        (b'{"EXPECTED_QUANTITY": 3', "metadata is not JSON"),
        (b'{"EXPECTED_QUANTITY": ' + b"9" * 5000 + b"}", "metadata is not JSON"),
        (b"[3]", "metadata is no JSON object"),
        (b"{}", "metadata has no EXPECTED_QUANTITY"),
        (b'{"EXPECTED_QUANTITY": 3, "EXPECTED_QUANTITY": 4}', "EXPECTED_QUANTITY stands twice"),
        (b'{"EXPECTED_QUANTITY": 3, "name": "\xe9"}', "metadata is not UTF-8"),
        (b"[" * 200_000, "metadata is nested too deeply"),
        (b" " * MAX_METADATA_BYTES + b"{}", "metadata file too large"),
    ],
)
def test_unusable_file_is_refused_with_its_name_and_a_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "1.json"
    path.write_bytes(content)
    with pytest.raises(MetadataError) as error:
        read_metadata(path)
    assert isinstance(error.value, InputError)
    assert error.value.reason.startswith(reason)
    assert str(error.value) == f"{path}: {error.value.reason}"


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MetadataError, match="cannot be read: No such file"):
        read_metadata(tmp_path / "gone.json")
    with pytest.raises(MetadataError, match="not a regular file"):
        read_metadata(tmp_path)


@pytest.mark.parametrize(
    ("items", "flag"),
    [
        ({"A": item(4)}, "item quantities sum to 4, EXPECTED_QUANTITY is 3"),
        ({"A": item(3), "B": 7}, "item is no JSON object: B"),
        ({"A": item(3), "B": item("one")}, "item without a usable quantity: B"),
        ({"A": item(3), "B": item(10**30)}, "item without a usable quantity: B"),
        ("nothing", "no item list: BIN_FCSKU_DATA is missing or no JSON object"),
    ],
)
def test_faults_of_the_item_list_keep_the_label(tmp_path: Path, items: Any, flag: str) -> None:
    metadata = read_metadata(write(tmp_path / "1.json", {"EXPECTED_QUANTITY": 3, "BIN_FCSKU_DATA": items}))
    assert metadata.quantity == 3
    assert flag in metadata.flags


def test_an_item_listed_twice_is_flagged(tmp_path: Path) -> None:
    path = tmp_path / "1.json"
    path.write_text('{"EXPECTED_QUANTITY": 1, "BIN_FCSKU_DATA": {"A": {"quantity": 1}, "A": {"quantity": 1}}}')
    assert read_metadata(path).flags == ("key stands twice: A",)


@pytest.mark.parametrize(
    "measure",
    [None, 3, {}, {"unit": "furlong", "value": 1}, {"unit": "IN", "value": "2"}, {"unit": "IN", "value": 10**400}]
    + [{"unit": "IN", "value": value} for value in (True, -1, float("inf"), float("nan"))]
    + [{"unit": 5, "value": 1}, {"value": 1}],
)
def test_odd_measures_are_null(tmp_path: Path, measure: Any) -> None:
    document = {"EXPECTED_QUANTITY": 1, "BIN_FCSKU_DATA": {"A": item(height=measure, weight=measure)}}
    metadata = read_metadata(write(tmp_path / "1.json", document))
    assert metadata.items[0].height_in is None
    assert metadata.items[0].weight_lb is None
    assert metadata.flags == ()


def test_half_a_surrogate_pair_does_not_reach_the_tables(tmp_path: Path) -> None:
    document = {"EXPECTED_QUANTITY": 1, "BIN_FCSKU_DATA": {"A\udc80": {"name": "Mug \ud83d", "quantity": 1}}}
    metadata = read_metadata(write(tmp_path / "1.json", document))
    assert (metadata.items[0].asin, metadata.items[0].name) == ("A?", "Mug ?")


def test_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "1.json"
    path.write_bytes(b'\xef\xbb\xbf{"EXPECTED_QUANTITY": 2, "BIN_FCSKU_DATA": {}}')
    assert read_metadata(path).quantity == 2
