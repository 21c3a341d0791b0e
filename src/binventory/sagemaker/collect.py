"""A training job's output brought back into its run folder, as if it had run here."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from omegaconf import OmegaConf

from binventory.config.capture import load_plain, one_line, save_config
from binventory.data.reading import MAX_LIST_BYTES
from binventory.data.sources.s3 import ObjectError, is_s3, split_folder
from binventory.data.text import printable
from binventory.errors import InputError
from binventory.files import read_limited, write_json, write_text
from binventory.launch.runner import EXIT_FAILED, EXIT_PREEMPTED
from binventory.sagemaker.aws import Aws
from binventory.sagemaker.bucket import S3Folder
from binventory.sagemaker.entry import RUN
from binventory.sagemaker.outputs import MAX_BYTES, MAX_MEMBERS, fetch_output
from binventory.sagemaker.record import RECORD, JobRecord
from binventory.tracking.run_folder import LOCK, PRUNE_REQUEST, RESERVE, RunFolder

FETCHED = ".fetched"
# This machine's own, whatever came back.
OWN = {LOCK, RESERVE, PRUNE_REQUEST, RECORD, "job.json", "output.log"}


class TrainingJobError(RuntimeError):
    """A training job ended without its run folder saying why."""


def collect(aws: Aws, record: JobRecord, folder: RunFolder, tail: Sequence[str]) -> None:
    """Bring the run folder of an ended training job back and say how it ended.

    Args:
        aws: where it ran.
        record: the run's, with `ended` filled in; becomes `is_collected`.
        folder: the run folder, opened.
        tail: the last lines of the job's log.

    Raises:
        InputError: what came back cannot be read or is not trusted; nothing of it is in the run folder then.
    """
    fetched = folder.path / FETCHED
    shutil.rmtree(fetched, ignore_errors=True)  # a killed process's
    try:
        came = _fetch(aws, record, fetched)
        if came is not None:
            _adopt(came, folder.path, record)
    finally:
        shutil.rmtree(fetched, ignore_errors=True)
    _settle(folder, record, tail)
    record.is_collected = True
    record.save(folder.path)


def fetch_answer(aws: Aws, record: JobRecord, name: str, target: Path) -> bytes | None:
    """Return a file of a job's output archive; None where there is none.

    Args:
        aws: where it ran.
        record: the job's.
        name: of the file.
        target: folder that is made for it, and removed.
    """
    try:
        uri = f"{record.output}/{record.name}/output/output.tar.gz"
        is_there = fetch_output(uri, target, aws.s3()) and (target / name).is_file()
        return read_limited(target / name, MAX_BYTES) if is_there else None
    finally:
        shutil.rmtree(target, ignore_errors=True)


def _fetch(aws: Aws, record: JobRecord, target: Path) -> Path | None:
    """Bring the output archive, or where there is none what the checkpoint prefix holds of the run folder."""
    uri = f"{record.output}/{record.name}/output/output.tar.gz"
    if fetch_output(uri, target, aws.s3()) and (target / RUN).is_dir():
        return target / RUN
    shutil.rmtree(target, ignore_errors=True)
    bucket, prefix = split_folder(record.checkpoints)
    return fetch_folder(S3Folder(aws.s3(), bucket, prefix), RUN, target)


def fetch_folder(there: S3Folder, below: str, target: Path) -> Path | None:
    """Bring all objects below a prefix, as untrusted as an archive; None where there are none."""
    sizes = there.sizes(below)
    if len(sizes) > MAX_MEMBERS or sum(sizes.values()) > MAX_BYTES:
        raise InputError(f"{there.uri}/{below}: too large to be a run folder ({len(sizes):,} objects); not fetched")
    for key in sizes:
        parts = key.split("/")
        if ".." in parts or "." in parts or "" in parts or "\\" in key or not key.isprintable():
            raise InputError(f"{there.uri}/{printable(key, 200)}: cannot be a file's name; not fetched")
    for key in sizes:
        path = target / PurePosixPath(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            there.connection.download(there.bucket, f"{there.folder}/{key}".lstrip("/"), path, MAX_BYTES)
        except ObjectError as error:
            raise InputError(f"{there.uri}/{key}: {error}") from error
    return target / below if sizes else None


def _adopt(came: Path, run_dir: Path, record: JobRecord) -> None:
    """Move what came back into the run folder; what says where it ran says both places."""
    config = json.loads(read_limited(run_dir / "job.json"))["config"]
    own = {name: value for name, value in config.items() if name != "hydra"}
    _check_kinds(came, record)
    _map_photos(came, own, Path(config["hydra"]["runtime"]["cwd"]))
    for path in sorted(came.rglob("*")):
        name = path.relative_to(came)
        if path.is_file() and str(name) not in OWN:
            (run_dir / name).parent.mkdir(parents=True, exist_ok=True)
            path.replace(run_dir / name)
    save_config(OmegaConf.create(own), run_dir / "config.yaml")
    facts = _read_json(run_dir / "provenance.json")
    write_json(
        run_dir / "provenance.json",
        facts | {"git": record.git, "sagemaker": {"training_jobs": record.names, "region": record.region}
                 | record.request | record.ended},
    )  # fmt: skip


def _check_kinds(came: Path, record: JobRecord) -> None:
    """Refuse files that whoever reads run folders would stumble over."""
    status, metrics = (_read_json(came / name) for name in ("status.json", "metrics.json"))
    error = status.get("error")
    is_status = error is None or (isinstance(error, dict) and {"type", "message"} <= error.keys())
    is_metrics = all(isinstance(metrics.get(split) or {}, dict) for split in ("val", "test"))
    for name, is_right in (("status.json", is_status), ("metrics.json", is_metrics)):
        if not is_right or ((came / name).exists() and not _read_json(came / name)):
            raise InputError(f"{record.output}/{record.name}: {name} is not that of a run; nothing of it is taken")


def _map_photos(came: Path, own: dict[str, Any], working_dir: Path) -> None:
    """In predictions.csv, name photos where this machine has them: the container they were read in is gone."""
    path, config = came / "predictions.csv", came / "config.yaml"
    if not path.is_file() or not config.is_file():
        return
    try:
        places = _places(load_plain(config), own, working_dir)
    except (KeyError, TypeError):  # not the config of a run
        return
    rows = list(csv.reader(io.StringIO(read_limited(path, MAX_LIST_BYTES).decode(), newline="")))
    if not rows or "path" not in rows[0]:
        return
    place = rows[0].index("path")
    for row in rows[1:]:
        for before, after in places.items():
            if len(row) > place and row[place].startswith(before):
                row[place] = after + row[place].removeprefix(before)
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def _places(there: dict[Any, Any], own: dict[str, Any], working_dir: Path) -> dict[str, str]:
    """Where photos lay in the container, and where they lie here."""
    places = {f"{there['paths']['data_dir']}/": f"{working_dir / own['paths']['data_dir']}/"}
    source = str(own["data"]["source"]).rstrip("/")
    if there["data"]["reader"] == own["data"]["reader"]:
        places[f"{there['data']['source']}/"] = f"{source if is_s3(source) else working_dir / source}/"
    return places


def _settle(folder: RunFolder, record: JobRecord, tail: Sequence[str]) -> None:
    """Let status.json say how the run ended, where the job could not do it itself."""
    status, state = record.ended["status"], folder.read_state()
    if (folder.path / PRUNE_REQUEST).exists() and state != "done" and status != "Failed":
        (folder.path / PRUNE_REQUEST).unlink()
        folder.write_status("pruned", exit_code=0)
    elif state in ("done", "pruned", "failed") or (state == "preempted" and status == "Stopped"):
        return
    elif status == "Stopped":
        folder.write_status("preempted", exit_code=EXIT_PREEMPTED, error=TrainingJobError(_reason(record)))
    else:
        error = TrainingJobError(_reason(record))
        error.add_note("The last lines of its log:\n" + "\n".join(tail))
        folder.write_status("failed", exit_code=EXIT_FAILED, error=error)


def _reason(record: JobRecord) -> str:
    ended = record.ended
    reason = ended.get("failure_reason") or f"{ended['status']} ({ended['secondary_status']})"
    return one_line(f"training job {record.name}: {reason}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(read_limited(path))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
