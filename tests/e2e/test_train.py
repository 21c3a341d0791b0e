"""Training, by the command a user types: what lies in the run folder, and that it can be trusted."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file

from binventory.data.datamodule import limit_batches
from tests.resume.jobs import Jobs
from tests.running import TINY, Run, latest
from tests.sweeps.running import fails_in_one_line, sweep_here

ROOT = Path(__file__).resolve().parents[2]


def read_json(path: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(path.read_text())
    return read


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_run_folder_holds_what_the_design_says(trained: Path) -> None:
    present = {path.name for path in trained.iterdir()}
    assert present >= {
        "config.yaml", "provenance.json", "status.json", "metrics.csv", "metrics.json", "predictions.csv", "checkpoints", "bundle",
    }  # fmt: skip
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert {path.name for path in (trained / "bundle").iterdir()} == {"weights.safetensors", "bundle.json"}
    assert read_json(trained / "status.json")["state"] == "done"
    config = OmegaConf.load(trained / "config.yaml")
    assert config.data.reader.num_bins == 240
    provenance = read_json(trained / "provenance.json")
    assert len(provenance["data"]["fingerprint"]) == 64
    assert provenance["overrides"] == TINY
    assert provenance["packages"]["torch"] == torch.__version__.split("+")[0]


def test_figures_follow_from_predictions(trained: Path) -> None:
    figures, rows = read_json(trained / "metrics.json"), read_csv(trained / "predictions.csv")
    assert list(rows[0]) == [
        "id",
        "path",
        "quantity",
        "predicted",
        "expected",
        *(f"p_{n}" for n in range(1, 6)),
        "error",
    ]
    assert figures["test"]["num_images"] == len(rows)
    right = [row["quantity"] == row["predicted"] for row in rows]
    assert figures["test"]["accuracy"] == pytest.approx(sum(right) / len(right))
    squared = [(float(row["expected"]) - int(row["quantity"])) ** 2 for row in rows]
    assert figures["test"]["expected_rmse"] == pytest.approx((sum(squared) / len(squared)) ** 0.5, rel=1e-4)
    for row in rows:
        shares = [float(row[f"p_{count}"]) for count in range(1, 6)]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert row["error"] == ""
    assert figures["epochs"] == 2
    assert 1 <= figures["best_epoch"] <= 2
    assert figures["images_per_second"] > 0
    best = max(read_csv(trained / "metrics.csv"), key=lambda row: float(row["val/accuracy"]))
    assert figures["val"]["accuracy"] == pytest.approx(float(best["val/accuracy"]))


def test_metrics_csv_has_a_row_per_epoch(trained: Path) -> None:
    rows = read_csv(trained / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for name in ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "val/rmse", "lr", "seconds", "step"):
        assert all(float(row[name]) >= 0 for row in rows), name
    assert int(rows[1]["step"]) == 2 * int(rows[0]["step"])


def test_checkpoint_loads_without_running_code_and_says_what_it_is(trained: Path) -> None:
    checkpoint = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    bundle = read_json(trained / "bundle" / "bundle.json")
    for name in ("model", "objective", "counts", "preprocessing"):
        assert checkpoint["binventory"][name] == bundle[name]
    weights = load_file(trained / "bundle" / "weights.safetensors")
    for key, value in weights.items():
        assert torch.equal(value, checkpoint["state_dict"][f"network.{key}"]), key


def test_same_command_twice_gives_the_same_bits(trained: Path, run: Run) -> None:
    again = run("train", *TINY)
    assert digest(again / "bundle" / "weights.safetensors") == digest(trained / "bundle" / "weights.safetensors")
    assert digest(again / "predictions.csv") == digest(trained / "predictions.csv")


def test_workers_change_nothing_and_the_seed_does(trained: Path, run: Run) -> None:
    before = set(active_children())
    workers = run("train", *TINY, "data.num_workers=2", "data.cache=false")
    assert set(active_children()) <= before, "the workers ended with the run"
    assert digest(workers / "bundle" / "weights.safetensors") == digest(trained / "bundle" / "weights.safetensors")
    other = run("train", *TINY, "seed=1")
    assert digest(other / "bundle" / "weights.safetensors") != digest(trained / "bundle" / "weights.safetensors")
    same = {row["id"]: row["quantity"] for row in read_csv(trained / "predictions.csv")}
    assert {row["id"]: row["quantity"] for row in read_csv(other / "predictions.csv")} == same, (
        "one test set for all seeds"
    )


@pytest.mark.parametrize("preset", ["fast", "overfit", "limit", "profile"])
def test_debug_presets_run(preset: str, run: Run) -> None:
    keep = [
        value for value in TINY if not value.startswith(("trainer.max_epochs", "data.batch_size", "data.image_size"))
    ]
    small = {
        "overfit": ["data.batch_size=16", "data.image_size=32", "trainer.max_epochs=12"],
        "limit": ["data.image_size=32"],
    }
    done = run("train", *keep, f"debug={preset}", *small.get(preset, []))
    rows, figures = read_csv(done / "metrics.csv"), read_json(done / "metrics.json")
    if preset == "fast":
        assert rows[-1]["step"] == "1"
        assert figures["test"]["num_images"] == 4
    elif preset == "overfit":
        assert float(rows[-1]["train/loss"]) < 0.5 * float(rows[0]["train/loss"])
        assert figures["val"]["num_images"] == 48
    elif preset == "limit":
        assert len(rows) == 3
    else:
        assert "run_training_batch" in (done / "fit-profile.txt").read_text()


@pytest.mark.parametrize(
    "overrides",
    [
        ["optimizer=sgd", "scheduler=step", "model.finetune=head"],
        ["scheduler=constant", "model.finetune=last_stage", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=1.0"],
        ["data.val_fraction=0", "objective_metric=null", "data.normalize=dataset", "data.resize=letterbox"],
        ["data.split=report", "objective_metric=val/loss", "trainer.precision=bf16-mixed", "objective.label_smoothing=0.1"],
        ["callbacks=early_stopping", "callbacks.early_stopping.patience_epochs=1", "optimizer.lr=1e-9", "trainer.max_epochs=9"],
        ["data.counts=[2,3,4]", "model.channels_last=false", "callbacks.checkpoint.every_n_epochs=null"],
    ],
    ids=lambda overrides: overrides[0],
)  # fmt: skip
def test_choices_run(overrides: list[str], run: Run) -> None:
    done = run("train", *TINY, "trainer.limit_train_batches=2", *overrides)
    figures = read_json(done / "metrics.json")
    assert figures["test"]["num_images"] > 20
    if "data.val_fraction=0" in overrides:
        assert figures["val"] is None
        assert figures["best_epoch"] == 2
        seconds = sum(float(row["seconds"]) for row in read_csv(done / "metrics.csv"))
        assert figures["train_seconds"] > 0.6 * seconds, "the clock runs in every epoch, not in the last one alone"
        bundle = read_json(done / "bundle" / "bundle.json")
        assert bundle["preprocessing"]["mean"] != [0.485, 0.456, 0.406]
    if "callbacks=early_stopping" in overrides:
        assert figures["epochs"] < 9
    if "data.counts=[2,3,4]" in overrides:
        assert list(figures["test"]["per_count"]) == ["2", "3", "4"]


def make_older(run: Path) -> None:
    """Give a run folder the form of older versions, which held counts of batches as floats."""
    config = (run / "config.yaml").read_text()
    older = re.sub(r"(limit_\w+_batches: \d+)$", r"\1.0", config.split("\n", 1)[1], flags=re.M)
    assert older != config
    (run / "config.yaml").write_text(older)
    facts = read_json(run / "provenance.json")
    facts["overrides"] = [f"{text}.0" if "limit_train" in text else text for text in facts["overrides"]]
    (run / "provenance.json").write_text(json.dumps(facts))


def test_limits_of_batches_count_as_lightnings_do_and_older_runs_keep_theirs(
    workplace: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [limit_batches(limit, 6) for limit in (1, 1.0, 0.5, 0.01, 7, None)] == [1, 6, 3, 1, 7, None]
    limited = ["trainer.limit_train_batches=1", "trainer.limit_test_batches=1.0", "trainer.max_epochs=1"]
    done = run("train", *TINY, *limited, "trainer.limit_val_batches=0.5")
    figures = read_json(done / "metrics.json")
    assert [row["step"] for row in read_csv(done / "metrics.csv")] == ["1"]
    assert (figures["val"]["num_images"], figures["test"]["num_images"]) == (19, 48)  # the one batch, both batches
    make_older(done)
    line = fails_in_one_line(capsys, workplace, f"resume={done}", "trainer.limit_train_batches=1.0")
    assert "limit_train_batches: 1 -> 1.0" in line
    with pytest.raises(SystemExit) as left:
        run("train", f"resume={done}")
    assert left.value.code == 0, "nothing has changed: it is done"


def test_init_from_starts_at_the_weights_of_a_run(trained: Path, run: Run) -> None:
    done = run(
        "train", *TINY, f"init_from={trained}", "optimizer=sgd", "optimizer.lr=1e-12", "trainer.limit_train_batches=1"
    )
    before, after = (load_file(folder / "bundle" / "weights.safetensors") for folder in (trained, done))
    assert torch.allclose(before["backbone.fc.weight"], after["backbone.fc.weight"], atol=1e-6)


def test_loggers_write_into_the_run_folder(run: Run) -> None:
    for seed in (0, 1):  # in one process: the second must not be logged into the first's W&B run
        done = run("train", *TINY, "debug=fast", "logger=[csv,tensorboard,wandb]", f"seed={seed}")
        assert list(done.glob("events.out.tfevents.*"))
        assert len(list(done.glob("wandb/offline-run-*/*.wandb"))) == 1
        assert (done / "metrics.csv").exists()


@pytest.mark.long
def test_a_compiled_network_learns_the_same_and_keeps_its_names(run: Run) -> None:
    # Few and small steps, in float32: what is rounded otherwise grows with every step.
    slow = [*TINY, "optimizer.lr=0.001", "trainer.max_epochs=1", "trainer.precision=32-true"]
    plain, compiled = (run("train", *slow, f"trainer.compile={asked}") for asked in ("false", "true"))
    states = [load_file(folder / "bundle/weights.safetensors") for folder in (plain, compiled)]
    assert states[0].keys() == states[1].keys()
    differences = [float((states[0][name] - states[1][name]).abs().max()) for name in states[0]]
    assert 0 < max(differences) < 1e-4, "other kernels round otherwise, and no more"


def test_optional_packages_are_not_imported(workplace: Path) -> None:
    program = (
        "import sys; from binventory.launch.entry import main\n"
        "sys.argv = ['train.py', *sys.argv[1:]]\n"
        "main('train')\n"
        "print([name for name in ('wandb', 'boto3', 'botocore', 'sagemaker', 'tensorboard') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *TINY, "debug=fast"],
        cwd=workplace, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "step 1/1  loss" in done.stdout, "plain lines where stdout is no terminal"
    assert "run folder: " in done.stdout


def test_two_ranks_train_in_one_run_folder(workplace: Path, jobs: Jobs) -> None:
    """The README's command for two starts new processes; these are forked."""
    known = set(workplace.glob("outputs/train/*"))
    command = [*TINY, "trainer=ddp_cpu", "trainer.devices=2", "trainer.max_epochs=2", "seed=5"]
    done = jobs.start(workplace, "train", command, num_ranks=2)
    assert done.wait() == 0, done.stderr
    made = set(workplace.glob("outputs/train/*")) - known
    assert len(made) == 1
    folder = made.pop()
    assert read_json(folder / "status.json")["state"] == "done"
    rows, figures = read_csv(folder / "predictions.csv"), read_json(folder / "metrics.json")
    assert len({row["id"] for row in rows}) == len(rows) == figures["test"]["num_images"]
    assert all(row["error"] == "" for row in rows), "the probabilities of all ranks come together"
    right = sum(row["quantity"] == row["predicted"] for row in rows)
    assert figures["test"]["accuracy"] == pytest.approx(right / len(rows)), "figures are over all ranks"
    assert len(read_csv(folder / "metrics.csv")) == 2
    assert read_json(folder / "job.json")["config"]["hydra"]["job"]["name"] == "train"
    assert [rank["rank"] for rank in read_json(folder / "bottlenecks.json")["ranks"]] == [0, 1]


@pytest.mark.parametrize(("signum", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signal_during_training_ends_the_run_in_order(
    workplace: Path, jobs: Jobs, signum: signal.Signals, exit_code: int
) -> None:
    process = jobs.start(workplace, "train", [*TINY, "trainer.max_epochs=500", "callbacks.progress.every_n_steps=1"])
    while "\nepoch 2/" not in process.stdout:
        assert process.poll(timeout_s=0.02) is None, process.stderr
    started = time.monotonic()
    process.signal(signum)
    assert process.wait(timeout_s=60) == exit_code, process.stderr
    assert time.monotonic() - started < 30
    folder = latest(workplace, "train")
    written = read_json(folder / "status.json")
    assert written["state"] == "preempted"
    assert written["exit_code"] == exit_code
    assert (folder / "checkpoints" / "last.ckpt").exists()
    assert "Traceback" not in process.stderr


@pytest.mark.usefixtures("job_server")
def test_multirun_gives_every_job_its_own_folder(workplace: Path) -> None:
    done = sweep_here(workplace, "-m", *TINY, "debug=fast", "seed=0,1")
    assert (done.exit_code, done.states) == (0, ["done", "done"])
    assert [OmegaConf.load(done.folder / str(job) / "config.yaml").seed for job in (0, 1)] == [0, 1]


def test_a_terminal_gets_a_live_bar(workplace: Path) -> None:
    """A real pseudo-terminal: the bar is redrawn in place and says loss, accuracy, speed and time left."""
    command = [sys.executable, str(ROOT / "train.py"), *TINY, "debug=fast"]
    main_end, other_end = os.openpty()
    process = subprocess.Popen(
        command, cwd=workplace, stdout=other_end, stderr=subprocess.STDOUT, env={**os.environ, "TERM": "xterm"}
    )
    os.close(other_end)
    said = b""
    while True:
        try:
            said += os.read(main_end, 65536)
        except OSError:  # Linux ends a terminal whose other end is closed with EIO
            break
    os.close(main_end)
    assert process.wait(timeout=60) == 0
    text = said.decode()
    assert "\x1b[2K" in text, "a line was redrawn"
    bar = next(line for line in text.splitlines() if "img/s" in line)
    for part in ("epoch ", "loss ", "accuracy ", "img/s", "ETA "):
        assert part in bar
    assert "Results" in text


@pytest.mark.parametrize("finetune", ["head", "last_stage"])
def test_frozen_parts_keep_their_weights_and_statistics(finetune: str, trained: Path, run: Run) -> None:
    done = run("train", *TINY, f"init_from={trained}", f"model.finetune={finetune}")
    before, after = (load_file(folder / "bundle" / "weights.safetensors") for folder in (trained, done))
    moved = {key for key in before if not torch.equal(before[key], after[key])}
    assert moved >= {"backbone.fc.weight", "backbone.fc.bias"}
    frozen = {key for key in before if "fc." not in key and (finetune == "head" or "layer4" not in key)}
    assert len(frozen) > 20
    assert not moved & frozen, "weights, running means and batch counts alike"
    assert finetune == "head" or any("layer4" in key and "running_mean" in key for key in moved)


ONE_STEP = ("trainer.max_epochs=1", "trainer.limit_train_batches=1", "scheduler=constant", "optimizer.lr=1e30")
LATE = ("objective._target_=tests.e2e.diverging.Late", "trainer.max_epochs=3")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*ONE_STEP, "optimizer=adamw", "callbacks=ema"], "the outputs of 19 of 19 val photos are not finite in epoch"),
        ([*ONE_STEP, "data.val_fraction=0", "objective_metric=null"], "the outputs of 48 of 48 test photos"),
        (["optimizer.lr=1e30", "data.val_fraction=0", "objective_metric=null"], "train/loss is nan in epoch 1"),
    ],
)
def test_diverged_run_says_so(
    words: list[str], said: str, run: Run, workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the runs of one step the training loss is finite."""
    with pytest.raises(SystemExit) as exit_:
        run("train", *TINY, *words)
    assert exit_.value.code == 1
    assert "training diverged; lower optimizer.lr" in capsys.readouterr().err
    folder = latest(workplace, "train")
    status = read_json(folder / "status.json")
    assert (status["state"], status["error"]["type"]) == ("failed", "DivergedError")
    assert said in status["error"]["message"]
    assert not (folder / "bundle").exists()
    assert not (folder / "metrics.json").exists()
    if "test" in said:
        rows = read_csv(folder / "predictions.csv")
        assert {(row["predicted"], row["p_1"], row["error"]) for row in rows} == {
            ("", "", "the model's outputs are not finite numbers")
        }


def check_late(folder: Path) -> None:
    """The epoch before it diverged is kept, and nothing of the one in which it did."""
    status = read_json(folder / "status.json")
    assert (status["state"], status["error"]["type"]) == ("failed", "DivergedError")
    assert "val/loss is inf in epoch 2" in status["error"]["message"]
    assert [row["epoch"] for row in read_csv(folder / "metrics.csv")] == ["1"]
    for name in ("best.ckpt", "last.ckpt"):
        checkpoint = torch.load(folder / "checkpoints" / name, weights_only=True)
        assert checkpoint["binventory"]["best"]["epoch"] == checkpoint["binventory"]["position"]["epoch"] == 1
    assert not (folder / "bundle").exists()


def test_the_best_epoch_is_a_finite_one(run: Run, workplace: Path) -> None:
    with pytest.raises(SystemExit, match="1"):
        run("train", *TINY, *LATE, "objective_metric=val/loss")
    check_late(latest(workplace, "train"))


@pytest.mark.long
def test_all_ranks_fail_when_one_diverges(workplace: Path, jobs: Jobs) -> None:
    command = [*TINY, *LATE, "objective_metric=val/loss", "trainer=ddp_cpu", "trainer.devices=2"]
    assert jobs.start(workplace, "train", command, num_ranks=2).wait(timeout_s=60) == 1
    check_late(latest(workplace, "train"))


@pytest.mark.parametrize(
    ("override", "said"),
    [("data.counts=[2,3,4]", "data.counts=[1, 2, 3, 4, 5]"), ("model.name=resnet10t", "model.name=test_resnet")],
)
def test_init_from_another_network_is_one_line(
    trained: Path, override: str, said: str, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        run("train", *TINY, f"init_from={trained}", override)
    assert exit_.value.code == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: init_from=")
    assert said in error
