"""What the bottleneck report costs a training: the aim is 1 % of a step of the default experiment at most.

Three measurements, each with and without the report in turn, medians of five pairs; appended to results/sampling.csv
by `python benchmarks/sampling.py`:

- the default experiment (`model=tiny`, drawn bins, one epoch): CPU seconds of the whole command, its thread's too;
- a loop whose steps do next to nothing: what the callback and Lightning's calls of it add to a step;
- one look at the machine, as the thread takes one every `callbacks.resources.sample_every_s`.

The cost is the sum of the last two, as a share of the default experiment's step: the first is the check, and noisier.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from binventory.bottlenecks.machine import Machine
from binventory.callbacks.resources import BottleneckReport
from binventory.config.compose import compose_checked
from binventory.launch.entry import main as launch
from recording import record

NUM_PAIRS, NUM_EPOCHS, NUM_STEPS, NUM_LOOKS = 5, 1, 5000, 500


class Nothing(pl.LightningModule):
    """A step that costs what Lightning's loop costs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        """Return a loss."""
        return (self.weight * batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the cheapest optimizer."""
        return torch.optim.SGD(self.parameters(), 0.1)


def train_default(sample_every_s: str) -> tuple[float, float]:
    """Train the default experiment and return the CPU seconds it took and, where it is reported, those of a step."""
    known = set(Path.cwd().glob("outputs/train/*"))
    asked = [f"trainer.max_epochs={NUM_EPOCHS}", f"callbacks.resources.sample_every_s={sample_every_s}"]
    started_s = time.process_time()
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        launch("train", asked)
    cpu_s = time.process_time() - started_s
    (run,) = set(Path.cwd().glob("outputs/train/*")) - known
    report = run / "bottlenecks.json"
    step_s = json.loads(report.read_text())["overview"]["step_median_s"] if report.exists() else 0.0
    return cpu_s, step_s


def step_of_nothing_us(callbacks: list[pl.Callback]) -> float:
    """Return the microseconds of CPU time, which others on the machine disturb least, of a step that does nothing."""
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=callbacks, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        started = time.process_time()
        trainer.fit(Nothing(), DataLoader(torch.zeros(NUM_STEPS)))
    return 1e6 * (time.process_time() - started) / NUM_STEPS


def look_us() -> float:
    """Return the microseconds of CPU time of a look at the machine."""
    machine = Machine(None)
    started = time.thread_time()
    for _ in range(NUM_LOOKS):
        machine.look()
    return 1e6 * (time.thread_time() - started) / NUM_LOOKS


def main() -> None:
    """Measure, append the result, print it."""
    config = compose_checked("train", [])[0]
    sample_every_s = config.callbacks.resources.sample_every_s
    pairs, ratios, added_us = [], [], []
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        train_default("null")  # draws the bins
        for _ in range(NUM_PAIRS):
            without, _ = train_default("null")
            with_it, step_s = train_default(str(sample_every_s))
            pairs.append((without, with_it, step_s))
            ratios.append(with_it / without)
            report = BottleneckReport(Path(scratch), sample_every_s, config.data, is_compiled=False)
            plain_us = step_of_nothing_us([])
            added_us.append(step_of_nothing_us([report]) - plain_us)
    step_ms = 1e3 * statistics.median(step_s for _, _, step_s in pairs)
    look = look_us()
    cost_percent = 100 * (statistics.median(added_us) / (1e3 * step_ms) + look / (1e6 * sample_every_s))
    row = {
        "psutil": metadata.version("psutil"),
        "num_pairs": NUM_PAIRS,
        "step_ms": round(step_ms, 2),
        "added_us_per_step": round(statistics.median(added_us), 1),
        "look_us": round(look),
        "cost_percent": round(cost_percent, 3),
        "cpu_ratio_median": round(statistics.median(ratios), 4),
        "cpu_ratio_min": round(min(ratios), 4),
        "cpu_ratio_max": round(max(ratios), 4),
    }
    record("sampling", [row])


if __name__ == "__main__":
    main()
