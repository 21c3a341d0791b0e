"""The page of `binventory compare` in a real browser: tables that sort and filter, charts, both schemes, paper."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.browser import Tab, opened
from tests.compare.folders import make_run, predictions_of, write_state
from tests.compare.pages import TRACES, page_of, rows_of

QUANTITIES = [1, 2, 3, 4, 5] * 4


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of 12 runs of 6 learning rates, one of them failed, with photos and curves."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "photos").mkdir()
    for place in range(len(QUANTITIES)):
        Image.new("RGB", (40, 30), (10 * place, 90, 60)).save(folder / "photos" / f"{place:05d}.jpg")
    for number in range(12):
        off = [count - 1 if count == 5 else count + 1 for count in QUANTITIES]
        told = [*QUANTITIES[: 19 - number], *off[19 - number :]]
        make_run(
            folder / "runs" / f"run{number:02d}",
            predictions_of(QUANTITIES, told, photos=str(folder / "photos")),
            config={"seed": number % 2, "optimizer": {"lr": [9.0, 10.0, 0.5, 100.0, 2.0, 1.0][number // 2]}},
            curves={"train/loss": [3.0, 2.0 + number, 1.0], "val/accuracy": [0.1, 0.2, 0.3 + number / 100]},
        )
    write_state(folder / "runs" / "run11", "failed", {"type": "ValueError", "message": "no luck", "traceback": ""})
    (folder / "runs" / "run11" / "metrics.json").unlink()
    return page_of(folder / "runs", folder / "compare.html")


@pytest.fixture
def tab(made: Path, chromium: Any) -> Iterator[Tab]:
    with opened(chromium, made) as shown:
        yield shown


def column(tab: Tab, table: str, name: str) -> list[str]:
    return [row[name] for row in rows_of(tab, table)]


def test_a_heading_sorts_both_ways_and_numbers_as_numbers(tab: Tab) -> None:
    def click(table: str, name: str) -> None:
        tab.page.locator(f"{table} thead th", has_text=name).first.click()
        tab.page.evaluate("() => new Promise((done) => setTimeout(done, 20))")  # it sorts after the click's own events

    accuracies = [f"{(19 - number) / 20:.4f}" for number in range(11)]
    assert column(tab, "#runs-table", "test/accuracy") == [*accuracies, "-"]
    click("#runs-table", "test/accuracy")
    assert column(tab, "#runs-table", "test/accuracy") == [*accuracies, "-"]
    click("#runs-table", "test/accuracy")
    assert column(tab, "#runs-table", "test/accuracy") == [*accuracies[::-1], "-"]
    click("#runs-table", "optimizer.lr")
    rates = [float(text) for text in column(tab, "#runs-table", "optimizer.lr")]
    assert rates == sorted(rates)
    assert rates[0] == 0.5
    click("#runs-table", "run")
    assert column(tab, "#runs-table", "run") == [f"run{number:02d}" for number in range(12)]
    click("#groups-table", "test/accuracy")
    click("#groups-table", "test/accuracy")
    means = [float(text.split(" ")[0]) for text in column(tab, "#groups-table", "test/accuracy")]
    assert means == sorted(means)
    assert len(means) == 6
    click("#pairs-table", "accuracy [95%]")
    assert column(tab, "#pairs-table", "accuracy [95%]")[0].startswith("+0.050")
    click("#pairs-table", "accuracy [95%]")
    assert column(tab, "#pairs-table", "accuracy [95%]")[0].startswith("+0.500")


def test_filters_leave_only_what_matches(tab: Tab) -> None:
    search = tab.page.locator("#runs .dt-search input")
    search.fill("run03")
    assert column(tab, "#runs-table", "run") == ["run03"]
    search.fill("")
    tab.page.locator("#runs .filters select").first.select_option("failed")
    assert column(tab, "#runs-table", "run") == ["run11"]
    tab.page.locator("#runs .filters select").first.select_option("")
    tab.page.locator("#runs .filters select").nth(1).select_option("1")
    assert sorted(column(tab, "#runs-table", "run")) == ["run00", "run01"]
    tab.page.select_option("#pair-run", label="run03")
    pairs = rows_of(tab, "#pairs-table")
    assert len(pairs) == 10
    assert all("run03" in (pair["first"], pair["second"]) for pair in pairs)
    shown = len(tab.texts("#photos .card"))
    assert tab.page.inner_text("#photos-shown") == f"{shown} of {shown} photos"
    tab.page.select_option("#recorded", "5")
    quantities = tab.texts("#photos .card p b")
    assert quantities
    assert set(quantities) == {"recorded 5"}
    tab.page.select_option("#recorded", "")
    tab.page.select_option("#right-run", label="run00")
    tab.page.select_option("#wrong-run", label="run02")
    # Run 0 counts the first 19 photos right, run 2 the first 17.
    assert sorted(tab.texts("#photos .card h3")) == ["00017", "00018"]


def test_another_metric_shows_other_curves_and_the_legend_hides_one(tab: Tab) -> None:
    assert tab.page.input_value("#curve-metric") == "val/accuracy"
    tab.page.select_option("#curve-metric", "train/loss")
    traces = tab.page.evaluate(TRACES)
    assert {name: y for name, _, y, _ in traces} == {f"run{n:02d}": [3, 2 + n, 1] for n in range(12)}
    tab.page.locator("#curve-chart .legendtoggle").nth(2).click()
    tab.until("document.getElementById('curve-chart').data[2].visible === 'legendonly'")
    assert [visible for *_, visible in tab.page.evaluate(TRACES)].count(True) == 11
    tab.page.select_option("#group-metric", "test/rmse")
    *dots, means = tab.page.evaluate("document.getElementById('group-chart').data.map(one => [...one.x])")
    shown = [row["test/rmse"].split(" ")[0] for row in rows_of(tab, "#groups-table")]
    assert [f"{mean:.4f}" for mean in means] == shown
    assert [f"{statistics.fmean(values):.4f}" for values in dots] == shown
    swatches = tab.page.eval_on_selector_all(
        ".run", "all => all.map(one => [one.innerText, getComputedStyle(one.querySelector('.swatch')).backgroundColor])"
    )
    lines = tab.page.evaluate(
        "document.getElementById('curve-chart').data.map(one => { const span = document.createElement('span');"
        " span.style.color = one.line.color; return [one.name, span.style.color]; })"
    )
    of_runs = {(name, color) for name, color in swatches if name.startswith("run")}
    assert of_runs == {(name, color) for name, color in lines}  # one colour a run, wherever it is shown
    assert dict(of_runs)["run00"] == dict(of_runs)["run01"] != dict(of_runs)["run02"]  # that of its seed group


TEXTS = [
    "body", ".lead", ".about", "nav a", "table.data th", "table.data td", "table.data td.best", "#runs-table a", ".state", ".problem",
    "#curve-chart text", "#group-chart text", "table.matrix td", "table.matrix th", ".answer", ".card p", ".note", ".dt-search label",
    "select", "button", "figcaption small",
]  # fmt: skip


def test_it_is_readable_in_both_schemes_and_follows_a_change(tab: Tab) -> None:
    def colors() -> list[str]:
        found: list[str] = tab.page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, document.getElementById('curve-chart').layout.paper_bgcolor,"
            " document.getElementById('curve-chart').data[0].line.color, document.getElementById('curve-chart').layout.font.color,"
            " getComputedStyle(document.querySelector('table.matrix td.right')).backgroundColor]"
        )
        return found

    light = colors()
    assert {name: tab.contrast(name) for name in TEXTS if tab.contrast(name) < 4.5} == {}
    tab.page.emulate_media(color_scheme="dark")
    tab.until(f"document.getElementById('curve-chart').layout.paper_bgcolor !== '{light[1]}'")
    dark = colors()
    assert [a == b for a, b in zip(light, dark, strict=True)] == [False] * 5
    assert {name: tab.contrast(name) for name in TEXTS if tab.contrast(name) < 4.5} == {}
    tab.page.emulate_media(color_scheme="light")
    tab.until(f"document.getElementById('curve-chart').layout.paper_bgcolor === '{light[1]}'")
    assert colors() == light


def test_paper_is_white_whatever_the_scheme(made: Path, chromium: Any) -> None:
    with opened(chromium, made, scheme="dark") as tab:
        tab.page.emulate_media(media="print")
        tab.until("document.getElementById('curve-chart').layout.paper_bgcolor === '#ffffff'")
        assert tab.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert (
            min(tab.contrast(name) for name in ("body", "table.data td", "table.matrix td", "#curve-chart text")) >= 4.5
        )
        assert tab.texts("select, button, input") == []


def test_a_phone_shows_less_of_everything_at_first(made: Path, chromium: Any) -> None:
    with opened(chromium, made, width=390) as tab:
        assert len(tab.texts("#photos .card")) == 4
        assert len(tab.texts("#matrices figure")) == 2
        assert len(tab.texts("#pairs-table tbody tr")) == 8
        assert tab.page.evaluate("document.documentElement.scrollHeight") < 7000
        names = tab.page.evaluate("document.getElementById('group-chart').data.map((one) => one.name)")
        assert names == [*(f"group {number}" for number in range(1, 7)), "mean"]


def test_nothing_is_wider_than_the_window(made: Path, chromium: Any) -> None:
    with opened(chromium, made, width=400) as tab:
        for width in (400, 1600):
            tab.page.set_viewport_size({"width": width, "height": 900})
            right = "Math.max(...[...document.querySelectorAll('.chart .main-svg')].map(one => one.getBoundingClientRect().right))"
            tab.until(f"{right} <= {width} && {right} > {width} * 0.9")  # charts follow
            assert tab.page.evaluate("document.documentElement.scrollWidth") <= width
