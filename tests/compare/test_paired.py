"""The statistics, against scipy's, by hand, and by how often they are right."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from binventory.compare.paired import Pair, bootstrap_rmse, compare_pairs, holm, mcnemar
from binventory.compare.run import Run, read_run
from binventory.compare.tested import TestSet, read_predictions, read_tested
from binventory.errors import InputError
from tests.compare.folders import make_run, predictions_of


def drawn(seed: int, size: int, share_right: float) -> list[int]:
    """Predictions of which about so many are right, for quantities of `wanted`."""
    generator = np.random.default_rng(seed)
    wanted_counts = np.array(wanted(size))
    return np.where(generator.random(size) < share_right, wanted_counts, generator.integers(1, 6, size)).tolist()


def wanted(size: int) -> list[int]:
    return np.random.default_rng(99).integers(1, 6, size).tolist()


def runs_in(folder: Path, shares: list[float], size: int = 300) -> list[Run]:
    made = [
        make_run(folder / str(place), predictions_of(wanted(size), drawn(place, size, share)))
        for place, share in enumerate(shares)
    ]
    return [read_run(path) for path in made]


def pairs_of(runs: list[Run]) -> tuple[list[TestSet], list[Pair]]:
    tested = read_tested(runs)
    assert not tested.problems
    return list(tested.sets), compare_pairs(tested)


def test_mcnemar_is_the_exact_binomial_test() -> None:
    numbers = [(0, 0), (1, 0), (0, 1), (5, 5), (3, 12), (12, 3), (40, 90), (1000, 1100)]
    got = mcnemar(np.array([a for a, _ in numbers]), np.array([b for _, b in numbers]))
    expected = [1.0 if a + b == 0 else stats.binomtest(a, a + b).pvalue for a, b in numbers]
    assert got == pytest.approx(expected, rel=1e-9)


def test_holm_by_hand() -> None:
    # 0.01·4, 0.02·3, 0.03·2, 0.04·1: no later p may be smaller than an earlier one.
    assert holm(np.array([0.03, 0.01, 0.04, 0.02])) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm(np.array([0.5, 0.9])) == pytest.approx([1.0, 1.0])
    assert holm(np.array([])).shape == (0,)


def test_figures_of_a_pair_are_those_of_its_photos(tmp_path: Path) -> None:
    runs = runs_in(tmp_path, [0.6, 0.3, 0.5])
    sets, pairs = pairs_of(runs)
    assert [same.runs for same in sets] == [(0, 1, 2)]
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 1), (0, 2), (1, 2)]
    truth = np.array(wanted(300))
    told = [np.array(drawn(place, 300, share)) for place, share in enumerate([0.6, 0.3, 0.5])]
    for pair in pairs:
        first, second = told[pair.first], told[pair.second]
        only_first = int(((first == truth) & (second != truth)).sum())
        only_second = int(((first != truth) & (second == truth)).sum())
        assert (pair.only_first, pair.only_second) == (only_first, only_second)
        assert pair.accuracy_difference == pytest.approx((first == truth).mean() - (second == truth).mean())
        assert pair.accuracy_p == pytest.approx(stats.binomtest(only_first, only_first + only_second).pvalue)
        rmse = [float(np.sqrt(((each - truth) ** 2).mean())) for each in (first, second)]
        assert pair.rmse_difference == pytest.approx(rmse[0] - rmse[1])
        assert pair.rmse_interval[0] < pair.rmse_difference < pair.rmse_interval[1]
        assert pair.accuracy_interval[0] < pair.accuracy_difference < pair.accuracy_interval[1]
    for name in ("accuracy", "rmse"):
        raw = np.array([getattr(pair, f"{name}_p") for pair in pairs])
        assert [getattr(pair, f"{name}_p_corrected") for pair in pairs] == pytest.approx(holm(raw).tolist())
        assert max(getattr(pair, f"{name}_p_corrected") / getattr(pair, f"{name}_p") for pair in pairs) > 1.5


def test_rmse_interval_is_that_of_scipys_paired_bootstrap(tmp_path: Path) -> None:
    """The second run differs from the first on few photos: unpaired resamples would give a wider interval."""
    truth, first, others = np.array(wanted(300)), np.array(drawn(0, 300, 0.6)), np.array(drawn(1, 300, 0.2))
    told = [first, np.where(np.random.default_rng(2).random(300) < 0.2, others, first)]
    runs = [
        read_run(make_run(tmp_path / str(place), predictions_of(truth.tolist(), each.tolist())))
        for place, each in enumerate(told)
    ]
    _, (pair,) = pairs_of(runs)
    squared = [(each - truth) ** 2 for each in told]
    theirs = stats.bootstrap(
        squared, lambda a, b, axis: np.sqrt(a.mean(axis=axis)) - np.sqrt(b.mean(axis=axis)),
        paired=True, vectorized=True, method="percentile", n_resamples=8000, rng=np.random.default_rng(7),
    )  # fmt: skip
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert pair.rmse_interval == pytest.approx(tuple(theirs.confidence_interval), abs=width * 0.06)
    z = abs(pair.rmse_difference) / theirs.standard_error
    assert stats.norm.isf(pair.rmse_p / 2) == pytest.approx(z, rel=0.06)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """Photos drawn from a known population: 95% intervals of 200 photos hold its RMSE difference in 91 to 98.5%."""
    generator = np.random.default_rng(5)
    population = np.stack([generator.integers(0, 3, 20_000) ** 2, generator.integers(0, 4, 20_000) ** 2]).astype(float)
    truth = float(np.subtract(*np.sqrt(population.mean(axis=1))))
    covered = 0
    for seed in range(400):
        sample = population[:, generator.integers(0, 20_000, 200)]
        first, second = bootstrap_rmse(sample, num_resamples=400, seed=seed)
        low, high = np.quantile(first - second, [0.025, 0.975])
        covered += low <= truth <= high
    assert 0.91 <= covered / 400 <= 0.985


def test_resamples_are_the_same_in_blocks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    squared = np.random.default_rng(3).integers(0, 16, (3, 50)).astype(float)
    whole = bootstrap_rmse(squared, 100)
    monkeypatch.setattr("binventory.compare.paired.MAX_BLOCK", 700)
    assert np.array_equal(bootstrap_rmse(squared, 100), whole)
    assert whole.std(axis=1).min() > 0


def test_runs_that_erred_alike_do_not_differ(tmp_path: Path) -> None:
    _, (pair,) = pairs_of(runs_in(tmp_path, [1.0, 1.0]))
    assert (pair.accuracy_p, pair.rmse_p, pair.rmse_difference) == (1.0, 1.0, 0.0)
    assert pair.rmse_interval == (0.0, 0.0)
    assert pair.accuracy_interval[0] < 0 < pair.accuracy_interval[1]


def test_other_photos_quantities_or_data_are_never_compared(tmp_path: Path) -> None:
    rows = predictions_of([1, 2, 3, 4], [1, 2, 3, 5])
    relabelled = predictions_of([1, 2, 3, 5], [1, 2, 3, 5])
    renamed = [{**row, "id": "5" + row["id"]} for row in rows]  # 00001 and 500001 are different photos
    unread = [*rows[:3], {**rows[3], "predicted": None, "error": "not evaluated"}]
    kinds = {"rows": rows, "same": rows[::-1], "relabelled": relabelled, "renamed": renamed, "unread": unread}
    paths = [make_run(tmp_path / name, each) for name, each in kinds.items()]
    paths.append(make_run(tmp_path / "other data", rows, fingerprint="b" * 64))
    paths.append(make_run(tmp_path / "unknown data", rows, fingerprint=None))
    sets, pairs = pairs_of([read_run(path) for path in paths])
    assert [(pair.first, pair.second) for pair in pairs] == [(0, 1)]
    assert sorted(same.runs for same in sets) == [(0, 1), (2,), (3,), (4,), (5,), (6,)]
    assert [same.num_images for same in sets if same.runs == (4,)] == [3]


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    rows = predictions_of(wanted(40), drawn(0, 40, 0.5))
    runs = [read_run(make_run(tmp_path / "a", rows)), read_run(make_run(tmp_path / "b", rows[::-1]))]
    _, (pair,) = pairs_of(runs)
    assert (pair.only_first, pair.only_second, pair.rmse_difference) == (0, 0, 0.0)


def test_a_run_that_is_not_done_is_in_no_test_set(tmp_path: Path) -> None:
    done, other = runs_in(tmp_path, [0.5, 0.6])
    tested = read_tested([done, replace(other, state="running")])
    assert [same.runs for same in tested.sets] == [(0,)]
    assert not compare_pairs(tested)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be read"),
        ("id,quantity,predicted\n1,2,3\n", "cannot be read"),
        ("id,quantity,predicted,error\n1,2,x,\n", "cannot be read"),
        ("id,quantity,predicted,error\n1,2\n", "cannot be read"),
        ("id,quantity,predicted,error\n1,2,3,\n1,2,3,\n", "twice"),
        ("id,quantity,predicted,error\n1,2," + "9" * 40 + ",\n", "cannot be read"),
        ("id,quantity,predicted,error\n1,2,3,\x00\udcff", "cannot be read"),
    ],
)
def test_a_damaged_table_is_the_runs_problem(tmp_path: Path, text: str, said: str) -> None:
    path = make_run(tmp_path / "run", predictions_of([1], [1]))
    (path / "predictions.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=said):
        read_predictions(path / "predictions.csv")
    tested = read_tested([read_run(path)])
    assert (tested.sets, compare_pairs(tested)) == ((), [])
    assert said in tested.problems[0]
