"""The page where run folders hold what they should not: markup, damaged files, photos that are none."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from PIL import Image
from typer.testing import CliRunner

from binventory.cli import app
from binventory.compare.table import compare
from binventory.config.capture import to_plain
from binventory.config.compose import compose_checked
from binventory.reports.html import script_json
from tests.browser import opened
from tests.compare.folders import make_run, predictions_of, write_state

HACK = "window.hacked = 1"
MARKUP = f"</script><script>{HACK}</script><img src=x onerror='{HACK}'>\"'`<!--<script>\u2028]]>{{{{7*7}}}}"
QUANTITIES = [1, 2, 3, 4, 5] * 2


def write(place: Path, page: Path, *options: str) -> str:
    result = CliRunner().invoke(app, ["compare", str(place), *options, "--html", str(page)])
    assert result.exit_code == 0, result.output
    return page.read_text(encoding="utf-8")


def hostile_runs(folder: Path) -> None:
    """Runs whose every text is markup. A file's name holds no slash."""
    name = MARKUP.replace("/", "∕") + "#a?b%41"  # noqa: RUF001  looks like one
    curves = {"val/accuracy": [0.1, 0.2], MARKUP: [0.1, 0.3]}
    for number, place in enumerate((f"javascript:{HACK};{name}", f"b{name}")):
        rows = predictions_of(QUANTITIES, [*QUANTITIES[:5], *([number + 1] * 5)])
        for row in rows:
            row.update(id=f"{row['id']}{MARKUP}", path=f"photos/{MARKUP}.jpg")
        config = {"note": f"{MARKUP}{number}", "seed": number, "of": {MARKUP: number}}
        run = make_run(
            folder / place, rows, config=config, curves=curves, provenance={"choices": {"experiment": MARKUP}}
        )
        metrics = json.loads((run / "metrics.json").read_text())
        metrics["test"][MARKUP] = 0.5
        (run / "metrics.json").write_text(json.dumps(metrics))
    failed = make_run(folder / f"c{name}", predictions_of(QUANTITIES, QUANTITIES))
    write_state(failed, "failed", {"type": MARKUP, "message": MARKUP, "traceback": ""}, task=MARKUP)
    broken = make_run(folder / "d", predictions_of(QUANTITIES, QUANTITIES))
    (broken / "status.json").write_text(json.dumps({"state": MARKUP}))


def test_markup_in_run_folders_is_text_on_the_page(tmp_path: Path, chromium: Any) -> None:
    hostile_runs(tmp_path / "runs")
    folders = set((tmp_path / "runs").iterdir())
    page = tmp_path / "runs" / "page.html"  # its links start with the names of the runs
    text = write(tmp_path / "runs", page, "--metric", f"test/{MARKUP}")
    assert text.count("</script>") == 4  # of the data, of two libraries, and of the page
    assert text.count("<!--") == 0
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert data is not None
    assert "<" not in data[1]
    assert not {"\u2028", "\u2029"} & set(data[1])
    with opened(chromium, page) as tab:
        names = tab.page.eval_on_selector_all("#curve-metric option", "all => all.map(one => one.value)")
        assert len(names) == 2
        tab.page.select_option("#curve-metric", names[1])
        tab.page.fill("#runs .dt-search input", "b</")
        tab.page.fill("#runs .dt-search input", "")
        tab.page.locator("#pairs-table thead th").first.click()
        tab.page.hover("#photos .answer")
        tab.page.evaluate("() => new Promise((done) => setTimeout(done, 50))")
        assert tab.page.evaluate("window.hacked") is None
        assert tab.page.locator("main img[src='x'], main script, [onerror], [onclick]").count() == 0
        shown = "\n".join(tab.texts("main section"))
        assert shown.count("<img src=x onerror=") > 20
        assert "{{7*7}}" in shown
        links = tab.page.eval_on_selector_all("#runs-table a", "all => all.map(one => [one.protocol, one.href])")
        assert [protocol for protocol, _ in links] == ["file:"] * 4
        assert {Path(unquote(link.removeprefix("file://"))) for _, link in links} == folders


def test_the_policy_stops_scripts_and_requests_of_any_kind(tmp_path: Path, chromium: Any) -> None:
    """Also of markup that got in all the same."""
    make_run(tmp_path / "runs" / "a", predictions_of(QUANTITIES, QUANTITIES))
    write(tmp_path / "runs", tmp_path / "page.html")
    with opened(chromium, tmp_path / "page.html") as tab:
        blocked = tab.page.evaluate(
            """async () => {
            const seen = [];
            document.addEventListener("securitypolicyviolation", (event) => seen.push(event.effectiveDirective));
            const holder = document.body.appendChild(document.createElement("div"));
            holder.innerHTML = "<img src='https://example.org/a.png' onerror='window.hacked = 1'><form action='https://example.org/'></form>"
              + "<iframe src='https://example.org/'></iframe><link rel=stylesheet href='https://example.org/a.css'>";
            const script = document.createElement("script");
            script.textContent = "window.hacked = 2";
            document.body.append(script);
            await fetch("https://example.org/").catch(() => {});
            holder.querySelector("form").submit();
            for (let waited = 0; seen.length < 7 && waited < 10000; waited += 50)
              await new Promise((done) => setTimeout(done, 50));
            return [seen.sort(), window.hacked ?? null];
            }"""
        )
        # Each is in the console, and pictures and styles are announced before the policy stops them.
        tab.errors.clear()
        del tab.requests[1:]
    wanted = [
        "connect-src",
        "form-action",
        "frame-src",
        "img-src",
        "script-src-attr",
        "script-src-elem",
        "style-src-elem",
    ]
    assert blocked == [wanted, None]


DAMAGE = [
    ("metrics.csv", b"epoch,val/accuracy\n1,high\n", "#curves", "metrics.csv: cannot be read"),
    ("metrics.csv", b"epoch,val/accuracy\n1\n", "#curves", "metrics.csv: cannot be read"),
    ("metrics.csv", b"", "#curves", "metrics.csv: cannot be read"),
    ("metrics.csv", b"\xff\xfe\x00", "#curves", "metrics.csv: cannot be read"),
    ("metrics.csv", None, "#curves", "metrics.csv: is not a regular file"),
    ("predictions.csv", None, "#confusions", "predictions.csv: is not a regular file"),
    ("predictions.csv", b"id,quantity\n", "#confusions", "predictions.csv: cannot be read"),
]


def test_damage_costs_its_part_of_the_page_and_is_said_there(tmp_path: Path, chromium: Any) -> None:
    curves = {"val/accuracy": [0.1, 0.2]}
    for number, (name, content, _, _) in enumerate(DAMAGE):
        run = make_run(tmp_path / "runs" / f"bad{number}", predictions_of(QUANTITIES, [1] * 10), curves=curves)
        (run / name).unlink()
        if content is None:
            os.mkfifo(run / name)
        else:
            (run / name).write_bytes(content)
    for number in range(2):
        make_run(tmp_path / "runs" / f"good{number}", predictions_of(QUANTITIES, [number + 1] * 10), curves=curves)
    write(tmp_path / "runs", tmp_path / "page.html")
    with opened(chromium, tmp_path / "page.html") as tab:
        assert len(tab.texts("#runs-table tbody tr")) == 9
        for number, (_, _, section, said) in enumerate(DAMAGE):
            assert any(text.startswith(f"bad{number}: {said}") for text in tab.texts(f"{section} .warning")), number
            assert said in tab.page.locator("#runs-table tr", has_text=f"bad{number}").inner_text()
        drawn = tab.page.evaluate("document.getElementById('curve-chart').data.map(one => one.name)")
        assert sorted(drawn) == ["bad5", "bad6", "good0", "good1"]


def test_a_photo_that_cannot_be_shown_says_why(tmp_path: Path, chromium: Any) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    names = [f"{place:05d}.jpg" for place in range(6)]
    Image.new("RGB", (600, 300), "teal").save(folder / names[0])
    (folder / names[1]).write_text("no photo")
    os.mkfifo(folder / names[2])  # would block for ever
    (folder / names[3]).write_bytes((folder / names[0]).read_bytes()[:200])
    (folder / names[4]).symlink_to("/etc/passwd")
    for number in range(2):
        make_run(
            tmp_path / "runs" / str(number),
            predictions_of([3] * 6, [number + 1] * 6, photos="photos"),
            provenance={"working_dir": str(tmp_path)},
        )
    os.chdir("/")  # the photos' paths are relative to where the run was started
    text = write(tmp_path / "runs", tmp_path / "page.html")
    assert "root:x:" not in text
    with opened(chromium, tmp_path / "page.html") as tab:
        said = dict(zip(tab.texts("#photos h3"), tab.page.eval_on_selector_all(
            "#photos .card", "all => all.map(one => one.querySelector('.missing')?.innerText ?? one.querySelector('img').naturalWidth)"
        ), strict=True))  # fmt: skip
    assert said["00000"] == 264
    for name, reason in (("00001", "neither JPEG nor PNG"), ("00002", "not a regular file"), ("00003", "truncated"),
                         ("00004", "neither JPEG nor PNG"), ("00005", "No such file")):  # fmt: skip
        assert reason in said[name], said


def test_runs_of_other_test_sets_are_marked_and_not_mixed(tmp_path: Path, chromium: Any) -> None:
    for name, number in (("a", 10), ("b", 10), ("c", 5), ("d", 5)):
        told = QUANTITIES[:5] if name == "c" else [1 if name == "a" else 2] * number
        make_run(tmp_path / "runs" / name, predictions_of(QUANTITIES[:number], told), fingerprint=str(number) * 64)
    write(tmp_path / "runs", tmp_path / "page.html")
    with opened(chromium, tmp_path / "page.html") as tab:
        assert "test sets differ" in " ".join(tab.texts("#what .warning"))
        assert "A: 5 photos, 2 runs; B: 10 photos, 2 runs" in tab.page.inner_text("#what")
        assert len(tab.texts("#pairs-table tbody tr")) == 2
        best = tab.page.eval_on_selector_all(
            "#runs-table tbody tr",
            "all => all.map(one => [one.cells[0].innerText, [...one.cells].find(cell => /^\\d[.]\\d{4}/.test(cell.innerText)).classList.contains('best')])",
        )
        assert dict(best) == {"a": True, "b": True, "c": True, "d": False}  # c is better than a and b, on other photos
        answers = tab.page.eval_on_selector_all(".card", "all => all.map(one => one.querySelectorAll('li').length)")
        assert set(answers) == {2}
        for said in tab.texts("#photos .card p"):
            assert said.endswith(("test set A", "test set B"))


def test_a_preset_is_shown_beside_the_published_table(tmp_path: Path, chromium: Any) -> None:
    shipped = to_plain(compose_checked("train", ["experiment=exp1"])[0])
    ours = {**shipped, "optimizer": {**shipped["optimizer"], "lr": 0.5}, "seed": 3}
    chosen = {"choices": {"experiment": "exp1"}}
    rows = predictions_of(QUANTITIES, [*QUANTITIES[:4], *[1] * 6])
    for name, config in (("as shipped", shipped), ("other", ours)):
        run = make_run(tmp_path / "runs" / name, rows, provenance=chosen)
        (run / "config.yaml").write_text(json.dumps(config))  # JSON is YAML
    make_run(tmp_path / "runs" / "of no preset", rows, provenance={"choices": {"experiment": "../../etc/passwd"}})
    write(tmp_path / "runs", tmp_path / "page.html")
    with opened(chromium, tmp_path / "page.html") as tab:
        table = tab.page.eval_on_selector_all(
            "#published-table tbody tr", "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
        )
        remarks = tab.page.inner_text("#published .remarks")
    published, *of_ours, _, record = table
    assert published[:6] == ["exp1", "published", "0.3001", "-", "24", "2,089"]
    by_run = {row[1]: row for row in of_ours}
    assert set(by_run) == {"as shipped", "other"}
    assert by_run["as shipped"][7] == "nothing: the config is as shipped"
    assert by_run["other"][7].splitlines() == ["optimizer.lr: 0.01 → 0.5", "seed: 0 → 3"]
    accuracy = compare([str(tmp_path / "runs" / "other")], "test/accuracy").runs[0].figures["test/accuracy"]
    assert by_run["other"][2] == f"{accuracy:.4f}"
    assert by_run["other"][5] == "10"
    assert record[2:4] == ["0.5870", "0.8000"]
    assert "leaks" in remarks
    presets = compare([str(tmp_path / "runs")], "test/accuracy").presets
    assert {each.preset for each in presets} == {"exp1"}  # nothing else is composed


def test_where_the_page_goes(tmp_path: Path) -> None:
    make_run(tmp_path / "runs" / "a", predictions_of(QUANTITIES, QUANTITIES))
    result = CliRunner().invoke(app, ["compare", "runs"])
    assert result.stdout.splitlines()[-1] == "wrote outputs/compare.html"
    page = (tmp_path / "outputs" / "compare.html").read_text(encoding="utf-8")
    assert "Comparison of 1 run<" in page
    assert len(page) < 1_500_000  # no chart, no plotly.js
    (tmp_path / "file").touch()
    result = CliRunner().invoke(app, ["compare", "runs", "--html", "file/x.html"])
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "error: --html file/x.html: cannot be written (File exists); name another file"
    ]


def test_json_for_a_script_is_the_same_value_and_no_markup() -> None:
    value = {"a": [MARKUP, "&amp;\u2029", 1.5, None]}
    text = script_json(value)
    assert json.loads(text) == value
    assert not set("<>&\u2028\u2029") & set(text)
    with pytest.raises(ValueError, match="JSON"):
        script_json(float("nan"))
