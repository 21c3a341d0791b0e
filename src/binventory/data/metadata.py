"""The public data set's metadata files: what a bin should hold."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from binventory.data.text import brief, printable, utf8
from binventory.errors import InputError
from binventory.files import UnreadableError, read_limited

MAX_METADATA_BYTES = 4 * 2**20  # the largest of the public bucket are some 100 KB
MAX_QUANTITY = 1_000_000
MAX_SHOWN_CHARS = 60  # of a name in a flag
MAX_FLAGS = 5  # of one file; they are for people to read

INCHES = {"in": 1.0, "inch": 1.0, "inches": 1.0, "cm": 1 / 2.54, "centimeters": 1 / 2.54, "mm": 1 / 25.4}
POUNDS = {
    "pounds": 1.0,
    "pound": 1.0,
    "lb": 1.0,
    "lbs": 1.0,
    "ounces": 1 / 16,
    "oz": 1 / 16,
    "kilograms": 1 / 0.45359237,
    "kg": 1 / 0.45359237,
    "grams": 1 / 453.59237,
    "g": 1 / 453.59237,
}


class MetadataError(InputError):
    """A metadata file without a usable quantity. `reason` is the message without the file's name."""

    def __init__(self, name: str, reason: str) -> None:
        self.name = name
        self.reason = printable(reason)
        super().__init__(f"{printable(name)}: {self.reason}")


@dataclass(frozen=True)
class Item:
    """One kind of item in a bin; None where the file does not say it or not in a known unit."""

    asin: str
    name: str | None
    quantity: int | None
    height_in: float | None
    length_in: float | None
    width_in: float | None
    weight_lb: float | None


@dataclass(frozen=True)
class BinMetadata:
    """What one metadata file says.

    Attributes:
        quantity: EXPECTED_QUANTITY, the label.
        items: the item list. It gives the label away: for exploring and splitting, never a model input.
        flags: faults of the item list that leave the label usable; the first few of many.
    """

    quantity: int
    items: tuple[Item, ...]
    flags: tuple[str, ...]


def read_metadata(path: Path) -> BinMetadata:
    """Read one metadata JSON file.

    Raises:
        MetadataError: the file cannot be read or is over 4 MiB, is no JSON object, states EXPECTED_QUANTITY not at all,
            twice, or as anything but a whole number from 0 to 1,000,000.
    """
    name = str(path)
    repeated: set[str] = set()
    document = _parse(_read(path), name, repeated)
    if not isinstance(document, dict):
        raise MetadataError(name, f"metadata is no JSON object: {type(document).__name__}")
    if "EXPECTED_QUANTITY" not in document:
        raise MetadataError(name, "metadata has no EXPECTED_QUANTITY")
    quantity = _quantity(document["EXPECTED_QUANTITY"])
    if quantity is None:
        found = brief(document["EXPECTED_QUANTITY"])
        raise MetadataError(name, f"EXPECTED_QUANTITY is no whole number from 0 to {MAX_QUANTITY}: {found}")
    if "EXPECTED_QUANTITY" in repeated:
        raise MetadataError(name, "EXPECTED_QUANTITY stands twice")
    items, flags = _read_items(document.get("BIN_FCSKU_DATA"))
    flags.extend(f"key stands twice: {printable(key, MAX_SHOWN_CHARS)}" for key in sorted(repeated))
    flags = flags if len(flags) <= MAX_FLAGS else [*flags[:MAX_FLAGS], f"{len(flags) - MAX_FLAGS} more faults"]
    total = sum(item.quantity or 0 for item in items)
    if total != quantity:
        flags.append(f"item quantities sum to {total}, EXPECTED_QUANTITY is {quantity}")
    return BinMetadata(quantity, items, tuple(flags))


def _read(path: Path) -> bytes:
    try:
        return read_limited(path, MAX_METADATA_BYTES)
    except UnreadableError as error:
        raise MetadataError(str(path), f"metadata file {error}") from error


def _parse(data: bytes, name: str, repeated: set[str]) -> object:
    def pairs_to_dict(pairs: list[tuple[str, object]]) -> dict[str, object]:
        merged = dict(pairs)
        if len(merged) < len(pairs):
            occurrences = Counter(key for key, _ in pairs)
            repeated.update(key for key, times in occurrences.items() if times > 1)
        return merged

    if not data.strip():
        raise MetadataError(name, "metadata file is empty")
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=pairs_to_dict)
    except UnicodeDecodeError as error:
        raise MetadataError(name, f"metadata is not UTF-8: {error.reason} at byte {error.start}") from error
    except ValueError as error:  # also a number of more digits than int() takes
        raise MetadataError(name, f"metadata is not JSON: {error}") from error
    except RecursionError as error:
        raise MetadataError(name, "metadata is nested too deeply") from error


def _read_items(listing: object) -> tuple[tuple[Item, ...], list[str]]:
    if not isinstance(listing, Mapping):
        return (), ["no item list: BIN_FCSKU_DATA is missing or no JSON object"]
    items, flags = [], []
    for key, entry in listing.items():
        if not isinstance(entry, Mapping):
            flags.append(f"item is no JSON object: {printable(key, MAX_SHOWN_CHARS)}")
            continue
        quantity = _quantity(entry.get("quantity"))
        if quantity is None:
            flags.append(f"item without a usable quantity: {printable(key, MAX_SHOWN_CHARS)}")
        title = entry.get("name")
        items.append(
            Item(
                asin=utf8(key),
                name=utf8(title) if isinstance(title, str) else None,
                quantity=quantity,
                height_in=_measure(entry.get("height"), INCHES),
                length_in=_measure(entry.get("length"), INCHES),
                width_in=_measure(entry.get("width"), INCHES),
                weight_lb=_measure(entry.get("weight"), POUNDS),
            )
        )
    return tuple(items), flags


def _quantity(value: object) -> int | None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return value if whole and 0 <= value <= MAX_QUANTITY else None  # type: ignore[operator, return-value]


def _measure(entry: object, units: Mapping[str, float]) -> float | None:
    if not isinstance(entry, Mapping):
        return None
    value, unit = entry.get("value"), entry.get("unit")
    factor = units.get(unit.strip().lower()) if isinstance(unit, str) else None
    if factor is None or isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        measure = float(value) * factor
    except OverflowError:  # an int beyond what a float holds
        return None
    return measure if math.isfinite(measure) and measure >= 0 else None
