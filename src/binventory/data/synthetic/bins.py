"""Which bins there are: ids, before/after siblings, counts and the metadata that says what is in them.

A bin depends on the seed and its own place only, so more bins append to fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from binventory.data.synthetic.layout import Unit, place_units
from binventory.data.synthetic.pod import Pod, make_pod

BLOCK = 8  # bins, of which two neighbours are siblings: a quarter of all bins has one
FIRST_ID = 1000
IDS_PER_BLOCK = 3 * BLOCK  # ids are 1 to 3 apart
UNPADDED_EVERY = 16  # blocks; the public bucket, too, has `1000.jpg` beside `01000.jpg`, and they are different photos

# Shares of the counts 1..5 among the 10,441 bins of the common list of the public data set.
COUNT_SHARES = np.array((1228, 2299, 2666, 2373, 1875)) / 10_441
# Shares of the pairs (1, 2), (2, 3), (3, 4), (4, 5) among siblings; single bins make up for what they do to the whole.
PAIR_SHARES = np.array((0.2, 0.25, 0.3, 0.25))
_PAIRED = 2 / BLOCK
_IN_PAIRS = (np.append(PAIR_SHARES, 0) + np.insert(PAIR_SHARES, 0, 0)) / 2
SINGLE_SHARES = (COUNT_SHARES - _PAIRED * _IN_PAIRS) / (1 - _PAIRED)

BIN_WIDTH_IN = 13.0  # inches that the photo's width shows at the front of the bin


@dataclass(frozen=True)
class Bin:
    """One bin at one moment.

    Attributes:
        id: its name.
        pod: the fabric around the items.
        units: the items, back to front.
        exposure: seed of what differs between two photos of one scene: light, focus, noise, compression.
    """

    id: str
    pod: Pod
    units: tuple[Unit, ...]
    exposure: int

    @property
    def quantity(self) -> int:
        """How many items are in it, 1..5."""
        return len(self.units)


@dataclass(frozen=True)
class Plan:
    """What is settled about a bin before anything is drawn.

    Attributes:
        id: its name.
        quantity: how many items are in it, 1..5.
        scene: index of the bin whose pod and items it shows: its own, or that of its elder sibling.
        scene_quantity: how many items that scene has; one more than `quantity` where one is taken out.
    """

    id: str
    quantity: int
    scene: int
    scene_quantity: int


def plan_bin(seed: int, index: int) -> Plan:
    """Settle id, siblings and count of the `index`-th bin of a seed."""
    block, place = divmod(index, BLOCK)
    rng = _generator(seed, 0, block)
    pair_at = int(rng.integers(BLOCK - 2))  # the last place of a block stays single
    steps = rng.integers(1, 4, BLOCK)
    steps[pair_at + 1] = 1
    numbers = FIRST_ID + block * IDS_PER_BLOCK + np.cumsum(steps) - 1
    before_is_full = bool(rng.random() < 0.5)
    draws = rng.random(BLOCK)

    bin_id = f"{numbers[place]:05d}"
    if place == BLOCK - 1 and block % UNPADDED_EVERY == 0 and numbers[0] < 10_000:
        bin_id = str(numbers[0])  # the unpadded twin of the block's first id
    if place not in (pair_at, pair_at + 1):
        quantity = 1 + _pick(SINGLE_SHARES, draws[place])
        return Plan(bin_id, quantity, index, quantity)
    full = 2 + _pick(PAIR_SHARES, draws[pair_at])
    is_full = (place == pair_at) == before_is_full
    return Plan(bin_id, full if is_full else full - 1, block * BLOCK + pair_at, full)


def make_bin(seed: int, index: int) -> Bin:
    """Make up the `index`-th bin of a seed."""
    plan = plan_bin(seed, index)
    rng = _generator(seed, 1, plan.scene)
    pod = make_pod(rng)
    units = place_units(rng, pod.room, plan.scene_quantity)
    if plan.quantity < plan.scene_quantity:
        # What was taken out, or is put in later, lies on top: nothing else has to move.
        del units[int(rng.choice([place for place, unit in enumerate(units) if unit.on_top]))]
    return Bin(plan.id, pod, tuple(units), int(_generator(seed, 2, index).integers(2**31)))


def _pick(shares: np.ndarray, draw: float) -> int:
    return int(np.searchsorted(np.cumsum(shares)[:-1], draw, side="right"))


def _generator(seed: int, *purpose: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence((seed, *purpose)))


def metadata_of(drawn: Bin) -> dict[str, Any]:
    """Say what is in a bin, in the form of the public data set's metadata files."""
    items: dict[str, Any] = {}
    for unit in drawn.units:
        product = unit.product
        if product.asin in items:
            items[product.asin]["quantity"] += 1
            continue
        front = sorted((unit.width * BIN_WIDTH_IN, unit.height * BIN_WIDTH_IN))
        depth = front[0] * (0.6 + 0.4 * (product.look % 1000) / 1000)
        height, width, length = sorted((depth, *front))
        items[product.asin] = {
            "asin": product.asin,
            "height": {"unit": "IN", "value": round(height, 1)},
            "length": {"unit": "IN", "value": round(length, 1)},
            "name": product.name,
            "normalizedName": product.name,
            "quantity": 1,
            "weight": {"unit": "pounds", "value": round(height * width * length * product.kind.density, 2)},
            "width": {"unit": "IN", "value": round(width, 1)},
        }
    return {"BIN_FCSKU_DATA": dict(sorted(items.items())), "EXPECTED_QUANTITY": drawn.quantity}
