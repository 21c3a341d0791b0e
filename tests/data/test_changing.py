"""Photos that go or change while a model trains on them."""

from __future__ import annotations

import csv
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.data import hostile
from tests.data.hostile import HEALTHY
from tests.data.test_hostile import TOLERANT, prepare
from tests.running import run_here

NUM_EPOCHS = 6


@contextmanager
def after_first_epoch(folder: Path, change: Callable[[], None]) -> Iterator[list[int]]:
    """Do something once the run in `folder` has written a row of metrics.csv; gives how many rows there were then."""
    rows_then: list[int] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.005):
            for path in folder.glob("outputs/train/*/metrics.csv"):
                if num_rows := len(path.read_text().splitlines()) - 1:
                    change()
                    rows_then.append(num_rows)
                    return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield rows_then
    finally:
        stop.set()
        watcher.join()


def train(folder: Path, source: Path, *overrides: str) -> Path:
    return run_here(
        folder,
        "train",
        *(*TOLERANT, "data=abid", f"data.source={source}", "data.image_size=32", "data.batch_size=8", "model=tiny"),
        *(f"trainer.max_epochs={NUM_EPOCHS}", "data.num_workers=0", "trainer.accelerator=cpu", "data.cache=false"),
        *overrides,
    )


@pytest.fixture
def bins(tmp_path: Path) -> dict[str, list[Path]]:
    """Split -> the photos of a source in `tmp_path / "source"`."""
    hostile.write_healthy(tmp_path / "source")
    rows, _ = prepare(tmp_path, "data=abid", f"data.source={tmp_path}/source")
    found: dict[str, list[Path]] = {}
    for row in rows.values():
        found.setdefault(row["split"], []).append(Path(row["path"]))
    assert sum(map(len, found.values())) == len(HEALTHY)
    return found


def test_photos_that_go_or_break_are_left_out_and_named(
    bins: dict[str, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone, cut, swapped = bins["train"][:3]
    untested = bins["test"][0]

    def change() -> None:
        gone.unlink()
        untested.unlink()
        cut.write_bytes(cut.read_bytes()[:600])
        swapped.write_bytes(bins["train"][3].read_bytes())  # a whole photo, but of another bin with another quantity

    with after_first_epoch(tmp_path, change) as rows_then:
        done = train(tmp_path, tmp_path / "source")
    assert rows_then[0] < NUM_EPOCHS, "it was in the middle"
    said = capsys.readouterr()
    assert f"{swapped.name}: another photo than was indexed" in said.err + said.out
    for photo in (gone, cut, untested):
        assert photo.name in said.err + said.out
    with (done / "predictions.csv").open(newline="") as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    assert set(rows) == {path.stem for path in bins["test"]}
    assert [bin_id for bin_id, row in rows.items() if row["error"]] == [untested.stem]
    assert all(row["predicted"] for bin_id, row in rows.items() if bin_id != untested.stem)
    assert len((done / "metrics.csv").read_text().splitlines()) == NUM_EPOCHS + 1


def test_on_bad_fail_ends_the_run_and_names_it(
    bins: dict[str, list[Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = bins["train"][0]
    with after_first_epoch(tmp_path, gone.unlink), pytest.raises(SystemExit) as exit_:
        train(tmp_path, tmp_path / "source", "data.on_bad=fail")
    assert exit_.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert gone.name in error
    assert "data.on_bad=skip" in error
