"""Splits: the report's exactly, and grouped ones that never part siblings."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from binventory.data.metadata import read_metadata
from binventory.data.sources.file_list import read_file_list
from binventory.data.splits import check_no_empty_count, grouped_split, report_split, share_deviation, sibling_groups
from binventory.errors import ConfigError

COUNTS = [1, 2, 3, 4, 5]


def grouped(ids: list[str], quantities: list[int], groups: list[str], **arguments: Any) -> dict[str, str]:
    return dict(zip(ids, grouped_split(quantities, pa.array(groups), **arguments), strict=True))


def deviation(split_of: dict[str, str], quantities: list[int], split: str) -> float:
    return share_deviation(list(split_of.values()), quantities, split)[0]


def sizes(split_of: dict[str, str]) -> Counter[str]:
    return Counter(split_of.values())


def drawn(num_groups: int, seed: int) -> tuple[list[str], list[int], list[str]]:
    """Draw bins in groups of 1 to 4, with counts distributed as in the common list."""
    rng = random.Random(seed)
    ids, quantities, groups = [], [], []
    for group in range(num_groups):
        for _ in range(rng.choice([1, 1, 2, 2, 3, 4])):
            ids.append(f"{len(ids):05d}")
            quantities.append(rng.choices(COUNTS, [1228, 2299, 2666, 2373, 1875])[0])
            groups.append(f"g{group}")
    return ids, quantities, groups


def test_siblings_are_near_in_id_of_one_width_and_share_an_asin() -> None:
    bins = {
        "00100": {"A"},
        "00101": {"A", "B"},
        "00103": {"B"},  # joined to 00100 through 00101
        "00106": {"B"},  # 3 away
        "00104": {"C"},  # near, nothing shared
        "100": {"A"},  # another photo than 00100
        "101": {"A"},
        "x101": {"A"},
        "x102": {"A"},  # no numbers: distance means nothing
        "٣٤": {"A"},
        "٣٥": {"A"},
    }
    groups = dict(zip(bins, sibling_groups(list(bins), list(bins.values())), strict=True))
    assert groups["00100"] == groups["00101"] == groups["00103"] == "00100"
    assert groups["100"] == groups["101"] == "100"
    alone = ["00106", "00104", "x101", "x102", "٣٤", "٣٥"]
    assert [groups[bin_id] for bin_id in alone] == alone


def test_groups_do_not_depend_on_the_order_of_the_bins() -> None:
    asins = {f"{n:05d}": {f"A{n // 5}", f"A{n // 7}"} for n in range(400)}
    forward = dict(zip(asins, sibling_groups(list(asins), list(asins.values())), strict=True))
    backward_ids = list(reversed(asins))
    backward = dict(zip(backward_ids, sibling_groups(backward_ids, [asins[i] for i in backward_ids]), strict=True))
    assert forward == backward
    assert len(set(forward.values())) < 400


def test_the_source_s_own_groups_hold() -> None:
    groups = sibling_groups(["1", "2", "3"], [{"A"}, {"A"}, {"A"}], ["shelf", None, "shelf"])
    assert groups == ["shelf", "2", "shelf"]


@settings(max_examples=40, deadline=None)
@given(num_groups=st.integers(150, 600), draw=st.integers(0, 10**6), fraction=st.sampled_from([0.1, 0.2, 0.35]))
def test_grouped_split_parts_no_group_and_keeps_the_shares(num_groups: int, draw: int, fraction: float) -> None:
    ids, quantities, groups = drawn(num_groups, draw)
    split_of = grouped(ids, quantities, groups, test_fraction=fraction, val_fraction=0.1, seed=0)
    assert list(split_of) == ids
    homes: dict[str, set[str]] = {}
    for bin_id, group in zip(ids, groups, strict=True):
        homes.setdefault(group, set()).add(split_of[bin_id])
    assert all(len(splits) == 1 for splits in homes.values())
    assert deviation(split_of, quantities, "test") < 0.02
    assert sizes(split_of)["test"] / len(ids) == pytest.approx(fraction, abs=0.02)
    assert sizes(split_of)["val"] / len(ids) == pytest.approx(0.1 * (1 - fraction), abs=0.02)


def test_grouped_split_takes_large_groups_in_proportion() -> None:
    ids, quantities, groups = drawn(1000, 3)
    split_of = grouped(ids, quantities, groups, test_fraction=0.2, val_fraction=0, seed=0)
    size = Counter(groups)
    mean_size = {
        split: [size[g] for i, g in zip(ids, groups, strict=True) if split_of[i] == split]
        for split in set(split_of.values())
    }
    assert set(mean_size) == {"train", "test"}
    train, test = (sum(mean_size[split]) / len(mean_size[split]) for split in ("train", "test"))
    assert test == pytest.approx(train, rel=0.1)


def test_grouped_split_is_a_function_of_bins_and_seed_alone() -> None:
    ids, quantities, groups = drawn(300, 1)
    arguments = {"test_fraction": 0.2, "val_fraction": 0.1}
    expected = grouped(ids, quantities, groups, **arguments, seed=0)
    order = random.Random(5).sample(range(len(ids)), len(ids))
    columns = ([column[i] for i in order] for column in (ids, quantities, groups))
    assert grouped(*columns, **arguments, seed=0) == expected
    other = grouped(ids, quantities, groups, **arguments, seed=1)
    assert other != expected


def test_val_is_cut_from_train_and_test_stays() -> None:
    ids, quantities, groups = drawn(300, 2)
    labels = dict(zip(ids, quantities, strict=True))
    for with_val, without in (
        [grouped(ids, quantities, groups, test_fraction=0.2, val_fraction=v, seed=0) for v in (0.1, 0)],
        [report_split(labels, counts=COUNTS, test_fraction=0.2, val_fraction=v, seed=0) for v in (0.1, 0)],
    ):
        assert sizes(with_val)["val"] > 0
        assert {i for i, s in with_val.items() if s == "test"} == {i for i, s in without.items() if s == "test"}
        assert set(without.values()) == {"train", "test"}


def test_report_split_is_stratified_and_leaves_other_counts_out() -> None:
    labels = {f"{n}": n % 7 for n in range(700)}
    split_of = report_split(labels, counts=COUNTS, test_fraction=0.2, val_fraction=0.25, seed=0)
    assert {labels[bin_id] for bin_id in split_of} == set(COUNTS)
    tally = Counter((labels[bin_id], split) for bin_id, split in split_of.items())
    assert all(tally[count, "test"] == 20 and tally[count, "val"] == 20 for count in COUNTS)


def test_report_split_of_too_few_bins_names_the_key_and_the_numbers() -> None:
    with pytest.raises(ConfigError, match=r"data\.test_fraction=0\.2 .*1: 5, 2: 1.*data\.counts"):
        report_split(
            dict(zip("abcdef", [1] * 5 + [2], strict=True)), counts=[1, 2], test_fraction=0.2, val_fraction=0, seed=0
        )
    labels = {f"{n}": n % 2 for n in range(20)}
    with pytest.raises(ConfigError, match=r"data\.val_fraction=0\.01"):
        report_split(labels, counts=[0, 1], test_fraction=0.2, val_fraction=0.01, seed=0)
    with pytest.raises(ConfigError, match=r"data\.test_fraction=0\.2 .*none"):
        report_split({}, counts=[1], test_fraction=0.2, val_fraction=0, seed=0)


def test_an_empty_count_names_the_count_and_the_split() -> None:
    full = {1: 5, 2: 5}
    check_no_empty_count({"train": full, "val": full, "test": full}, [1, 2], has_val=True)
    check_no_empty_count({"train": full, "test": full}, [1, 2], has_val=False)
    with pytest.raises(
        ConfigError, match=r"data\.counts=\[1, 2\]: no bin with quantity 2 in val \(5 in train, 0 in val"
    ):
        check_no_empty_count({"train": full, "val": {1: 5}, "test": full}, [1, 2], has_val=True)
    with pytest.raises(ConfigError, match="no bin with quantity 3 in train and test"):
        check_no_empty_count({"train": full, "test": full}, [1, 2, 3], has_val=False)


def test_report_split_of_the_list_in_the_package_is_the_source_report_s() -> None:
    quantities = read_file_list("report")
    assert list(quantities)[:3] == ["100313", "09915", "103299"]
    split_of = report_split(quantities, counts=COUNTS, test_fraction=0.2, val_fraction=0, seed=0)
    assert sizes(split_of) == {"train": 8352, "test": 2089}
    assert {split_of[bin_id] for bin_id in ("04382", "104332", "102503", "105038")} == {"test"}


@pytest.mark.abid
def test_report_split_of_the_photos_that_are_here(abid: Path) -> None:
    quantities = read_file_list(abid / "file_list.json")
    assert list(quantities.items()) == list(read_file_list("report").items()), "the order decides the split"
    split_of = report_split(quantities, counts=COUNTS, test_fraction=0.2, val_fraction=0, seed=0)
    here = {photo.stem for photo in (abid / "udacity224" / "bin-images").iterdir()}
    assert sizes({i: s for i, s in split_of.items() if i in here}) == {"train": 4807, "test": 1212}


@pytest.mark.abid
def test_grouped_split_of_real_bins_parts_no_siblings(abid: Path) -> None:
    files = sorted((abid / "udacity224" / "metadata").iterdir())
    metadata = {file.stem: read_metadata(file) for file in files}
    asins = {bin_id: {item.asin for item in bin.items} for bin_id, bin in metadata.items()}
    quantities = {bin_id: bin.quantity for bin_id, bin in metadata.items()}
    ids = list(metadata)
    for seed in (0, 1, 2):
        groups = sibling_groups(ids, list(asins.values()))
        split_of = grouped(ids, list(quantities.values()), groups, test_fraction=0.2, val_fraction=0.1, seed=seed)
        parted = [
            (first, second)
            for first in ids
            for step in (1, 2)
            if (second := str(int(first) + step).zfill(len(first))) in asins
            and asins[first] & asins[second]
            and split_of[first] != split_of[second]
        ]
        assert parted == []
        assert deviation(split_of, list(quantities.values()), "test") < 0.02
        assert deviation(split_of, list(quantities.values()), "val") < 0.02
        assert sizes(split_of)["test"] == pytest.approx(0.2 * len(ids), rel=0.01)
