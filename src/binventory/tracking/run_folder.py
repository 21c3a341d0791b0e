"""The run folder: made exclusively, written by one process, always saying what state the run is in."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from binventory.errors import InputError
from binventory.files import write_json

State = Literal["queued", "running", "done", "failed", "preempted", "pruned"]


def make_run_folder(parent: Path) -> Path:
    """Make `<parent>/<time>-<4 hex>` and return it; never an existing folder.

    Raises:
        InputError: the folder can't be made.
    """
    while True:
        name = f"{datetime.now().astimezone():%Y-%m-%d_%H-%M-%S}-{secrets.token_hex(2)}"
        try:
            parent.mkdir(parents=True, exist_ok=True)
            (parent / name).mkdir()
        except FileExistsError:
            if not parent.is_dir():
                raise InputError(f"paths.output_dir={parent}: not a folder; name another") from None
            continue
        except OSError as error:
            raise InputError(f"paths.output_dir={parent}: cannot make a run folder there ({error.strerror})") from error
        return parent / name


def register_resolvers() -> None:
    """Register `run_dir` and `sweep_dir`, which make the folder the first time Hydra asks and then keep to it."""
    OmegaConf.register_new_resolver(
        "run_dir", lambda root, task: str(make_run_folder(Path(root) / task)), use_cache=True, replace=True
    )
    OmegaConf.register_new_resolver(
        "sweep_dir", lambda root: str(make_run_folder(Path(root) / "sweeps")), use_cache=True, replace=True
    )


class RunFolder:
    """The one writer of a run folder.

    Holds a lock on `.lock` from `open` until `close` or the end of the process, however that comes.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None
        self._started: str | None = None

    def open(self) -> RunFolder:
        """Take the lock.

        Raises:
            InputError: another process writes this folder; names its pid.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            pid = os.read(lock, 32).decode().strip() or "unknown"
            os.close(lock)
            raise InputError(f"{self.path}: process {pid} writes this run; wait for it or stop it") from None
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        self._lock = lock
        return self

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def read_state(self) -> State | None:
        """Return the state that status.json gives; None before there is one."""
        try:
            state: State = json.loads((self.path / "status.json").read_text())["state"]
        except FileNotFoundError:
            return None
        return state

    def write_status(self, state: State, *, exit_code: int | None = None, error: BaseException | None = None) -> None:
        """Write `status.json`; `started` stays what the first call of this process saw."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        if state == "running" or self._started is None:
            self._started = now
        status: dict[str, Any] = {
            "state": state,
            "started": self._started,
            "ended": None if state in ("queued", "running") else now,
            "exit_code": exit_code,
            "error": None if error is None else _describe(error),
        }
        write_json(self.path / "status.json", status)


def _describe(error: BaseException) -> dict[str, str]:
    from binventory.config.capture import redact_text

    return {
        "type": type(error).__name__,
        "message": redact_text(str(error)),
        "traceback": redact_text("".join(traceback.format_exception(error))),
    }
