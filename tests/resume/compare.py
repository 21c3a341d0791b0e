"""Compare two finished runs: every tensor, number, text and file name, at tolerance 0."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

CHECKPOINTS = ("checkpoints/last.ckpt", "checkpoints/best.ckpt")
TABLES = ("metrics.csv", "predictions.csv")

# All that may differ between a run that was trained through and one that was stopped and resumed. Patterns of whole
# paths as `contents` gives them; of status.json, config.yaml, provenance.json and logs, which tell who ran when and where,
# only that they are there is compared. Whatever is not named here must be there on both sides, and equal.
LEFT_OUT = (
    r"metrics\.json/train_seconds",
    r"metrics\.json/images_per_second",
    r"metrics\.csv/\d+/seconds",
    # The same clocks, as checkpoints carry them on.
    r"checkpoints/\w+\.ckpt/callbacks/ProgressReport/train_seconds",
    r"checkpoints/\w+\.ckpt/callbacks/MetricsCsv/(rows/\d+/)?seconds",
)


def differences(expected: Path, found: Path) -> list[str]:
    """Return what differs between two run folders, one line each: the path to the value and both values."""
    left, right = dict(contents(expected)), dict(contents(found))
    lines = []
    for path in sorted(left.keys() | right.keys()):
        if is_left_out(path):
            continue
        if path not in left or path not in right:
            lines.append(f"{path}: only in the {'first' if path in left else 'second'}")
        elif left[path] != right[path]:
            lines.append(f"{path}: {_short(left[path])} != {_short(right[path])}")
    return lines


def is_left_out(path: str) -> bool:
    """Return whether a value may differ between two runs that are otherwise the same."""
    return any(re.fullmatch(pattern, path) for pattern in LEFT_OUT)


def contents(run: Path) -> Iterator[tuple[str, Any]]:
    """Give every value of a run folder's results with its path; equal values are equal to the last bit."""
    for path in sorted(run.rglob("*")):
        if path.is_file():
            yield f"files/{path.relative_to(run)}", True
    for name in CHECKPOINTS:
        if (run / name).exists():
            yield from flat(name, torch.load(run / name, map_location="cpu", weights_only=True))
    yield from flat("bundle/weights", load_file(run / "bundle" / "weights.safetensors"))
    yield from flat("bundle.json", json.loads((run / "bundle" / "bundle.json").read_text()))
    yield from flat("metrics.json", json.loads((run / "metrics.json").read_text()))
    for name in TABLES:
        with (run / name).open(newline="") as file:
            rows = list(csv.DictReader(file))
        yield f"{name}/columns", list(rows[0])
        yield from flat(name, rows)


def flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Give every leaf of nested plain values and tensors with its path; tensors as dtype, shape and bytes."""
    if isinstance(value, dict):
        yield f"{path}/", len(value)  # an empty one is something too
        for key, child in value.items():
            yield from flat(f"{path}/{key}", child)
    elif isinstance(value, list | tuple):
        yield f"{path}/", len(value)
        for place, child in enumerate(value):
            yield from flat(f"{path}/{place}", child)
    elif isinstance(value, torch.Tensor):
        raw = value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        yield path, (str(value.dtype), tuple(value.shape), raw)
    elif isinstance(value, float):
        yield path, ("float", value.hex())
    else:
        yield path, (type(value).__name__, value)


def _short(value: Any) -> str:
    if isinstance(value, tuple) and isinstance(value[-1], bytes):
        return f"tensor {value[:2]} {value[2][:8].hex()}…"
    return str(value)[:120]
