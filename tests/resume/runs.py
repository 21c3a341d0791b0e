"""Small trainings that are stopped and resumed, and the undisturbed runs that they must equal."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.resume.compare import differences
from tests.resume.jobs import Job, Jobs
from tests.resume.trap import PLAN, TARGET

# 173 bins to train on, 19 to validate, 48 to test: 8 batches an epoch, 1 of validation, 2 of testing.
SMALL = [
    "data.reader.num_bins=240",
    "data.reader.photo_size=48",
    "data.image_size=32",
    "data.batch_size=24",
    "data.num_workers=0",
    "trainer.max_epochs=3",
    TARGET,
]
BATCHES = 8
EPOCHS = 3


class Lab:
    """A folder whose runs share prepared bins.

    Args:
        jobs: what starts them.
        folder: an empty one.
    """

    def __init__(self, jobs: Jobs, folder: Path) -> None:
        self.jobs = jobs
        self.folder = folder
        self._undisturbed: dict[tuple[str, ...], Path] = {}
        self._seconds: dict[Path, float] = {}
        self._num_series = 0
        # Once, so that the first run takes no longer than the others.
        job = jobs.start(folder, "prepare", [override for override in SMALL if override.startswith("data.")])
        assert job.wait() == 0, job.stderr

    def series(self, *overrides: str, num_ranks: int = 1) -> Series:
        """Begin a series of attempts at one training."""
        self._num_series += 1
        return Series(self, self.folder / f"series{self._num_series}", overrides, num_ranks)

    def undisturbed(self, *overrides: str, num_ranks: int = 1) -> Path:
        """Return the run folder of this training when nothing happens to it; done once."""
        key = (*sorted(overrides), str(num_ranks))
        if key not in self._undisturbed:
            series = self.series(*overrides, num_ranks=num_ranks)
            started = time.monotonic()
            job = series.start()
            assert job.wait() == 0, job.stderr
            self._undisturbed[key] = series.run
            self._seconds[series.run] = time.monotonic() - started
        return self._undisturbed[key]

    def seconds(self, undisturbed: Path) -> float:
        """Return how long an undisturbed run took."""
        return self._seconds[undisturbed]


class Series:
    """Attempts at one training in an output folder of its own."""

    def __init__(self, lab: Lab, output_dir: Path, overrides: Sequence[str], num_ranks: int) -> None:
        self.lab = lab
        self.output_dir = output_dir
        self.overrides = [*SMALL, *overrides, f"paths.output_dir={output_dir}"]
        self.num_ranks = num_ranks
        self.variables: dict[str, str] = {}  # environment variables of its jobs
        self.forks_ranks = True  # False: they are started as the product does, which costs seconds
        if num_ranks > 1:
            self.overrides += ["trainer=ddp_cpu", f"trainer.devices={num_ranks}"]

    def start(self, *added: str, plan: dict[str, Any] | None = None) -> Job:
        """Start the command with what is added to it; a plan is what the trap does."""
        return self.command(*self.overrides, *added, plan=plan)

    def resume_by_folder(self, *added: str, plan: dict[str, Any] | None = None) -> Job:
        """Start `train.py resume=DIR`, which takes everything else from the run."""
        return self.command(f"resume={self.output_dir / 'train' / self.run.name}", *added, plan=plan)

    def command(self, *overrides: str, plan: dict[str, Any] | None = None) -> Job:
        env = {"BINVENTORY_ALLOW_TARGETS": "tests.", **self.variables}  # the trap stands in the run's own files
        if plan is not None:
            env[PLAN] = json.dumps({"to": "self", "rank": 0, **plan})
        num_forks = self.num_ranks if self.forks_ranks else 1
        return self.lab.jobs.start(self.lab.folder, "train", overrides, num_ranks=num_forks, **env)

    @property
    def run(self) -> Path:
        """The one run folder there is, as this process sees it.

        A kill before provenance.json leaves a folder without anything to go on with; it does not count.
        """
        (run,) = (path.parent for path in self.lab.jobs.seen(self.output_dir).glob("train/*/provenance.json"))
        return run

    @property
    def status(self) -> dict[str, Any]:
        read: dict[str, Any] = json.loads((self.run / "status.json").read_text())
        return read

    def is_done(self) -> bool:
        """Return whether the run is complete; its process may still be ending."""
        runs = list(self.output_dir.glob("train/*/provenance.json"))
        return bool(runs) and self.status["state"] == "done"

    def position(self) -> dict[str, int]:
        """Return where last.ckpt lies; the start of training where there is none."""
        path = self.run / "checkpoints" / "last.ckpt"
        if not path.exists():
            return {"epoch": 0, "batches": 0, "step": 0}
        found: dict[str, int] = torch.load(path, weights_only=True)["binventory"]["position"]
        return found

    def check_equals(self, undisturbed: Path) -> None:
        """Fail unless the run is done and equal to the undisturbed one."""
        assert self.status["state"] == "done"
        assert self.status["exit_code"] == 0
        found = differences(undisturbed, self.run)
        assert not found, "\n".join([f"{len(found)} values differ", *found[:12]])
