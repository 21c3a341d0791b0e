"""What an offline W&B run wrote: its .wandb file, a log of protobuf records in LevelDB's format, read without the client."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FILE_HEADER_BYTES, BLOCK_BYTES, RECORD_HEADER = 7, 32768, struct.Struct("<IHB")
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class Attempt:
    """One folder `wandb/…run-…`, as a reader of the dashboard would see it."""

    folder: Path
    run: Any = None  # RunRecord: run_id, project, run_group, job_type, tags, display_name, resumed
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    step_metrics: dict[str, str] = field(default_factory=dict)  # metric or glob -> its x axis
    exit_code: int | None = None  # None: it never said how it ended
    is_preempting: bool = False
    artifacts: list[Any] = field(default_factory=list)

    @property
    def files(self) -> set[str]:
        return {
            str(path.relative_to(self.folder / "files")) for path in self.folder.glob("files/**/*") if path.is_file()
        }

    def table(self, key: str) -> tuple[list[str], list[list[Any]]]:
        """Columns and rows of a table that was logged under this key."""
        entry = next(row[key] for row in self.history if key in row)
        read = json.loads((self.folder / "files" / entry["path"]).read_text())
        return read["columns"], read["data"]


def attempts_of(run_dir: Path) -> list[Attempt]:
    """The attempts of a run folder, in the order in which they were made."""
    return [read_attempt(folder) for folder in sorted(run_dir.glob("wandb/*run-*"))]


def read_attempt(folder: Path) -> Attempt:
    from wandb.proto import wandb_internal_pb2

    (path,) = folder.glob("*.wandb")
    attempt = Attempt(folder)
    for data in _records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        _add(attempt, record)
    return attempt


def _add(attempt: Attempt, record: Any) -> None:
    kind = record.WhichOneof("record_type")
    if kind == "run":
        attempt.run = record.run
        _update(attempt.config, record.run.config.update)
    elif kind == "config":
        _update(attempt.config, record.config.update)
    elif kind == "history":
        row: dict[str, Any] = {}
        _update(row, record.history.item)
        attempt.history.append(row)
    elif kind == "summary":
        _update(attempt.summary, record.summary.update)
        for item in record.summary.remove:
            attempt.summary.pop(item.key, None)
    elif kind == "metric":
        attempt.step_metrics[record.metric.name or record.metric.glob_name] = record.metric.step_metric
    elif kind == "preempting":
        attempt.is_preempting = True
    elif kind == "exit":
        attempt.exit_code = record.exit.exit_code
    elif kind == "artifact":
        attempt.artifacts.append(record.artifact)


def _update(target: dict[str, Any], items: Any) -> None:
    for item in items:
        path = list(item.nested_key) or [item.key]
        node = target
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = json.loads(item.value_json)


def _records(data: bytes) -> Iterator[bytes]:
    assert data[:4] == b":W&B"
    place, parts = FILE_HEADER_BYTES, b""
    while place + RECORD_HEADER.size <= len(data):
        left = BLOCK_BYTES - place % BLOCK_BYTES
        if left < RECORD_HEADER.size:  # padding at the end of a block
            place += left
            continue
        _, length, kind = RECORD_HEADER.unpack_from(data, place)
        start = place + RECORD_HEADER.size
        place = start + length
        if place > len(data):  # cut off by a kill
            return
        if kind in (FULL, FIRST):
            parts = b""
        parts += data[start:place]
        if kind in (FULL, LAST):
            yield parts
