"""The frozen job: what any launcher starts, as one file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from binventory.errors import InputError
from binventory.files import write_json

SPEC_VERSION = 1


@dataclass(frozen=True)
class JobSpec:
    """One run, fully decided.

    Attributes:
        task: `package.module:function`, called with the config and the run folder.
        config: resolved config, including Hydra's own node under `hydra` (absent when composed without Hydra).
        run_dir: the run folder.
        overrides: what was said on the command line, for provenance.
    """

    task: str
    config: dict[str, Any]
    run_dir: str
    overrides: list[str]

    def save(self, path: Path) -> None:
        """Write the spec as JSON, atomically."""
        write_json(path, {"version": SPEC_VERSION, **asdict(self)})

    @classmethod
    def load(cls, path: Path) -> JobSpec:
        """Read a spec.

        Raises:
            InputError: not a job spec of this version.
        """
        try:
            values = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot read this job spec ({error})") from error
        if not isinstance(values, dict) or values.pop("version", None) != SPEC_VERSION:
            raise InputError(f"{path}: not a job spec of version {SPEC_VERSION}; submit the job again")
        try:
            return cls(**values)
        except TypeError as error:
            raise InputError(f"{path}: not a job spec ({error})") from error
