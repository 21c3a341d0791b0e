"""`binventory benchmark`, through its command line and, for what takes no memory here, by its search."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from typer.testing import CliRunner

from binventory.cli import app
from binventory.config.compose import compose_checked
from binventory.tasks import benchmark
from binventory.tasks.benchmark import Search, Tried, bisect
from binventory.tasks.step_speed import Settings, StepSpeed, measure

SMALL = ["data.image_size=32", "data.batch_size=8", "trainer.precision=32-true"]
PLAIN = Settings(8, "32-true", channels_last=True, compile=False)


def config_of(*overrides: str) -> Any:
    return compose_checked("train", [*SMALL, *overrides])[0]


@pytest.fixture(autouse=True)
def _nothing_left_on() -> Any:
    """Lightning turns this on for the whole process."""
    yield
    torch.use_deterministic_algorithms(False)


def test_it_prints_a_table_and_a_command_that_train_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = [*SMALL, "optimizer.lr=0.01", "++trainer.compile=false", "data=abid", "data.source=."]
    options = ["--max-batch", "8", "--seconds", "20", "--json", "found/speed.json"]
    monkeypatch.setattr(benchmark, "measure", lambda *given: measure(given[0], given[1], 0.01))
    done = CliRunner().invoke(app, ["benchmark", *said, *options])
    assert done.exit_code == 0, done.output
    assert [path.name for path in tmp_path.rglob("*")] == ["found", "speed.json"]  # no run folder, no cache
    found = json.loads((tmp_path / "found" / "speed.json").read_text())
    tried = {(row["batch_size"], row["channels_last"]): row for row in found["tried"]}
    assert sorted(tried) == [(8, False), (8, True)]
    for (size, _), row in tried.items():
        assert row["precision"] == "32-true"
        assert row["problem"] is None
        assert row["images_per_second"] == pytest.approx(size / row["step_ms"] * 1000, rel=0.01)
        assert f"{row['images_per_second']:,.1f}" in done.output
        assert 1e8 < row["peak_memory_bytes"] < psutil.virtual_memory().total
    assert found["largest_batch"]["batch_size"] == 8
    assert "above it: --max-batch=8" in done.output
    command = done.output.splitlines()[-1]
    assert command == found["command"]
    words = shlex.split(command)
    assert words[:2] == ["python", "train.py"]
    assert words[2:6] == [SMALL[0], "optimizer.lr=0.01", "data=abid", "data.source=."]
    assert words[6:9] == ["data.batch_size=8", "trainer.precision=32-true", "trainer.compile=false"]
    config = compose_checked("train", words[2:])[0]
    assert config.data.batch_size == found["fastest"]["batch_size"]
    assert config.model.channels_last == found["fastest"]["channels_last"]
    assert config.trainer.compile is False
    assert config.trainer.precision == "32-true"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.batchsize=8"], "error: data.batchsize=8: no such key; did you mean data.batch_size?"),
        (["model=resent18"], "error: model=resent18: no such choice; did you mean resnet18?"),
        (["-m", "data.batch_size=8,16"], "error: -m: one config is measured; give single values"),
        (["trainer=ddp_cpu"], "error: trainer.devices=2: one device is measured"),
        (["--json", "/proc/sys/speed.json"], "error: --json /proc/sys/speed.json: no file can be written there"),
        (["--config-dir", "none", "model=resnet18"], "error: --config-dir"),
        (["--max-batch", "1"], "Invalid value for '--max-batch'"),
    ],
)
def test_a_mistake_is_answered_as_train_answers_it(words: list[str], said: str) -> None:
    done = CliRunner().invoke(app, ["benchmark", *words])
    assert done.exit_code == 2
    assert said in done.output


def takes(monkeypatch: pytest.MonkeyPatch, photo_bytes: int) -> list[int]:
    """Let a step take so much memory for each photo, and note the batches.

    What a step really takes can be told in a process of its own only: this one has memory left over from other tests.
    """
    sizes: list[int] = []
    before = psutil.Process().memory_info().rss

    def measured(_config: Any, settings: Settings, _seconds: float) -> StepSpeed:
        sizes.append(settings.batch_size)
        return StepSpeed(0.001, before + photo_bytes * settings.batch_size)

    monkeypatch.setattr(benchmark, "measure", measured)
    monkeypatch.setattr(psutil.Process, "memory_info", lambda _self: SimpleNamespace(rss=before))
    return sizes


def test_the_search_stays_within_memory_and_looks_for_the_largest_batch_below(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_available_memory", lambda: int(100e6 / benchmark.MEMORY_SHARE) + 1)
    sizes = takes(monkeypatch, 10**6)
    search = Search(config_of("data.batch_size=64"), max_batch=4096, seconds=60)
    search.double(PLAIN)
    largest, limited_by = search.largest(PLAIN)
    assert limited_by == "out of memory"
    assert all(size <= 2 * max(sizes[:place], default=1) for place, size in enumerate(sizes)), "from known to unknown"
    assert 88 <= largest.settings.batch_size <= 100
    assert max(sizes) <= 100, "nothing hopeless is tried"


def test_where_no_batch_fits_one_line_says_what_to_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "_available_memory", lambda: 1_000_000)
    takes(monkeypatch, 10**6)
    done = CliRunner().invoke(app, ["benchmark", *SMALL])
    assert done.exit_code == 2
    assert done.output.startswith("error: data.image_size=32: not even a batch of 2 fits into memory with")
    assert len(done.output.splitlines()) == 1


def tried(batch_size: int, step_s: float) -> Tried:
    return Tried(Settings(batch_size, "32-true", True, False), StepSpeed(step_s, 0))


def test_a_step_that_would_take_too_long_is_not_tried() -> None:
    search = Search(config_of(), max_batch=4096, seconds=1e-9)
    search.double(PLAIN)
    assert [tried.settings.batch_size for tried in search.tried] == [8]
    assert search.largest(PLAIN)[1] == "a step takes over 1e-09 s"


def test_of_about_equally_fast_settings_the_smallest_batch_is_proposed() -> None:
    search = Search(config_of(), max_batch=64, seconds=1)
    search.tried = [tried(16, 0.020), tried(32, 0.0325), tried(64, 0.064), Tried(PLAIN, None, "out of memory")]
    assert search.fastest().settings.batch_size == 32


@pytest.mark.parametrize("most", [2, 3, 17, 48, 100, 119, 1000])
def test_bisection_never_says_that_something_fits_that_does_not(most: int) -> None:
    fits, asked = 1, []
    while 2 * fits <= most:
        fits *= 2

    def try_(size: int) -> bool:
        asked.append(size)
        return size <= most

    found = bisect(fits, 2 * fits, try_)
    assert fits <= found <= most
    assert found >= most - max(1, most // 8) - 8
    assert len(asked) == len(set(asked)) <= 6
    assert all(fits < size < 2 * fits for size in asked)


def test_the_step_is_the_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its loss comes from the config's network, precision, layout and augmentation, its weights move by the optimizer."""
    seen: list[Any] = []

    class Watched(torch.optim.SGD):
        def step(self, *args: Any, **kwargs: Any) -> Any:
            seen.append([parameter.grad for group in self.param_groups for parameter in group["params"]])
            return super().step(*args, **kwargs)

    monkeypatch.setattr(torch.optim, "SGD", Watched)
    config = config_of("optimizer.lr=0.001", "trainer.gradient_clip_val=1e-6", "model.channels_last=false")
    measure(config, PLAIN, 0.01)
    assert len(seen) >= 4
    norm = torch.stack([grad.norm() for grad in seen[-1]]).norm()
    assert float(norm) == pytest.approx(1e-6, rel=1e-2)
    kernels = [grad for grad in seen[-1] if grad.dim() == 4 and grad.shape[-1] > 1]
    assert kernels
    assert all(grad.is_contiguous(memory_format=torch.channels_last) for grad in kernels)
