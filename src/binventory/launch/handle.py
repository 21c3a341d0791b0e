"""What a launcher that does not block gives for each job."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hydra.core.utils import JobReturn


@dataclass(eq=False)
class JobHandle:
    """One submitted job.

    Attributes:
        number: its place in the sweep.
        overrides: its own.
        run_dir: its run folder, once it is its turn.
        is_started: whether it ran or runs; one that waits can be dropped without a trace.
        is_detached: whether it runs on although nobody here waits for it any more.
        note: what it does right now, in one line, where the launcher knows more than the run folder says.
        exit_code: once it ended; negative: the signal that killed it. None: nothing was started.
        failure: why it ended, in one line, where its run folder cannot say so itself.
        job_return: Hydra's own, once it ended.
    """

    number: int
    overrides: tuple[str, ...]
    run_dir: Path | None = None
    is_started: bool = False
    is_detached: bool = False
    note: str = ""
    exit_code: int | None = None
    failure: str | None = None
    job_return: JobReturn | None = field(default=None, repr=False)
