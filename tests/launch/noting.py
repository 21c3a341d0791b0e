"""What notes the surroundings of a job, from within: an objective, and a callback of Hydra's."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback

from binventory.objectives.classification import Classification

VARIABLE = "NOTED_VARIABLE"
log = logging.getLogger("noting")


def note(path: str, **facts: Any) -> None:
    with Path(path).open("a") as file:
        file.write(json.dumps({**facts, "variable": os.environ.get(VARIABLE), "pid": os.getpid()}) + "\n")


def noted(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Return what was noted, by who noted it."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in path.read_text().splitlines():
        facts = json.loads(line)
        found.setdefault(facts.pop("who"), []).append(facts)
    return found


class Noting(Classification):
    """Cross-entropy that notes where it is made.

    Args:
        path: file that the notes go to.
        model: what the config says that the choice of the model is.
        num: what it says that the number of the job is.
    """

    def __init__(
        self, counts: Sequence[int], path: str, label_smoothing: float = 0.0, model: str = "", num: int | None = None
    ) -> None:
        super().__init__(counts, label_smoothing)
        note(path, who="job", model=model, num=num, rank=os.environ.get("RANK", "0"))
        log.debug("noted by debug()")


class Hook(Callback):
    """Notes each call of Hydra's."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.calls: list[str] = []

    def _note(self, who: str, **facts: Any) -> None:
        self.calls.append(who)
        note(self.path, who=who, calls=self.calls, **facts)

    def on_run_start(self, config: Any, **_: Any) -> None:
        self._note("run_start")

    def on_run_end(self, config: Any, **_: Any) -> None:
        self._note("run_end")

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        self._note("multirun_start")

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        self._note("multirun_end")

    def on_job_start(self, config: Any, **_: Any) -> None:
        self._note("job_start", output_dir=config.hydra.runtime.output_dir)

    def on_job_end(self, config: Any, job_return: Any, **_: Any) -> None:
        self._note("job_end", status=job_return.status.name, value=job_return._return_value)
