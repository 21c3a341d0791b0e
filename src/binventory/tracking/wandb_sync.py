"""Send runs that were logged offline to W&B, each attempt after the one before."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from binventory.errors import InputError
from binventory.files import refuse_links
from binventory.tracking.run_folder import RunFolder


def offline_attempts(run_dir: Path) -> list[Path]:
    """Return the client's folders of a run that were written offline, in the order of the attempts."""
    return sorted(run_dir.glob("wandb/offline-run-*"))


def sync(run_dirs: Iterable[Path]) -> int:
    """Upload what was logged offline and is not there yet, with the client's own `wandb sync`.

    The attempts of a resumed run have one id: the client puts them together, in the order of their starts.

    Args:
        run_dirs: run folders; those without offline attempts are passed over.

    Returns:
        The exit code of `wandb sync`: not 0 where something could not be sent.

    Raises:
        InputError: no run has anything to send, one is still being written, or there are links in one; names it.
    """
    folders = {run_dir: offline_attempts(run_dir) for run_dir in run_dirs}
    if not any(folders.values()):
        raise InputError(
            f"{next(iter(folders))}: holds no offline W&B run (wandb/offline-run-*); name one of logger=wandb"
        )
    for run_dir, attempts in folders.items():
        refuse_links(run_dir)  # the client writes beside what it sends
        if attempts and (pid := RunFolder(run_dir).writer()) is not None:
            raise InputError(f"{run_dir}: process {pid} still writes this run; sync it when it has ended")
    paths = [str(attempt) for attempts in folders.values() for attempt in attempts]
    return subprocess.run([sys.executable, "-m", "wandb", "sync", *paths], check=False).returncode  # noqa: S603  our own interpreter
