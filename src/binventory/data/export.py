"""The split bins as a folder tree that any ImageFolder reader takes."""

from __future__ import annotations

import csv
import json
import os
import shutil
from pathlib import Path
from typing import Any

from binventory.data.formats import exported_suffix
from binventory.data.prepare import PreparedBins
from binventory.data.progress import track
from binventory.data.reading import stamp_of
from binventory.data.splits import TEST, TRAIN
from binventory.errors import ConfigError, InputError
from binventory.files import atomic_path, read_limited

COLUMNS = (
    *("id", "path", "quantity", "split", "width", "height", "bytes"),
    *("sha256", "item_count", "distinct_asins", "group", "note"),
)
MANIFEST = "export.json"


def export_imagefolder(bins: PreparedBins, output: Path) -> Path:
    """Write `<output>/train|test/<count>/<id>.jpg` with train_meta.csv and test_meta.csv.

    The photos keep their bytes (hard links where the file system allows it). Validation bins lie in train, where the
    column `split` tells them apart. What an interrupted export had written is kept; the CSV files are written last.

    Returns:
        `output`.

    Raises:
        ConfigError: the folder holds something else, e.g. an export of another split: mixed, test photos would leak.
        InputError: a photo changed since it was read.
    """
    _claim(output, bins.fingerprint)
    rows = [row | {"file": _file_of(row)} for row in bins.index.to_pylist() if row["split"] is not None]
    for row in track(rows, len(rows), "writing photos"):
        _place(row, output / row["file"])
    for part in (TRAIN, TEST):
        with atomic_path(output / f"{part}_meta.csv") as temporary, temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for row in rows:
                if _part_of(row) == part:
                    writer.writerow([(row | {"path": row["file"]})[name] for name in COLUMNS])
    return output


def _claim(output: Path, fingerprint: str) -> None:
    manifest = output / MANIFEST
    try:
        held = json.loads(read_limited(manifest))["fingerprint"] if manifest.exists() else None
        occupied = held is None and output.exists() and any(output.iterdir())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"output={output}: cannot be written to ({error}); name another folder") from error
    if occupied:
        raise ConfigError(f"output={output}: not empty and no export of ours; name an empty or a new folder")
    if held not in {None, fingerprint}:
        raise ConfigError(f"output={output}: holds an export of other bins or another split; name another folder")
    try:
        with atomic_path(manifest) as temporary:
            temporary.write_text(json.dumps({"fingerprint": fingerprint}) + "\n")
    except OSError as error:
        raise ConfigError(f"output={output}: cannot be written to ({error.strerror}); name another folder") from error


def _part_of(row: dict[str, Any]) -> str:
    return TEST if row["split"] == TEST else TRAIN


def _file_of(row: dict[str, Any]) -> str:
    return f"{_part_of(row)}/{row['quantity']}/{row['id']}{exported_suffix(Path(row['path']))}"


def _place(row: dict[str, Any], target: Path) -> None:
    photo = Path(row["path"])
    try:
        status = photo.stat()
    except OSError as error:
        raise InputError(f"{photo}: {error.strerror}; the source changed since it was read, prepare again") from error
    if stamp_of(status) != (row["bytes"], row["mtime_ns"]):
        raise InputError(f"{photo}: changed since it was read; prepare again")
    if target.exists():  # always whole: links and renames are atomic
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(photo.resolve(), target)  # of a symbolic link the file, not the link: it may be a relative one
    except OSError:  # another file system, or one without links
        with atomic_path(target) as temporary:
            shutil.copyfile(photo, temporary)
