"""The run folder: made exclusively, written by one process, always saying what state the run is in."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import sys
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf

from binventory.config.paths import as_path
from binventory.errors import InputError
from binventory.files import open_own, read_limited, refuse_links, remove_leftovers, write_json

State = Literal["queued", "running", "done", "failed", "preempted", "pruned"]

LOCK, LOCK_TRIES = ".lock", 10
WRITER_WAIT_S = 90.0
PRUNE_REQUEST = ".prune"
# What a run or a sweep leaves in its folder, whatever became of it.
OF_A_RUN = ("config.yaml", "provenance.json", "metrics.json", "predictions.csv", "checkpoints")
OF_A_SWEEP = "sweep.json"
RESERVE, RESERVE_BYTES = ".reserve", 64 * 1024  # a status with a traceback fits in


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

    def made(root: str, name: str) -> str:
        return str(make_run_folder(Path(as_path("paths.output_dir", root)) / name))

    OmegaConf.register_new_resolver("run_dir", made, use_cache=True, replace=True)
    OmegaConf.register_new_resolver("sweep_dir", lambda root: made(root, "sweeps"), use_cache=True, replace=True)


def request_prune(run_dir: Path) -> None:
    """Ask the job that writes this run folder to stop at its next step, as pruned."""
    os.close(open_own(run_dir / PRUNE_REQUEST, os.O_WRONLY | os.O_CREAT))


class RunFolder:
    """The one writer of a run folder.

    Holds a lock on `.lock` from `open` until `close` or the end of the process, however that comes.
    """

    def __init__(self, path: Path, task: str | None = None) -> None:
        self.path = path
        self._task = task
        self._lock: int | None = None
        self._started: str | None = None

    def open(self) -> RunFolder:
        """Take the lock.

        Raises:
            InputError: another process writes this folder, names its pid; or there is a link in it.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            refuse_links(self.path)
            lock = open_own(self.path / LOCK, os.O_RDWR | os.O_CREAT)
            # What the last status needs is set aside while there is room.
            with os.fdopen(open_own(self.path / RESERVE, os.O_WRONLY | os.O_CREAT), "wb") as reserve:
                reserve.write(bytes(RESERVE_BYTES))
        except OSError as error:
            raise InputError(
                f"{self.path}: cannot be written to ({error.strerror}); mend that or name another"
            ) from error
        for _ in range(LOCK_TRIES):
            if _try_lock(lock):
                break
            time.sleep(0.02)  # somebody may only be looking
        else:
            pid = os.read(lock, 32).decode().strip() or "unknown"
            os.close(lock)
            raise InputError(f"{self.path}: process {pid} writes this run; wait for it or stop it")
        os.ftruncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())
        self._lock = lock
        _held.add(lock)
        remove_leftovers(self.path)
        return self

    def occupant(self) -> str | None:
        """Return what a new run would overwrite here, a run or a sweep, and which file shows it; None: nothing."""
        if (self.path / OF_A_SWEEP).exists():
            return f"a sweep ({OF_A_SWEEP})"
        found = next((name for name in OF_A_RUN if (self.path / name).exists()), None)
        return None if found is None else f"a run ({found})"

    def writer(self) -> str | None:
        """Return the pid of the process that writes this folder; None when none does.

        Raises:
            InputError: its lock cannot be read.
        """
        try:
            lock = open_own(self.path / LOCK, os.O_RDONLY)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"{self.path / LOCK}: cannot be read ({error.strerror}); remove it") from error
        try:
            return None if _try_lock(lock) else os.read(lock, 32).decode().strip() or "unknown"
        finally:
            os.close(lock)

    def wait_for_writer(self, timeout_s: float = WRITER_WAIT_S) -> None:
        """Wait until no process writes this folder: one whose parent was killed saves before it leaves.

        Raises:
            InputError: it still does after so long; names its pid.
        """
        deadline = time.monotonic() + timeout_s
        while (pid := self.writer()) is not None:
            if time.monotonic() > deadline:
                raise InputError(f"{self.path}: process {pid} writes this run; wait for it or stop it")
            time.sleep(0.1)

    def close(self) -> None:
        """Give the lock back."""
        if self._lock is not None:
            (self.path / RESERVE).unlink(missing_ok=True)
            os.close(self._lock)
            _held.discard(self._lock)
            self._lock = None

    def read_state(self) -> State | None:
        """Return the state that status.json gives; None before there is one. Raises as `read_status`."""
        state: State | None = self.read_status().get("state")
        return state

    def read_status(self) -> dict[str, Any]:
        """Return status.json; nothing before there is one.

        Raises:
            InputError: it is damaged.
        """
        path = self.path / "status.json"
        try:
            status = json.loads(read_limited(path))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot be read ({error})") from error
        if not isinstance(status, dict):
            raise InputError(f"{path}: cannot be read (not a status)")
        return status

    def write_status(self, state: State, *, exit_code: int | None = None, error: BaseException | None = None) -> None:
        """Write `status.json`; `started` stays what the first call of this process saw.

        On a full disk the room that `open` set aside is used. Where even that does not help, stderr says so.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        if state == "running" or self._started is None:
            self._started = now
        if self._task is None:
            self._task = self.read_status().get("task")
        status: dict[str, Any] = {
            "state": state,
            "task": self._task,
            "started": self._started,
            "ended": None if state in ("queued", "running") else now,
            "exit_code": exit_code,
            "error": None if error is None else _describe(error),
        }
        try:
            write_json(self.path / "status.json", status)
        except OSError:
            try:
                (self.path / RESERVE).unlink(missing_ok=True)
                write_json(self.path / "status.json", status)
            except OSError as failed:
                print(
                    f"error: {self.path / 'status.json'}: {state} could not be written ({failed.strerror})",
                    file=sys.stderr,
                )


# Locks of this process. A forked child, a loader's worker say, shares them: orphaned, it would hold the run's lock
# after its parent was killed.
_held: set[int] = set()


def _close_in_child() -> None:
    for lock in _held:
        os.close(lock)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _describe(error: BaseException) -> dict[str, str]:
    from binventory.config.capture import redact_text

    return {
        "type": type(error).__name__,
        "message": redact_text(str(error)),
        "traceback": redact_text("".join(traceback.format_exception(error))),
    }
