"""Two commits on one machine, side by side: `python -m tests.side_by_side OLD NEW` runs the same commands with both.

What a user gets must be the same to the bit: weights, predictions, figures but for times, cache keys, the fingerprint
of the data, exit codes. Prints a line for each command and each difference; exit code 1 where there is one.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.resume.compare import flat, is_left_out
from tests.running import ROOT, TINY

SMALL = [*TINY, "paths.cache_dir=cache"]
RESNET = ["model=resnet18", "model.weights=none"]
# What trains: overrides, and those of a later command in the run's folder.
TRAININGS: dict[str, list[str]] = {
    "default": [],
    "resnet18": [*RESNET, "optimizer=adamw", "scheduler=constant"],
    "ema and early stopping": ["callbacks=ema", "+callbacks.early_stopping.patience_epochs=1", "trainer.max_epochs=4"],
    "augmented": ["augment=light", "data.resize=letterbox", "data.normalize=dataset"],
    "head": [*RESNET, "model.finetune=head"],
    "head, uncached": [*RESNET, "model.finetune=head", "model.cache_features=false"],
    "accumulated": ["trainer.accumulate_grad_batches=3", "trainer.gradient_clip_val=0.5", "scheduler=step"],
    "two ranks": ["trainer=ddp_cpu", "data.val_fraction=0.2"],
    "report split": ["data.split=report", "data.val_fraction=0", "objective_metric=null", "seed=3"],
    "bfloat16": ["trainer.precision=bf16-mixed", "data.cache=false", "data.resize=crop"],
}
MISTAKES = [["model=resent18"], ["optimizer.lr=-1"], ["data.source=nowhere", "data=imagefolder"], ["+typo=1"]]


class Side:
    """A commit's checkout and a folder to run in.

    Args:
        commit: anything that git takes for one.
        folder: an empty one.
    """

    def __init__(self, commit: str, folder: Path) -> None:
        self.commit, self.checkout, self.work = commit, folder / "checkout", folder / "work"
        self.work.mkdir()
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", self.checkout, commit], cwd=ROOT, check=True)

    def close(self) -> None:
        """Remove the checkout."""
        subprocess.run(["git", "worktree", "remove", "--force", self.checkout], cwd=ROOT, check=True)

    def run(self, script: str, *overrides: str) -> int:
        """Run a command and return its exit code."""
        command = [sys.executable, str(self.checkout / f"{script}.py"), *overrides]
        environment = {**os.environ, "PYTHONPATH": str(self.checkout / "src"), "WANDB_MODE": "offline"}
        done = subprocess.run(command, cwd=self.work, env=environment, capture_output=True, text=True, check=False)
        if done.returncode not in (0, 2):
            print(done.stdout, done.stderr, sep="\n", file=sys.stderr)
        return done.returncode

    def latest(self, task: str) -> Path:
        """Return the newest run folder."""
        return max(self.work.glob(f"outputs/{task}/*"), key=lambda run: run.stat().st_mtime_ns)

    def trained(self, overrides: list[str]) -> dict[str, Any]:
        """Train and predict; return everything that must be the same."""
        found: dict[str, Any] = {"exit code": self.run("train", *SMALL, *overrides)}
        run = self.latest("train")
        found |= dict(results(run))
        found["predict, exit code"] = self.run(
            "predict", f"run={run}", f"input={photos_of_test(run)}", "contact_sheet=0"
        )
        found |= dict(table("predict", self.latest("predict") / "predictions.csv"))
        kept = sorted(str(path.relative_to(self.work)) for path in (self.work / "cache").glob("*/*"))
        return found | {"cache keys": [name for name in kept if name.startswith(("cache/photos/", "cache/features/"))]}


def results(run: Path) -> Iterator[tuple[str, Any]]:
    """Give every value of a run's results with its path."""
    yield "weights", (run / "bundle" / "weights.safetensors").read_bytes()
    yield from flat("metrics.json", json.loads((run / "metrics.json").read_text()))
    yield "fingerprint", json.loads((run / "provenance.json").read_text())["data"]["fingerprint"]
    for name in ("metrics.csv", "predictions.csv"):
        yield from table(name, run / name)


def table(name: str, path: Path) -> Iterator[tuple[str, Any]]:
    """Give every cell of a CSV but for paths, which differ with the folder."""
    with path.open(newline="") as file:
        rows = [{key: value for key, value in row.items() if key != "path"} for row in csv.DictReader(file)]
    yield from flat(name, rows)


def photos_of_test(run: Path) -> Path:
    """Return a table of the run's test photos."""
    with (run / "predictions.csv").open(newline="") as file:
        rows = [(row["path"], row["id"]) for row in csv.DictReader(file)]
    with (run.parent / "test.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("path", "id"), *((Path(path).absolute(), one) for path, one in rows)])
    return run.parent / "test.csv"


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Return the paths of what differs, times left out."""
    paths = [path for path in old.keys() | new.keys() if not is_left_out(path)]
    return sorted(path for path in paths if (path in old, old.get(path)) != (path in new, new.get(path)))


def main() -> None:
    """Compare two commits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old")
    parser.add_argument("new")
    asked = parser.parse_args()
    num_different = 0
    with tempfile.TemporaryDirectory() as scratch:
        sides = []
        try:
            for name in ("old", "new"):
                (Path(scratch) / name).mkdir()
                sides.append(Side(getattr(asked, name), Path(scratch) / name))
            for title, overrides in TRAININGS.items():
                found = differences(*(side.trained(overrides) for side in sides))
                num_different += bool(found)
                print(
                    f"{title}: " + (f"differs in {len(found)}: {', '.join(found[:8])}" if found else "equal"),
                    flush=True,
                )
            for overrides in MISTAKES:
                codes = [side.run("train", *overrides) for side in sides]
                num_different += len(set(codes)) > 1
                print(f"{' '.join(overrides)}: exit codes {codes[0]} and {codes[1]}", flush=True)
        finally:
            for side in sides:
                side.close()
    sys.exit(1 if num_different else 0)


if __name__ == "__main__":
    main()
