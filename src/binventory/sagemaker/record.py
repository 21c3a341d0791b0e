"""sagemaker.json in a run folder: which training jobs ran it, where their parts lie, and how the last one ended."""

from __future__ import annotations

import json
import re
import secrets
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from binventory.errors import InputError
from binventory.files import read_limited, write_json, write_text

RECORD = "sagemaker.json"
NAME_FILE = "sagemaker-name.txt"  # in the sweep's folder, which may be moved and renamed
VERSION = 1
NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")


@dataclass
class JobRecord:
    """One run's training jobs.

    Attributes:
        region, account: where the training jobs are.
        names: of the training jobs, one an attempt, the oldest first.
        output, checkpoints: S3 prefixes.
        request: what instance and image the last attempt asked for.
        git: commit and differences of the project that was sent.
        is_collected: whether what the last attempt left has been brought here.
        ended: how it ended: status, secondary status, reason, seconds; nothing before.
    """

    region: str
    account: str
    names: list[str]
    output: str
    checkpoints: str
    request: dict[str, Any] = field(default_factory=dict)
    git: dict[str, Any] | None = None
    is_collected: bool = False
    ended: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The training job of the last attempt."""
        return self.names[-1]

    def save(self, run_dir: Path) -> None:
        """Write sagemaker.json, atomically."""
        write_json(run_dir / RECORD, {"version": VERSION, **asdict(self)})


def read_record(run_dir: Path) -> JobRecord | None:
    """Read sagemaker.json; None where the run was not on SageMaker.

    Raises:
        InputError: it is damaged.
    """
    path = run_dir / RECORD
    try:
        values = json.loads(read_limited(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    kinds = {
        "region": str, "account": str, "names": list, "output": str, "checkpoints": str, "request": dict,
        "is_collected": bool, "ended": dict,
    }  # fmt: skip
    if not isinstance(values, dict) or values.pop("version", None) != VERSION:
        raise InputError(f"{path}: not a record of version {VERSION}; submit the job again")
    wrong = [name for name, kind in kinds.items() if not isinstance(values.get(name), kind)]
    wrong += sorted(values.keys() - kinds.keys() - {"git"})
    names = values.get("names")
    if wrong or not names or not all(isinstance(name, str) and NAME.fullmatch(name) for name in names):
        raise InputError(f"{path}: not a record of training jobs (see {(wrong or ['names'])[0]!r})")
    return JobRecord(**values)


def sweep_name(folder: Path) -> str:
    """Return what a sweep is called on SageMaker and S3: its folder's name, made unique, once and for all.

    Another sweep whose folder has the same name would be taken for this one: its jobs, its checkpoints.
    """
    try:
        return read_limited(folder / NAME_FILE).decode().strip()
    except OSError:
        return f"{folder.name}-{secrets.token_hex(3)}"


def keep_sweep_name(folder: Path, name: str) -> None:
    """Write the name down."""
    if not (folder / NAME_FILE).exists():
        write_text(folder / NAME_FILE, name + "\n")
