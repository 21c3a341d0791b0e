"""What all benchmarks share, and most of them run once, as small as can be."""

from __future__ import annotations

import csv
import importlib
import math
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import rounds
from tests.running import ROOT

FOLDER = ROOT / "benchmarks"
COMMON = ["date", "machine", "gpu", "load_average", "python", "torch", "torchvision", "pytorch-lightning", "pillow"]


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module that the benchmarks import, writing elsewhere."""
    monkeypatch.syspath_prepend(FOLDER)
    module = importlib.import_module("recording")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


def lines_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_lines_are_added_with_what_they_were_measured_on(recording: Any) -> None:
    recording.record("speed", [{"way": "a", "per_s": 1.5}, {"way": "b, c", "per_s": 3}])
    recording.record("speed", [{"way": "a", "num_photos": 7}])  # one column more, one less
    path = recording.RESULTS / "speed.csv"
    first, second, third = lines_of(path)
    assert list(first) == [*COMMON, "commit", "way", "per_s", "num_photos"]
    assert all(first[name] for name in COMMON if name not in ("gpu",))
    assert (first["per_s"], first["num_photos"], second["way"]) == ("1.5", "", "b, c")
    assert (third["per_s"], third["num_photos"]) == ("", "7")


@pytest.mark.parametrize("name", [path.stem for path in sorted((FOLDER / "results").glob("*.csv"))])
def test_every_file_of_results_takes_another_line(recording: Any, name: str) -> None:
    before = (FOLDER / "results" / f"{name}.csv").read_text()
    path = recording.RESULTS / f"{name}.csv"
    path.parent.mkdir()
    path.write_text(before)
    recording.record(name, [{"a new figure": 1}])
    *kept, added = lines_of(path)
    earlier = list(csv.DictReader(before.splitlines()))
    assert [{column: line[column] for column in earlier[0]} for line in kept] == earlier
    assert added["a new figure"] == "1"
    assert list(added)[: len(earlier[0])] == list(earlier[0])


@pytest.mark.parametrize(
    "content", ["way,per_s\na,1\n", "date,way\n2026-11-23\n", "date,way\n2026-11-23,a,b\n", "date,date\n1,2\n", ""]
)
def test_what_is_no_file_of_results_is_left_as_it_is(recording: Any, content: str) -> None:
    path = recording.RESULTS / "speed.csv"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ValueError, match="not a file of results"):
        recording.record("speed", [{"way": "a"}])
    assert path.read_text() == content


def test_ways_take_turns_and_are_compared_round_by_round() -> None:
    order: list[str] = []
    ways = {name: lambda name=name: order.append(name) or len(order) for name in "abc"}  # type: ignore[misc]
    found = rounds.alternate(ways, 2, str)
    assert order == ["a", "b", "c", "c", "b", "a"]
    assert found == {"a": [1, 6], "b": [2, 5], "c": [3, 4]}
    ratio = rounds.ratio([2.0, 20.0, 8.0], [1.0, 10.0, 2.0])
    assert ratio.median == pytest.approx(2)
    # by hand: logarithms 0.693, 0.693, 1.386: mean 0.924, deviation 0.400, t(0.975, 2) = 4.303
    assert math.log(ratio.low) == pytest.approx(0.924 - 4.303 * 0.400 / math.sqrt(3), abs=2e-3)
    assert math.log(ratio.high) == pytest.approx(0.924 + 4.303 * 0.400 / math.sqrt(3), abs=2e-3)


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "words", "ways"),
    [
        (
            "training",
            "--random --model tiny --size 32 --photos 100 --batch 32 --epochs 1 --rounds 1",
            ["a_plain", "b_lightning", "c_train", "c_float32", "c_cold", "d_free"],
        ),
        ("time_to_accuracy", "--seeds 1 --target 0.2", ["a_plain", "c_train"]),
        ("starting", "--rounds 1", ["help", "cfg", "first_step", "predict_resnet18", "predict_tiny"]),
        ("frozen", "--photos 60 --epochs 1 --rounds 1", ["a_plain", "c_train", "c_cold", "c_again"]),
        ("memory", "200 400", ["prepare", "train", "prepare", "train"]),
    ],
)
def test_a_benchmark_runs(
    recording: Any, name: str, words: str, ways: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *words.split()])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    assert [line.get("way") or line["run"] for line in lines_of(recording.RESULTS / f"{name}.csv")] == ways
