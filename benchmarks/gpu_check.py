"""The steps of gpu_check.sh, one a call: `python benchmarks/gpu_check.py STEP`.

A step runs the commands of a user on drawn or random photos, checks what they leave and puts its figures into
gpu_check.json. Rows of figures go into CSVs beside it, with the columns of benchmarks/results/.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file

import recording
from binventory.files import write_json
from binventory.launch.entry import main as launch
from photos import ABID, draw_photos
from rounds import quietly

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MAX_ARCHIVE_BYTES = 45_000_000
TOLERANCE = 5e-3  # of a probability: a GPU's convolutions multiply in TF32
AIMS = {"resnet18": 9000, "resnet50": 3500, "resnet101": 1900}  # images per second at 224 pixels
AIM_FREE_LOADER = 0.95
AIM_FORTY_EPOCHS_S = 180


class NotApplicableError(Exception):
    """This machine has no such path."""


class Check:
    """The steps, as methods; each returns its figures, and raises AssertionError where something is wrong.

    Args:
        options: the command line's.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.is_gpu = options.device == "gpu"
        self.small = [
            "data.reader.num_bins=60" if options.tiny else "data.reader.num_bins=600",
            *(["model=tiny", "data.image_size=32"] if options.tiny else ["model=resnet18", "data.image_size=96"]),
            *("model.weights=none", "data.batch_size=16", "trainer.max_epochs=2", f"trainer={options.device}"),
        ]

    def train(self, *overrides: str) -> Path:
        """Run train.py on drawn bins; return the run folder."""
        return run_folder("train", [*self.small, *overrides])

    # Every path that is taken on a GPU alone

    def machine(self) -> dict[str, Any]:
        """What this is run on."""
        assert not self.is_gpu or torch.cuda.is_available(), "torch sees no GPU"
        gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
        return {**recording.about(), "gpus": gpus, "cuda": torch.version.cuda, "cores": os.cpu_count()}

    def bf16(self) -> dict[str, Any]:
        """Train in bfloat16, which trainer.precision=auto means on a GPU."""
        run = self.train(*([] if self.is_gpu else ["trainer.precision=bf16-mixed"]))
        return trained(run, precision="bf16-mixed")

    def fp16(self) -> dict[str, Any]:
        """Train in float16 with its scaled gradients."""
        if not self.is_gpu:
            raise NotApplicableError("float16 needs a GPU")
        return trained(self.train("trainer.precision=16-mixed"), precision="16-mixed")

    def compile(self) -> dict[str, Any]:
        """Compile the network in place: names in the bundle stay."""
        started = time.perf_counter()
        run = self.train("trainer.compile=true")
        seconds = time.perf_counter() - started
        plain = weights(self.train("trainer.max_epochs=1"))
        assert set(weights(run)) == set(plain), "a compiled network's weights have other names"
        return {**trained(run), "seconds_with_compiling": round(seconds, 1)}

    def ddp(self) -> dict[str, Any]:
        """Train on every GPU, a rank each; on a CPU on two ranks."""
        number = torch.cuda.device_count() if self.is_gpu else 2
        run = self.train(f"trainer={'ddp' if self.is_gpu else 'ddp_cpu'}", f"trainer.devices={number}")
        devices = read_json(run / "provenance.json")["device"]["devices"]
        assert devices == number, f"{devices} devices of {number}"
        return {**trained(run), "ranks": number}

    def residence(self) -> dict[str, Any]:
        """Photos on the device, in memory, on disk, and decoded in the run: the same weights to the bit."""
        exact = ["trainer.deterministic=true", "trainer.precision=32-true"]
        found = {place: bits(self.train(*exact, f"data.residence={place}")) for place in ("device", "memory", "disk")}
        with tempfile.TemporaryDirectory(dir=".") as cold:
            found["cold"] = bits(self.train(*exact, "data.residence=disk", f"paths.cache_dir={cold}"))
        assert len(set(found.values())) == 1, f"weights differ: {found}"
        return {"places": list(found)}

    def nvml(self) -> dict[str, Any]:
        """Find figures of the GPU in the bottleneck report."""
        run = self.train("callbacks.resources.sample_every_s=0.05", "trainer.max_epochs=6")
        report = read_json(run / "bottlenecks.json")
        if not self.is_gpu:
            raise NotApplicableError("NVML tells of GPUs")
        problem = report["setup"].get("gpu_problem")
        assert not problem, problem
        verdicts = {finding["rule"]: finding["verdict"] for finding in report["findings"]}
        for rule in ("GPUMemoryIncrease", "LowGPUUtilization", "BatchSize"):
            assert verdicts[rule] != "not evaluable", f"{rule}: {verdicts[rule]}"
        return verdicts

    def ema(self) -> dict[str, Any]:
        """Average the weights: the average is shipped, and predict.py gives the test's probabilities with it."""
        run = self.train("callbacks=ema", "callbacks.ema.decay=0.9", "trainer.precision=32-true")
        plain = weights(self.train("trainer.precision=32-true"))
        assert any(not torch.equal(value, plain[name]) for name, value in weights(run).items()), "nothing was averaged"
        return {**trained(run), "largest_difference": largest_difference(run, self.predicted(run, self.options.device))}

    def resume(self) -> dict[str, Any]:
        """Stop by SIGTERM, resume, and end with the bits of a run that was never stopped."""
        exact = ["trainer.deterministic=true", "trainer.max_epochs=3", "callbacks.progress.every_n_steps=1"]
        whole = self.train(*exact)
        known = set(Path("outputs/train").iterdir())
        command = [sys.executable, str(ROOT / "train.py"), *self.small, *exact]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603  our own
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("epoch 2/3 step 1/"):
                    process.send_signal(signal.SIGTERM)
                    break
            process.stdout.read()
        assert process.returncode == 143, f"exit code {process.returncode} after SIGTERM"
        (stopped,) = set(Path("outputs/train").iterdir()) - known
        quietly(partial(launch, "train", [f"resume={stopped}"]))
        for name in ("bundle/weights.safetensors", "predictions.csv"):
            same = (whole / name).read_bytes() == (stopped / name).read_bytes()
            assert same, f"{name} differs from that of a run that was never stopped"
        return trained(stopped)

    def predict(self) -> dict[str, Any]:
        """Predict on the GPU as on the CPU."""
        run = self.train("trainer.precision=32-true")
        return {device: largest_difference(run, self.predicted(run, device)) for device in ("cpu", self.options.device)}

    def predicted(self, run: Path, device: str) -> Path:
        """Predict the run's test photos; return the folder."""
        with Path("test.csv").open("w", newline="") as table:
            rows = csv.writer(table)
            rows.writerow(["path", "id"])
            rows.writerows([Path(row["path"]).absolute(), row["id"]] for row in rows_of(run / "predictions.csv"))
        return run_folder("predict", [f"run={run}", "input=test.csv", f"accelerator={device}", "contact_sheet=0"])

    # Images per second

    def resnet18(self) -> dict[str, Any]:
        """Train ResNet-18 at 224 pixels."""
        return self.images_per_second("resnet18")

    def resnet50(self) -> dict[str, Any]:
        """Train ResNet-50 at 224 pixels."""
        return self.images_per_second("resnet50")

    def resnet101(self) -> dict[str, Any]:
        """Train ResNet-101 at 224 pixels."""
        return self.images_per_second("resnet101")

    def images_per_second(self, model: str) -> dict[str, Any]:
        """Train some epochs; the first does not count."""
        number, size, batch, epochs = (40, 64, 8, 2) if self.options.tiny else (4096, 224, 256, 8)
        run = run_folder("train", [*random_photos(number, size), *plain(model, size, batch, epochs, self.options)])
        later = [float(row["seconds"]) for row in rows_of(run / "metrics.csv")][1:]
        photos = num_trained(run)
        per_second = round(photos / statistics.median(later), 1)
        row = {"model": model, "image_size": size, "batch_size": batch, "num_photos": photos, "epochs": epochs}
        row |= {"device": self.options.device, "images_per_s": per_second, "aim": AIMS[model]}
        recording.record("gpu_check", [row])
        return {"images_per_s": per_second, "aim": AIMS[model], "reached": per_second >= AIMS[model]}

    def free_loader(self) -> dict[str, Any]:
        """Compare ResNet-50 with batches that cost nothing."""
        words = ["--model", "resnet50", "--size", "224", "--photos", "4096", "--batch", "256", "--epochs", "6"]
        tiny = ["--model", "tiny", "--size", "32", "--photos", "40", "--batch", "8", "--epochs", "1"]
        rows = self.training(*(tiny if self.options.tiny else words), "--rounds", "3", "--ways", "c_train", "d_free")
        share = float(next(row for row in rows if row["way"] == "d_free")["c_is_faster"])
        return {"share": share, "aim": AIM_FREE_LOADER, "reached": share >= AIM_FREE_LOADER}

    def forty_epochs(self) -> dict[str, Any]:
        """Train ResNet-50 at 256 pixels on 8,352 photos for 40 epochs."""
        words = ["--model", "resnet50", "--size", "256", "--photos", "8352", "--batch", "256", "--epochs", "40"]
        tiny = ["--model", "tiny", "--size", "32", "--photos", "40", "--batch", "8", "--epochs", "2"]
        rows = self.training(*(tiny if self.options.tiny else words), "--rounds", "1", "--ways", "c_train")
        seconds = float(rows[-1]["median_s"])
        return {"seconds": seconds, "aim": AIM_FORTY_EPOCHS_S, "reached": seconds <= AIM_FORTY_EPOCHS_S}

    def training(self, *words: str) -> list[dict[str, str]]:
        """Run training.py on random photos; return the rows that it adds."""
        command = [sys.executable, str(HERE / "training.py"), "--random", "--device", self.options.device, *words]
        results = self.options.out / "training.csv"
        before = len(rows_of(results))
        subprocess.run(command, check=True)  # noqa: S603  our own
        return rows_of(results)[before:]

    # Real photos

    def train_real(self) -> dict[str, Any]:
        """Train on the photos of the archive, grouped split, from random weights."""
        assert self.options.photos.is_file(), f"{self.options.photos}: no archive; make it by `gpu_check.sh pack`"
        with tarfile.open(self.options.photos) as archive:
            archive.extractall("real", filter="data")
        size, epochs = (32, 1) if self.options.tiny else (224, 40)
        overrides = ["data=abid", "data.source=real", *plain("resnet50", size, 64, epochs, self.options)]
        overrides += ["augment=light", "data.val_fraction=0.1", "objective_metric=val/accuracy", "scheduler=cosine"]
        overrides += ["trainer.limit_test_batches=null", *(["data.limit=60"] if self.options.tiny else [])]
        run = run_folder("train", overrides)
        figures = read_json(run / "metrics.json")
        names = ("accuracy", "rmse", "expected_rmse", "num_images")
        return {name: figures["test"][name] for name in names} | {"train_seconds": figures["train_seconds"]}


def plain(model: str, size: int, batch: int, epochs: int, options: argparse.Namespace) -> list[str]:
    """Return the overrides of a training that measures nothing but training."""
    model = "tiny" if options.tiny else model
    return [
        *(f"model={model}", "model.weights=none", f"trainer={options.device}", f"trainer.max_epochs={epochs}"),
        *(f"data.image_size={size}", f"data.batch_size={batch}", "data.val_fraction=0", "objective_metric=null"),
        *("trainer.limit_test_batches=1", "optimizer=sgd", "optimizer.lr=0.01", "scheduler=constant"),
    ]


def random_photos(number: int, size: int) -> list[str]:
    """Return the overrides that name drawn photos, which are drawn once."""
    folder = Path(f"random{number}x{size}")
    if not (folder / "done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        draw_photos(folder / "photos", number, size)
        (folder / "done").touch()
    return ["data=imagefolder", f"data.source={folder / 'photos'}"]


def num_trained(run: Path) -> int:
    """Return how many photos an epoch trained on."""
    index = pq.read_table(read_json(run / "provenance.json")["data"]["index"], columns=["split"])
    return index["split"].to_pylist().count("train")


def run_folder(task: str, overrides: list[str]) -> Path:
    """Run a task as its command line would; return the run folder that it made."""
    folder = Path("outputs") / task
    known = set(folder.glob("*"))
    quietly(partial(launch, task, overrides))
    (made,) = set(folder.glob("*")) - known
    return made


def trained(run: Path, precision: str | None = None) -> dict[str, Any]:
    """Check that a run is done and its figures finite; return some."""
    status, figures = read_json(run / "status.json"), read_json(run / "metrics.json")
    assert status["state"] == "done", status
    used = read_json(run / "provenance.json")["device"]["precision"]
    assert precision in (None, used), f"trained in {used}, not in {precision}"
    assert all(torch.isfinite(value.float()).all() for value in weights(run).values()), "weights are not finite"
    test = {name: figures["test"][name] for name in ("accuracy", "cross_entropy")}
    assert all(map(math.isfinite, test.values())), test
    return {"precision": used, **test, "images_per_s": figures["images_per_second"]}


def weights(run: Path) -> dict[str, torch.Tensor]:
    """Return the weights that a run ships."""
    return load_file(run / "bundle" / "weights.safetensors")


def bits(run: Path) -> bytes:
    """Return all of a run's weights as one text of bytes."""
    return (run / "bundle" / "weights.safetensors").read_bytes()


def largest_difference(run: Path, predicted: Path) -> float:
    """Return by how much a probability differs at most, and check that it is little."""
    tables = [{row["id"]: row for row in rows_of(folder / "predictions.csv")} for folder in (run, predicted)]
    assert set(tables[0]) == set(tables[1]), "other photos"
    columns = [name for name in next(iter(tables[0].values())) if name.startswith("p_")]
    values = [np.array([[float(table[key][name]) for name in columns] for key in sorted(table)]) for table in tables]
    difference = float(np.abs(values[0] - values[1]).max())
    assert difference <= TOLERANCE, f"probabilities differ by {difference:.2g}"
    return difference


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV; none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> Any:
    """Return what a JSON file holds; nothing where there is no file."""
    return json.loads(path.read_text()) if path.exists() else {}


def pack(archive: Path) -> None:
    """Write real photos and their metadata into an archive, in the order of their ids, as many as it may hold."""
    source = ABID / "udacity224"
    archive.parent.mkdir(parents=True, exist_ok=True)
    with archive.open("wb") as raw, tarfile.open(fileobj=raw, mode="w:gz") as file:
        for photo in sorted((source / "bin-images").glob("*.jpg")):
            if raw.tell() > MAX_ARCHIVE_BYTES - 2**20:  # what gzip still holds
                break
            for path in (photo, source / "metadata" / f"{photo.stem}.json"):
                file.add(path, path.relative_to(source))
    print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB")


def note(report: Path, step: str, entry: dict[str, Any]) -> None:
    """Put what became of a step into the report."""
    write_json(report, {**read_json(report), step: entry})
    print(f"{step}: " + ", ".join(f"{name} {value}" for name, value in entry.items()), flush=True)


def attempt(check: Check, step: str, report: Path) -> None:
    """Run a step unless it is through, and note what became of it."""
    if read_json(report).get(step, {}).get("state") in ("passed", "not applicable"):
        return
    work: Callable[[], dict[str, Any]] = getattr(check, step)
    started = time.perf_counter()
    try:
        entry = {"state": "passed", **work()}
    except NotApplicableError as error:
        entry = {"state": "not applicable", "reason": str(error)}
    except (AssertionError, subprocess.CalledProcessError, SystemExit) as error:
        entry = {"state": "failed", "reason": f"{type(error).__name__}: {error}"[:2000]}
    note(report, step, {**entry, "seconds": round(time.perf_counter() - started, 1)})


def summary(report: Path, steps: list[str]) -> bool:
    """Print a line for each step; return whether all are through."""
    found = read_json(report)
    states = {step: found.get(step, {}).get("state", "not reached") for step in steps}
    print(f"{report}: " + ", ".join(f"{step} {state}" for step, state in states.items()))
    return all(state in ("passed", "not applicable") for state in states.values())


def append_rows(out: Path) -> None:
    """Append what was measured elsewhere to benchmarks/results/, as it was measured."""
    for path in sorted(out.glob("*.csv")):
        recording.append(recording.RESULTS / path.name, rows_of(path))


def options() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", help="one of gpu_check.sh's, pack, rows, summary STEP … or note STEP TEXT")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu_check"))
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "binventory-gpu-check")
    parser.add_argument("--photos", type=Path, default=Path(".cache/gpu_photos.tar.gz"))
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu")
    parser.add_argument("--tiny", action="store_true")
    found = parser.parse_args()
    for name in ("out", "work", "photos"):
        setattr(found, name, getattr(found, name).absolute())
    return found


def main() -> None:
    """Do one step."""
    asked = options()
    report = asked.out / "gpu_check.json"
    if asked.step == "pack":
        return pack(asked.photos)
    if asked.step == "rows":
        return append_rows(asked.out)
    if asked.step == "summary":
        sys.exit(0 if summary(report, asked.words) else 1)
    if asked.step == "note":
        return note(report, asked.words[0], {"state": "failed", "reason": asked.words[1]})
    for folder in (asked.out, asked.work):
        folder.mkdir(parents=True, exist_ok=True)
    os.chdir(asked.work)
    os.environ[recording.RESULTS_VARIABLE] = str(asked.out)  # also of training.py
    recording.RESULTS = asked.out
    return attempt(Check(asked), asked.step, report)


if __name__ == "__main__":
    main()
