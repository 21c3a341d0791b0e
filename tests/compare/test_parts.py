"""Curves, confusion matrices and disagreement as plain values; and the page where there is much of everything."""

from __future__ import annotations

from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from binventory.compare.confusion import confusion_of
from binventory.compare.curves import MAX_POINTS, read_curves
from binventory.compare.disagree import find_disagreement
from binventory.compare.run import read_run
from binventory.compare.tested import Predictions, read_tested
from tests.browser import opened
from tests.compare.folders import make_run, predictions_of
from tests.compare.pages import page_of


def test_long_curves_are_thinned_evenly_from_first_to_last(tmp_path: Path) -> None:
    values = [float(epoch) for epoch in range(1, 1001)]
    (curve,) = read_curves([read_run(make_run(tmp_path / "a", predictions_of([1], [1]), curves={"val/loss": values}))])
    assert curve.num_epochs == 1000
    assert len(curve.epochs) == MAX_POINTS
    assert (curve.epochs[0], curve.epochs[-1]) == (1, 1000)
    assert set(np.diff(curve.epochs).tolist()) == {3, 4}
    assert curve.values["val/loss"] == tuple(map(float, curve.epochs))


def test_what_is_no_number_is_a_gap_in_a_curve(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a", predictions_of([1], [1]))
    (run / "metrics.csv").write_text(
        "epoch,step,lr,seconds,val/loss\n1,5,0.1,2.5,nan\n2,9,0.1,2.5,\n3,12,0.1,2.5,0.5\n4,16,0.1,2.5,inf\n"
    )
    (curve,) = read_curves([read_run(run)])
    assert curve.values == {"lr": (0.1,) * 4, "val/loss": (None, None, 0.5, None)}


def test_a_confusion_matrix_counts_rows_by_recorded_quantity() -> None:
    recorded, predicted = [1, 1, 2, 5, 5], [1, 2, 2, 9, 1]
    read = Predictions(tuple("abcde"), np.array(recorded), np.array(predicted))
    found = confusion_of(7, read)
    assert (found.run, found.counts) == (7, (1, 2, 5, 9))
    assert found.matrix == ((1, 1, 0, 0), (0, 1, 0, 0), (1, 0, 0, 1), (0, 0, 0, 0))
    many = Predictions(tuple(map(str, range(40))), np.arange(40), np.arange(40))
    assert confusion_of(0, many).matrix == ()


def test_disagreement_is_by_pairs_of_runs_then_by_distance(tmp_path: Path) -> None:
    generator = np.random.default_rng(4)
    told = [generator.integers(1, 6, 100).tolist() for _ in range(30)]
    for place in range(20):
        for of_run in told:
            of_run[place] = 3  # all agree
    for number, of_run in enumerate(told):
        make_run(tmp_path / f"{number:02d}", predictions_of([3] * 100, of_run))
    runs = [read_run(tmp_path / f"{number:02d}") for number in range(30)]
    found = find_disagreement(runs, read_tested(runs))
    assert (found.num_photos, found.num_disputed, len(found.photos)) == (100, 80, 60)

    def by_hand(place: int) -> tuple[float, float]:
        counts = [of_run[place] for of_run in told]
        return sum(a != b for a, b in combinations(counts, 2)) / (30 * 29 / 2), float(np.std(counts))

    ranked = sorted((by_hand(place) for place in range(100)), reverse=True)[:60]
    shown = [by_hand(int(photo.id)) for photo in found.photos]
    assert [share for share, _ in shown] == pytest.approx([share for share, _ in ranked])
    assert [spread for _, spread in shown] == pytest.approx([spread for _, spread in ranked])
    for photo in found.photos:
        counts = [of_run[int(photo.id)] for of_run in told]
        assert photo.share == pytest.approx(by_hand(int(photo.id))[0])
        assert photo.tally == dict(sorted(Counter(counts).items()))
        assert [answer.predicted for answer in photo.answers] == counts[:24]
        assert {answer.certainty for answer in photo.answers} == {0.6}


def test_the_photos_of_several_test_sets_are_ranked_together(tmp_path: Path) -> None:
    for number, told in enumerate(([1, 1, 1], [2, 1, 4], [1, 5], [5, 5])):
        make_run(tmp_path / str(number), predictions_of([3] * len(told), told))
    runs = [read_run(tmp_path / str(number)) for number in range(4)]
    found = find_disagreement(runs, read_tested(runs))
    assert (found.num_photos, found.num_disputed) == (5, 3)
    ranked = [(photo.id, photo.test_set, [answer.run for answer in photo.answers]) for photo in found.photos]
    assert ranked == [("00000", 1, [2, 3]), ("00002", 0, [0, 1]), ("00000", 0, [0, 1])]


def test_of_many_runs_the_best_are_shown_and_the_rest_on_demand(tmp_path: Path, chromium: Any) -> None:
    quantities = [1, 2, 3, 4, 5] * 14
    for number in range(26):
        told = [*quantities[: 2 * number], *[quantity % 5 + 1 for quantity in quantities[2 * number :]]]
        rows = predictions_of(quantities, told)
        make_run(
            tmp_path / "runs" / f"{number:02d}",
            rows,
            config={"x": number // 2, "seed": number % 2},
            curves={"val/loss": [2.0, 1.0]},
        )
    with opened(chromium, page_of(tmp_path / "runs", tmp_path / "page.html")) as tab:
        visible = "document.getElementById('curve-chart').data.filter(one => one.visible === true).map(one => one.name)"
        best = [f"{number:02d}" for number in range(25, -1, -1)]
        assert tab.page.evaluate(visible) == best[:20]
        tab.page.click("#curve-all")
        assert tab.page.evaluate(visible) == best
        assert tab.texts("#matrices .run") == best[:6]
        tab.page.click("#more-matrices")
        assert tab.texts("#matrices .run") == best[:18]
        tab.page.click("#more-matrices")
        assert tab.texts("#matrices .run") == best
        assert not tab.page.locator("#more-matrices").is_visible()
        groups = tab.page.locator("#runs .filters select")
        assert groups.locator("option").all_inner_texts() == ["all", *map(str, range(1, 14))]
        groups.select_option("1")  # and not 10 to 13
        assert tab.texts("#runs-table .first a") == best[:2]
        assert len(tab.texts("#pairs-table tbody tr")) == 20
        assert tab.page.inner_text("#pairs .dt-info") == "1 to 20 of 325"
        assert len(tab.texts("#photos .card")) == 12
        tab.page.click("#more-photos")
        assert len(tab.texts("#photos .card")) == 50  # the other 20 of 70 no run counts otherwise
        assert len(tab.texts("#photos .card:first-child li")) == 24
        assert "of all 26 runs: " in tab.page.inner_text("#photos .card:first-child p")
