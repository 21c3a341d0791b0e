"""Rows in columns are what they were as objects, whatever their texts hold."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from binventory.data.columns import BATCH, Column, Texts
from binventory.data.listing import PackedBins
from binventory.data.sources.base import BinFiles

ANY_TEXT = st.text(st.characters(exclude_characters="\0"))  # lone surrogates too: names of files may be no UTF-8
FEW_TEXTS = st.lists(st.none() | st.sampled_from(["", "a", "b", "ä", "\udcff"]), max_size=12)
BINS = [
    BinFiles("1", Path("/photos/1.jpg"), Path("/metadata/1.json"), needs_metadata=True),
    BinFiles("2", None, quantity=3, group="shelf \udcff", problem="no photo"),
    BinFiles("3", Path("relative/\udcff.jpg"), quantity=0),
]


@settings(deadline=None)  # other processes may have the cores
@given(st.lists(st.none() | ANY_TEXT, max_size=20))
def test_texts_come_back(texts: list[str | None]) -> None:
    packed = Texts(texts)
    assert list(packed) == texts
    assert [packed[place] for place in range(-len(texts), len(texts))] == texts * 2
    assert packed[1:-1:2] == texts[1:-1:2]
    assert packed[::-1] == texts[::-1]
    assert packed == Texts(iter(texts))
    assert packed != Texts([*texts, None])


@settings(deadline=None)
@given(FEW_TEXTS)
def test_texts_that_stand_twice(texts: list[str | None]) -> None:
    packed = Texts(texts)
    times = Counter(text for text in texts if text is not None)
    assert packed.shared() == {text for text, number in times.items() if number > 1}
    expected = None
    for place, text in enumerate(texts):
        if text is not None and text in texts[:place]:
            expected = (texts.index(text), place)
            break
    assert packed.repeated() == expected


def test_equal_hashes_are_no_equal_texts() -> None:
    class Same(str):
        """A text whose hash is that of all others."""

        __slots__ = ()

        def __hash__(self) -> int:
            return 1

    packed = Texts(["a", "b"])
    packed._row = Same  # type: ignore[method-assign]
    assert packed.repeated() is None
    assert packed.shared() == set()


def test_more_rows_than_are_packed_at_once() -> None:
    texts = [str(number) for number in range(2 * BATCH + 1)]
    packed = Texts(texts)
    assert list(packed) == texts
    assert packed[BATCH - 1 : BATCH + 2] == texts[BATCH - 1 : BATCH + 2]
    places = np.array([2 * BATCH, 0, BATCH], dtype=np.int64)
    assert list(packed.at(places)) == [texts[place] for place in places]
    assert Texts([*texts, "5"]).repeated() == (5, len(texts))


def test_bins_come_back() -> None:
    packed = PackedBins(BINS)
    assert list(packed) == BINS
    assert packed[1] == packed[-2] == BINS[1]
    assert packed[:2] == BINS[:2]
    assert list(packed.at(np.array([2, 0], dtype=np.int64))) == [BINS[2], BINS[0]]
    assert list(PackedBins(())) == []
    for place in (3, -4):
        with pytest.raises(IndexError):
            packed[place]


def test_columns_of_several_chunks() -> None:
    column = Column[int | None](pa.chunked_array([[1, None], [3]]))
    assert list(column) == [1, None, 3]
    assert (len(column), column[0], column[1], column[-1], column[1:]) == (3, 1, None, 3, [None, 3])
