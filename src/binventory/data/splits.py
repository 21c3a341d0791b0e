"""Which bins train, validate and test: pure functions of the bins and `data.split_seed`."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from itertools import groupby
from operator import itemgetter

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from binventory.data.columns import Column
from binventory.errors import ConfigError

TRAIN, VAL, TEST = "train", "val", "test"
SPLITS = (TRAIN, VAL, TEST)

Content = tuple[tuple[int, int], ...]  # of a group: each count and how many bins have it, in the order of the counts

SIBLING_DISTANCE = 2  # photos of one bin taken before and after a change have ids this close


def report_split(
    quantities: Mapping[str, int], *, counts: Collection[int], test_fraction: float, val_fraction: float, seed: int
) -> dict[str, str]:
    """Split as the source report did: stratified by count, at random over single photos.

    Args:
        quantities: bin id -> count in file order, before any photo is dropped; the order decides the outcome.
        counts: bins of other counts take no part.
        test_fraction: share of all bins that becomes test.
        val_fraction: share of the remaining bins that becomes val; 0: no val.
        seed: scikit-learn's random_state.

    Returns:
        bin id -> train, val or test, for every bin whose count is in `counts`.

    Raises:
        ConfigError: too few bins of a count, or too few bins in all, to split.
    """
    ids = [bin_id for bin_id, quantity in quantities.items() if quantity in counts]
    train, test = _stratified(ids, quantities, test_fraction, seed, "data.test_fraction")
    val: list[str] = []
    if val_fraction > 0:
        train, val = _stratified(train, quantities, val_fraction, seed, "data.val_fraction")
    return dict.fromkeys(train, TRAIN) | dict.fromkeys(val, VAL) | dict.fromkeys(test, TEST)


def _stratified(
    ids: Sequence[str], quantities: Mapping[str, int], fraction: float, seed: int, key: str
) -> tuple[list[str], list[str]]:
    from sklearn.model_selection import train_test_split

    labels = [quantities[bin_id] for bin_id in ids]
    try:
        rest, part = train_test_split(list(ids), test_size=fraction, stratify=labels, random_state=seed)
    except ValueError as error:  # scikit-learn's words for "too few" name none of our keys
        sizes = ", ".join(f"{count}: {number}" for count, number in sorted(Counter(labels).items()))
        raise ConfigError(
            f"{key}={fraction} cannot be cut from these bins (bins of each count: {sizes or 'none'}): every count "
            "needs a bin in each split; give more bins, raise data.limit or leave rare counts out of data.counts"
        ) from error
    return rest, part


def sibling_groups(
    ids: Sequence[str], asins: Sequence[Collection[str]], stated: Sequence[str | None] | None = None
) -> list[str]:
    """Find the bins that must stay together: photos of one bin before and after a change.

    Bins are siblings when their ids are numbers of equal width that differ by at most 2 and they share an ASIN. A group
    is what siblings connect. Where the source states a group itself (`stated`), that one holds instead.

    Args:
        ids: bin ids, each once.
        asins: the ASINs of each bin; empty where unknown.
        stated: the source's own group of each bin, or None.

    Returns:
        The name of each bin's group: the stated one, or the first id of the group, with ` alone` where that is the name
        of a stated one.
    """
    stated = stated if stated is not None else [None] * len(ids)
    parent = array("q", range(len(ids)))  # a list takes five times the memory

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    by_width: dict[int, list[int]] = defaultdict(list)
    for node, bin_id in enumerate(ids):
        if stated[node] is None and asins[node] and bin_id.isascii() and bin_id.isdigit():
            by_width[len(bin_id)].append(node)
    for nodes in by_width.values():
        nodes.sort(key=lambda node: ids[node])  # of equal width: also the order of the numbers
        for position, node in enumerate(nodes):
            for other in nodes[position + 1 : position + 1 + SIBLING_DISTANCE]:
                near = int(ids[other]) - int(ids[node]) <= SIBLING_DISTANCE
                if near and not set(asins[node]).isdisjoint(asins[other]):
                    # the smaller id becomes the root, so that a group's name doesn't depend on the listing order
                    first, second = sorted((root(node), root(other)), key=lambda found: ids[found])
                    parent[second] = first
    taken = {name for name in stated if name}
    own = [ids[root(node)] for node in range(len(ids))]
    # a bin without a stated group is in none of those, even where its id is the name of one
    return [
        name or (f"{bin_id} alone" if bin_id in taken else bin_id) for name, bin_id in zip(stated, own, strict=True)
    ]


def grouped_split(
    quantities: Sequence[int], groups: pa.Array, *, test_fraction: float, val_fraction: float, seed: int
) -> list[str]:
    """Split so that no group is parted and every split has nearly the same shares of counts.

    The outcome does not depend on the order of the bins.

    Args:
        quantities: count of each bin.
        groups: group name of each bin, strings.
        test_fraction: share of the bins that becomes test.
        val_fraction: share of the remaining bins that becomes val; 0: no val.
        seed: decides which groups of equal make-up go where.

    Returns:
        train, val or test for each bin.
    """
    encoded = groups.dictionary_encode()
    group_of = encoded.indices.to_numpy()
    contents = _contents(np.asarray(quantities), group_of)
    order = _order(encoded.dictionary, np.bincount(group_of), seed)
    is_test = _cut_groups(contents, order, test_fraction)
    is_val = np.zeros_like(is_test)
    if val_fraction > 0:
        is_val = _cut_groups(contents, order[~is_test[order]], val_fraction)
    names = [
        TEST if test else VAL if val else TRAIN for test, val in zip(is_test.tolist(), is_val.tolist(), strict=True)
    ]
    return [names[group] for group in group_of]


def _contents(quantities: npt.NDArray[np.int64], group_of: npt.NDArray[np.int32]) -> list[Content]:
    """Return what each group holds; groups of equal make-up share one object, for most are of a single bin."""
    counts, number_of = np.unique(quantities, return_inverse=True)
    held, num_bins = np.unique(group_of.astype(np.int64) * len(counts) + number_of, return_counts=True)
    shared: dict[Content, Content] = {}
    contents = []
    pairs = zip((held // len(counts)).tolist(), counts[held % len(counts)].tolist(), num_bins.tolist(), strict=True)
    for _, found in groupby(pairs, key=itemgetter(0)):
        content = tuple((count, number) for _, count, number in found)
        contents.append(shared.setdefault(content, content))
    return contents


def _order(names: pa.Array, sizes: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """Return the numbers of all groups: large ones first, by a hash among equals.

    So the order in which bins are listed plays no part.
    """
    digests = b"".join(
        hashlib.sha256(f"{seed}:{name}".encode()).digest() for name in Column[str](pa.chunked_array([names]))
    )
    words = np.frombuffer(digests, dtype=">u8").reshape(-1, 4)
    return np.lexsort((*words.T[::-1], -sizes))


def _cut_groups(contents: Sequence[Content], order: npt.NDArray[np.int64], fraction: float) -> npt.NDArray[np.bool_]:
    """Choose groups that hold `fraction` of the bins of each count, as nearly as whole groups allow.

    Large groups are placed first, and each goes where the counts it holds are further behind: both sides fill at the
    same rate, so neither gets more large groups than its share.

    Args:
        contents: what each group holds.
        order: the numbers of the groups to choose from, in the order in which they are placed.
        fraction: of their bins.

    Returns:
        (num_groups,) whether each group of `contents` is chosen.
    """
    totals: Counter[int] = Counter()
    for group in order:
        for count, number in contents[group]:
            totals[count] += number
    # Of each count: how much fuller the part is than the rest, as shares of their aims.
    lead = dict.fromkeys(totals, 0.0)
    is_chosen = np.zeros(len(contents), dtype=bool)
    for group in order:
        held = contents[group]  # in the order of the counts: sums of floats depend on it
        in_part = {count: lead[count] + n / (fraction * totals[count]) for count, n in held}
        in_rest = {count: lead[count] - n / ((1 - fraction) * totals[count]) for count, n in held}
        is_chosen[group] = sum(x * x for x in in_part.values()) < sum(x * x for x in in_rest.values())
        lead.update(in_part if is_chosen[group] else in_rest)
    return is_chosen


def share_deviation(splits: Sequence[str], quantities: Sequence[int], split: str) -> tuple[float, int]:
    """Return how far a split's shares of counts are from those of all split bins: the largest difference and its count.

    Args:
        splits: of each bin; at least one is `split`.
        quantities: count of each bin.
        split: train, val or test.
    """
    whole = Counter(quantities)
    inside = Counter(quantity for quantity, name in zip(quantities, splits, strict=True) if name == split)
    return max((abs(inside[count] / inside.total() - whole[count] / whole.total()), count) for count in whole)


def check_no_empty_count(split_sizes: Mapping[str, Mapping[int, int]], counts: Sequence[int], has_val: bool) -> None:
    """Refuse a split that leaves a count of `data.counts` without a bin.

    Args:
        split_sizes: split -> count -> number of bins.
        counts: `data.counts`.
        has_val: whether `data.val_fraction` is above 0.

    Raises:
        ConfigError: names the count and the splits that lack it.
    """
    names = [name for name in SPLITS if name != VAL or has_val]
    for count in counts:
        lacking = [name for name in names if not split_sizes.get(name, {}).get(count)]
        if lacking:
            found = ", ".join(f"{split_sizes.get(name, {}).get(count, 0)} in {name}" for name in names)
            raise ConfigError(
                f"data.counts={list(counts)}: no bin with quantity {count} in {' and '.join(lacking)} ({found}): leave "
                f"{count} out of data.counts, give more bins (data.source, data.limit), or change data.test_fraction "
                "or data.val_fraction"
            )
