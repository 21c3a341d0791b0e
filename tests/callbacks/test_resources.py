"""Every run says what held it back, whatever its end; measuring changes nothing."""

from __future__ import annotations

import json
import multiprocessing
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from binventory.bottlenecks.report import REPORT
from binventory.callbacks.trace import Trace
from binventory.launch.entry import main
from tests.resume.compare import differences
from tests.resume.trap import PLAN, TARGET
from tests.running import TINY, Run, latest

RULES = [
    "GPUMemoryIncrease", "LowGPUUtilization", "Dataloader", "IOBottleneck", "CPUBottleneck", "BatchSize",
    "LoadBalancing", "StepOutlier", "MaxInitializationTime",
]  # fmt: skip


def read(run: Path, name: str = REPORT) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / name).read_text())
    return found


def test_a_finished_run(trained: Path) -> None:
    report = read(trained)
    assert (report["attempt"], report["training"], report["sample_every_s"]) == (1, "done", 0.5)
    assert [finding["rule"] for finding in report["findings"]] == RULES
    assert report["overview"]["num_steps"] == 12
    assert 0 < report["overview"]["data_wait_percent"] < 100
    assert 0 < report["overview"]["step_median_s"] <= report["overview"]["step_p95_s"]
    assert 0.05 < report["overview"]["initialization_s"] < 300, "drawing and indexing the bins is part of it"
    assert report["setup"]["gpu_problem"] == "the run is on the CPU"
    assert (report["setup"]["num_workers"], report["setup"]["batch_size"]) == (0, 32)
    assert [rank["device"] for rank in report["ranks"]] == ["cpu"]
    verdicts = {finding["rule"]: finding["verdict"] for finding in report["findings"]}
    assert verdicts["MaxInitializationTime"] == "ok"
    assert {verdicts[rule] for rule in RULES if "GPU" in rule} == {"not evaluable"}


def test_measuring_and_tracing_change_no_result(trained: Path, run: Run) -> None:
    """The `trained` run is sampled; this one is traced instead."""
    traced = run("train", *TINY, "debug=profile", "callbacks.resources.sample_every_s=null")
    assert differences(trained, traced) == [
        "files/bottlenecks.json: only in the first",
        "files/fit-profile.txt: only in the second",
        "files/test-profile.txt: only in the second",
        "files/trace.json: only in the second",
    ]
    events = read(traced, "trace.json")["traceEvents"]
    assert {event["name"] for event in events if event["name"].startswith("ProfilerStep#")} == {
        f"ProfilerStep#{number}" for number in range(2, 7)
    }
    assert any("conv" in event["name"] for event in events)


def test_stopped_and_resumed(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run whose attempts are stopped, cannot write their report, and have no step left to do."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("BINVENTORY_ALLOW_TARGETS", "tests.")

    def attempt(exit_code: int, *overrides: str, **plan: Any) -> Path:
        monkeypatch.setenv(PLAN, json.dumps({"to": "self", "rank": 0, "phase": "train", **plan} if plan else {}))
        if exit_code:
            with pytest.raises(SystemExit) as exit_:
                main("train", list(overrides))
            assert exit_.value.code == exit_code
        else:
            main("train", list(overrides))
        return latest(workplace, "train")

    # In the place of a loader's, which take seconds to end.
    worker = multiprocessing.Process(target=time.sleep, args=(60,), daemon=True)
    worker.start()
    folder = attempt(143, *TINY, TARGET, "callbacks.resources.sample_every_s=0.01", call=8, do="SIGTERM")
    worker.kill()
    worker.join()
    report = read(folder)
    assert (report["attempt"], report["training"], report["overview"]["num_steps"]) == (1, "preempted", 8)
    assert report["setup"]["num_workers"] == 1
    assert report["overview"]["num_samples"] >= 5
    assert report["overview"]["process_cpu_mean_percent"] > 10
    assert report["ranks"][0]["num_samples"] >= 3
    assert report["findings"][-1]["verdict"] == "ok"
    assert "bottlenecks" not in capsys.readouterr().out, "the last line is the one that says why the run ended"
    for signum in (signal.SIGINT, signal.SIGTERM):  # the stopped attempt left them ignored
        signal.signal(signum, signal.SIG_DFL)

    (folder / REPORT).unlink()
    (folder / REPORT / "in the way").mkdir(parents=True)
    attempt(0, f"resume={folder}")
    assert "no bottleneck report (IsADirectoryError" in (folder / "train.log").read_text()
    status = read(folder, "status.json")
    assert status["state"] == "done", "a run does not fail for want of a report"

    (folder / REPORT / "in the way").rmdir()
    (folder / REPORT).rmdir()
    (folder / "status.json").write_text(json.dumps({**status, "state": "preempted"}))  # a kill before the test
    attempt(0, f"resume={folder}")
    report = read(folder)
    assert (report["attempt"], report["training"], report["overview"]["num_steps"]) == (3, "done", 0)
    assert {finding["verdict"] for finding in report["findings"]} == {"not evaluable"}


@pytest.mark.parametrize(("num_done", "is_written"), [(2, False), (3, True), (9, True)])
def test_a_trace_of_a_short_training(
    num_done: int, is_written: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer: Any = SimpleNamespace(is_global_zero=True, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    module, trace = pl.LightningModule(), Trace(tmp_path, 5)
    trace.on_train_start(trainer, module)
    for number in range(num_done):
        torch.ones(2) @ torch.ones(2)
        trace.on_train_batch_end(trainer, module, None, None, number)
    trace.on_train_end(trainer, module)
    assert (tmp_path / "trace.json").exists() == is_written
    assert ("no trace.json: training ended after 2 steps" in caplog.text) == (not is_written)


def test_no_trace_of_a_training_that_fails(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(is_global_zero=True, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    module, trace = pl.LightningModule(), Trace(tmp_path, 5)
    trace.on_train_start(trainer, module)
    for number in range(4):
        trace.on_train_batch_end(trainer, module, None, None, number)
    trace.on_exception(trainer, module, RuntimeError())
    assert not list(tmp_path.iterdir())
