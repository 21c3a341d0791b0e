"""The table and the page of a real sweep: every figure is that of the runs' predictions.csv."""

from __future__ import annotations

import csv
import math
import statistics
from collections import Counter
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from binventory.compare.table import compare
from tests.browser import Tab, opened
from tests.compare.pages import TRACES, page_of, rows_of
from tests.sweeps.running import SMALL, Outcome, sweep_here


@pytest.fixture(scope="module")
def swept(workplace: Path, tmp_path_factory: pytest.TempPathFactory, job_server: None) -> Outcome:
    """Two learning rates of two seeds. The first job fails, once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BINVENTORY_ALLOW_TARGETS", "tests.sweeps.")
        return sweep_here(
            workplace, "-m", *SMALL, "trainer.max_epochs=2", "optimizer.lr=0.01,0.1", "seed=0,1", "+objective.does=raise",
            f"+objective.folder={tmp_path_factory.mktemp('unruly')}", "hydra.launcher.n_jobs=1",
        )  # fmt: skip


def predictions_in(swept: Outcome) -> dict[str, list[dict[str, str]]]:
    """The predictions of each run that finished, by label."""
    found = {}
    for job, state in enumerate(swept.states):
        if state == "done":
            with (swept.folder / str(job) / "predictions.csv").open(newline="") as file:
                found[f"{swept.folder.name[-4:]}/{job}"] = list(csv.DictReader(file))
    return found


def off_by(photos: list[dict[str, str]]) -> list[int]:
    return [int(photo["predicted"]) - int(photo["quantity"]) for photo in photos]


def test_a_sweep_over_seeds_with_a_failed_job(swept: Outcome, tmp_path: Path) -> None:
    """Real runs: the table's figures are those that predictions.csv gives, the failed one is a row."""
    assert swept.states == ["failed"] + ["done"] * 3
    comparison = compare([str(swept.folder)], "test/accuracy")
    assert [run.state for run in comparison.runs] == ["done"] * 3 + ["failed"]
    assert "something broke" in str(comparison.runs[-1].problem)
    assert set(comparison.differing) == {"seed", "optimizer.lr"}
    assert len(comparison.pairs) == 3
    written = tmp_path / "table.csv"
    page_of(swept.folder, tmp_path / "compare.html", "--csv", str(written))
    accuracies: dict[str, list[float]] = {}
    for row in csv.DictReader(written.open()):
        if row["state"] != "done":
            continue
        photos = list(csv.DictReader((Path(row["path"]) / "predictions.csv").open()))
        off = [int(photo["predicted"]) - int(photo["quantity"]) for photo in photos]
        assert float(row["test/accuracy"]) == pytest.approx(off.count(0) / len(off), abs=1e-6)
        assert float(row["test/rmse"]) == pytest.approx(math.sqrt(sum(x * x for x in off) / len(off)), abs=1e-6)
        accuracies.setdefault(row["config.optimizer.lr"], []).append(off.count(0) / len(off))
    groups = {str(comparison.runs[group.runs[0]].config["optimizer.lr"]): group for group in comparison.groups}  # type: ignore[index]
    assert {key: len(values) for key, values in accuracies.items()} == {"0.01": 1, "0.1": 2}
    for key, values in accuracies.items():
        assert groups[key].means["test/accuracy"] == pytest.approx(statistics.fmean(values), abs=1e-6)
        if len(values) > 1:
            assert groups[key].stds["test/accuracy"] == pytest.approx(statistics.stdev(values), abs=1e-6)


def test_every_figure_of_the_page_is_that_of_predictions_csv(swept: Outcome, tmp_path: Path, chromium: Any) -> None:
    told = predictions_in(swept)
    assert len(told) == 3
    with opened(chromium, page_of(swept.folder, tmp_path / "compare.html")) as tab:
        rows = {row["run"]: row for row in rows_of(tab, "#runs-table")}
        assert len(rows) == 4
        failed = rows.pop(f"{swept.folder.name[-4:]}/0")
        assert (failed["state"], failed["test/accuracy"]) == ("failed", "-")
        assert "something broke" in failed["problem"]
        assert set(rows) == set(told)
        by_lr: dict[str, list[float]] = {}
        for label, row in rows.items():
            off = off_by(told[label])
            assert row["test/accuracy"] == f"{off.count(0) / len(off):.4f}"
            assert row["test/rmse"] == f"{math.sqrt(sum(x * x for x in off) / len(off)):.4f}"
            assert row["test/within_one"] == f"{sum(abs(x) < 2 for x in off) / len(off):.4f}"
            by_lr.setdefault(row["optimizer.lr"], []).append(off.count(0) / len(off))
        for group in rows_of(tab, "#groups-table"):
            values = by_lr[group["optimizer.lr"]]
            spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
            assert group["test/accuracy"] == f"{statistics.fmean(values):.4f}{spread}"
        assert sorted(group["runs"] for group in rows_of(tab, "#groups-table")) == ["1", "2"]
        check_pairs(tab, told)
        check_matrices(tab, told)
        check_photos(tab, told)
        check_curves(tab, swept)


def check_pairs(tab: Tab, told: dict[str, list[dict[str, str]]]) -> None:
    pairs = rows_of(tab, "#pairs-table")
    assert len(pairs) == 3
    for pair in pairs:
        first, second = (off_by(told[pair[name]]) for name in ("first", "second"))
        only = [sum(a == 0 != b for a, b in zip(*each, strict=True)) for each in ((first, second), (second, first))]
        assert [pair["only first right"], pair["only second right"]] == [str(number) for number in only]
        difference = (only[0] - only[1]) / len(first)
        assert pair["accuracy [95%]"].replace("−", "-").startswith(f"{difference:+.3f} [")  # noqa: RUF001


def check_matrices(tab: Tab, told: dict[str, list[dict[str, str]]]) -> None:
    figures = tab.page.eval_on_selector_all(
        "#matrices figure",
        "all => all.map(one => [one.querySelector('.run').innerText,"
        " ...[...one.querySelectorAll('tr')].map(row => [...row.cells].map(cell => cell.innerText))])",
    )
    assert {figure[0] for figure in figures} == set(told)
    for label, head, *rows in figures:
        counted = Counter((photo["quantity"], photo["predicted"]) for photo in told[label])
        assert [row[1:] for row in rows] == [[str(counted[row[0], to]) for to in head[1:]] for row in rows]
        assert sum(counted.values()) == sum(int(cell) for row in rows for cell in row[1:])


def check_photos(tab: Tab, told: dict[str, list[dict[str, str]]]) -> None:
    by_id = {label: {photo["id"]: photo for photo in photos} for label, photos in told.items()}
    ids = next(iter(by_id.values()))

    def disagreement(name: str) -> tuple[float, float]:
        counts = [int(of_run[name]["predicted"]) for of_run in by_id.values()]
        return sum(a != b for a, b in combinations(counts, 2)) / 3, statistics.pstdev(counts)

    disputed = {name: disagreement(name) for name in ids if disagreement(name)[0]}
    if tab.page.locator("#more-photos").is_visible():
        tab.page.click("#more-photos")
    cards = tab.page.eval_on_selector_all(
        "#photos .card:not([hidden])",
        "all => all.map(one => ({id: one.querySelector('h3').innerText, said: one.querySelector('p').innerText,"
        " width: one.querySelector('img')?.naturalWidth, answers: [...one.querySelectorAll('li')].map(answer =>"
        " [answer.querySelector('.run').innerText, answer.querySelector('.answer').innerText, answer.querySelector('.answer').className])}))",
    )
    assert f"count {len(disputed)} of {len(ids)} photos differently" in tab.page.inner_text("#disagreement")
    assert len(cards) == min(60, len(disputed))
    rounded = {name: tuple(round(value, 6) for value in values) for name, values in disputed.items()}
    assert [rounded[card["id"]] for card in cards] == sorted(rounded.values(), reverse=True)[:60]
    for card in cards:
        assert card["width"] == 48
        assert card["said"].startswith(f"recorded {ids[card['id']]['quantity']}")
        assert len(card["answers"]) == 3
        for label, text, kind in card["answers"]:
            photo = by_id[label][card["id"]]
            off = abs(int(photo["predicted"]) - int(photo["quantity"]))
            certainty = float(photo[f"p_{photo['predicted']}"])
            assert text.split()[0] == photo["predicted"]
            assert abs(int(text.split()[-1].rstrip("%")) - 100 * certainty) <= 0.51
            assert kind == f"answer {('right', 'near', 'far')[min(off, 2)]}"


def check_curves(tab: Tab, swept: Outcome) -> None:
    for metric in ("train/loss", "val/accuracy"):
        tab.page.select_option("#curve-metric", metric)
        traces = {name: (x, y) for name, x, y, _ in tab.page.evaluate(TRACES)}
        assert len(traces) == 3  # the failed one got to no epoch
        for label, (x, y) in traces.items():
            with (swept.folder / label.split("/")[1] / "metrics.csv").open(newline="") as file:
                logged = list(csv.DictReader(file))
            assert x == [int(row["epoch"]) for row in logged] == [1, 2]
            assert y == pytest.approx([float(row[metric]) for row in logged], rel=1e-5)
