"""Where items stand in a bin: columns of one to three units on the floor, some in front of others.

All lengths are shares of the photo's width. How much of the bin is full, and so how bright the photo is, does not
depend on the count: fewer items are larger. What is left to a counter is to tell the items apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from binventory.data.synthetic.products import Product, make_product

TWIN = 0.35  # probability that a unit is a second one of its neighbour's product
MAX_OVERLAP = 0.18  # of a column's width, by the column in front of it


@dataclass(frozen=True)
class Unit:
    """One item as it stands in the photo.

    Attributes:
        product: what it is.
        x: its middle.
        bottom: its lower edge, measured down from the photo's upper edge.
        width, height: its upright front.
        tilt: turn in degrees, counter-clockwise.
        sticker: place of its scan label on the front, (x, y) in 0..1.
        sticker_width: width of that label.
        on_top: whether nothing stands on it.
    """

    product: Product
    x: float
    bottom: float
    width: float
    height: float
    tilt: float
    sticker: tuple[float, float]
    sticker_width: float
    on_top: bool


@dataclass(frozen=True)
class Room:
    """The inside of a bin: left and right wall, where tall things end, where the floor starts and ends."""

    left: float
    right: float
    top: float
    back: float
    front: float


@dataclass
class _Column:
    x: float
    width: float
    height: float
    bottom: float
    num_units: int


def place_units(rng: np.random.Generator, room: Room, num_units: int) -> list[Unit]:
    """Fill a room with units, in the order in which they are painted (back to front)."""
    columns = sorted(_columns(rng, room, num_units), key=lambda column: column.bottom)
    units: list[Unit] = []
    for column in columns:
        units.extend(_stack(rng, column, units[-1].product if units else None))
    return [_with_sticker(rng, unit, units[place + 1 :]) for place, unit in enumerate(units)]


def _columns(rng: np.random.Generator, room: Room, num_units: int) -> list[_Column]:
    heights = _split(rng, num_units)
    full = (room.right - room.left) * rng.uniform(0.62, 1.0)
    if len(heights) == 1:
        full *= rng.uniform(0.55, 0.9)
    widths = rng.uniform(0.6, 1.4, len(heights))
    widths *= full / widths.sum()
    gaps = rng.dirichlet(np.full(len(heights) + 1, 0.8)) * (room.right - room.left - full)
    columns, x = [], room.left
    for place, (width, units) in enumerate(zip(widths.tolist(), heights, strict=True)):
        x += gaps[place]
        height = (room.front - room.top) * rng.uniform(0.5, 0.93)
        # No thin wafers and no towers: the shape of a single unit stays one that goods have.
        height = float(np.clip(height, 0.22 * width * units, 4.5 * width * units))
        bottom = rng.uniform(room.back, room.front)
        grown = width * (1 + rng.uniform(0, MAX_OVERLAP))
        middle = float(np.clip(x + width / 2, room.left + grown / 2, room.right - grown / 2))
        columns.append(_Column(middle, grown, height, bottom, units))
        x += width
    return columns


def _split(rng: np.random.Generator, num_units: int) -> list[int]:
    """Part units into columns of at most three."""
    heights: list[int] = []
    while (left := num_units - sum(heights)) > 0:
        heights.append(min(left, int(rng.choice(3, p=(0.55, 0.33, 0.12))) + 1))
    rng.shuffle(heights)
    return heights


def _stack(rng: np.random.Generator, column: _Column, neighbour: Product | None) -> list[Unit]:
    """Units of one column, from its foot up."""
    shares = rng.uniform(0.7, 1.3, column.num_units)
    if column.num_units > 1 and rng.random() < TWIN:
        shares[:] = 1.0
    shares /= shares.sum()
    units: list[Unit] = []
    bottom = column.bottom
    for level, share in enumerate(shares.tolist()):
        width, height = column.width * rng.uniform(0.82, 1.0), column.height * share
        product = units[-1].product if units else neighbour
        if product is None or not _same_shape(product, width / height) or rng.random() > TWIN:
            product = make_product(rng, width / height)
        on_top = level == column.num_units - 1
        tilt = rng.uniform(-1, 1) * product.kind.max_tilt * (1.0 if on_top else 0.3)
        x = column.x + rng.uniform(-0.5, 0.5) * (column.width - width)
        units.append(Unit(product, x, bottom, width, height, tilt, (0.5, 0.5), 0.0, on_top))
        bottom -= height * 0.98
    return units


def _same_shape(product: Product, shape: float) -> bool:
    return product.kind.slimmest <= shape <= product.kind.widest


def _with_sticker(rng: np.random.Generator, unit: Unit, later: list[Unit]) -> Unit:
    """Stick the scan label where the fewest of the units painted later hide it, as a stower would."""
    width = min(rng.uniform(0.11, 0.15), 0.8 * unit.width, 1.2 * unit.height)
    places = rng.uniform((0.2, 0.3), (0.8, 0.75), (8, 2))
    hidden = [sum(_covers(other, unit, place, width) for other in later) for place in places]
    x, y = places[int(np.argmin(hidden))].tolist()
    return Unit(unit.product, unit.x, unit.bottom, unit.width, unit.height, unit.tilt, (x, y), width, unit.on_top)


def _covers(other: Unit, unit: Unit, place: np.ndarray, width: float) -> bool:
    x = unit.x + (place[0] - 0.5) * unit.width
    y = unit.bottom - (1 - place[1]) * unit.height
    aside = abs(x - other.x) < (other.width + width) / 2
    return bool(aside and other.bottom - other.height - width / 3 < y < other.bottom + width / 3)
