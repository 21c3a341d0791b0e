"""Run one job in its run folder: the lock, the status, the exit code. Every way to start a job ends here."""

from __future__ import annotations

import errno
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

from omegaconf import OmegaConf

from binventory.config.capture import one_line, redact_text, save_config
from binventory.errors import UserError
from binventory.files import read_limited, write_json
from binventory.launch.spec import JobSpec
from binventory.signals import STOP_SIGNALS, stop_signals
from binventory.tracking.provenance import provenance
from binventory.tracking.run_folder import RunFolder, State

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_PREEMPTED = 143

# What torchrun, srun scripts and operators describe a process's rank with; `run_ranks` does so for ours.
RANK_VARIABLES = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT",
)  # fmt: skip
_this_process = SimpleNamespace(is_leaving=False)
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG)


class Interrupted(BaseException):
    """A signal to stop arrived; not an Exception, so that nothing on the way up takes it for a failure."""

    def __init__(self, signum: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.exit_code = EXIT_INTERRUPTED if signum == signal.SIGINT else EXIT_PREEMPTED


class JobError(RuntimeError):
    """A job of a sweep failed; its run folder says why."""


class Pruned(BaseException):
    """The sweep asked this job to stop; not an Exception, as Interrupted."""


def ending_of(error: BaseException | None) -> tuple[State, int]:
    """Return the state and the exit code of a job that ended with this error, or without one."""
    if error is None:
        return "done", EXIT_DONE
    if isinstance(error, Pruned):
        return "pruned", EXIT_DONE
    if isinstance(error, Interrupted):
        return "preempted", error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "preempted", EXIT_INTERRUPTED
    return "failed", EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAILED


def prefer_system_memory() -> None:
    """Let Arrow, where it is not imported yet, take its memory from the system: its own allocators keep what was freed.

    With half a million bins that are some 200 MB, for the whole run. What the user set stays.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


def forget_foreign_ranks() -> None:
    """Drop the variables with which another program made this process a rank: only `run_ranks` makes ranks of a job.

    A cluster's own variables (SLURM_…, LSB_…) stay: the launcher that submitted the job may read them.
    """
    for name in list(os.environ):
        if name in RANK_VARIABLES or name.startswith("TORCHELASTIC_"):
            del os.environ[name]


def global_rank() -> int:
    """Return the number of this process among those of its job; 0 where it is the only one."""
    return int(os.environ.get("RANK", "0"))


def execute(spec: JobSpec) -> tuple[int, Any]:
    """Run a job in this process.

    Rank 0 writes the run folder; other ranks only compute.

    Returns:
        The exit code of the design's table, and what the task returned (None unless the code is 0).
    """
    prefer_system_memory()
    is_writer = global_rank() == 0
    folder = RunFolder(Path(spec.run_dir), spec.task)
    try:
        if is_writer:
            folder.open()
    except UserError as error:
        report_user_error(error)
        return EXIT_USER_ERROR, None
    before = _raise_on_signals()
    exit_code = EXIT_FAILED
    try:
        exit_code, result = _run(spec, folder, is_writer)
    finally:
        if exit_code not in (EXIT_INTERRUPTED, EXIT_PREEMPTED):
            for signum, handler in before.items():
                signal.signal(signum, handler)
        folder.close()
    return exit_code, result


def _run(spec: JobSpec, folder: RunFolder, is_writer: bool) -> tuple[int, Any]:
    def status(state: State, exit_code: int | None = None, error: BaseException | None = None) -> None:
        if state != "running":
            ignore_signals()
        if is_writer:
            folder.write_status(state, exit_code=exit_code, error=error)

    config = OmegaConf.create({name: value for name, value in spec.config.items() if name != "hydra"})
    try:
        status("running")
        if is_writer:
            save_config(config, folder.path / "config.yaml")
            _write_provenance(spec, folder.path)
        result = import_task(spec.task)(config, folder.path)
        status(*ending_of(None))
        return EXIT_DONE, result
    except (Exception, SystemExit, KeyboardInterrupt, Interrupted, Pruned) as error:  # noqa: BLE001  the one place where a defect becomes a status and a code
        state, exit_code = ending_of(error)
        status(state, exit_code, None if state == "pruned" else error)
        _say(error, spec, is_writer=is_writer)
        return exit_code, None


def _say(error: BaseException, spec: JobSpec, *, is_writer: bool) -> None:
    """Tell the user on stderr why the job ended. What every rank finds alike, one says."""
    if isinstance(error, UserError):
        if is_writer:
            report_user_error(error)
    elif isinstance(error, Interrupted | KeyboardInterrupt):
        if is_writer:
            from binventory.config.quoting import pasteable  # only here: a rank needs nothing else of Hydra's

            hint = f"; {pasteable('resume', spec.run_dir)} goes on with it" if "resume" in spec.config else ""
            print(f"{error or 'stopped by SIGINT'}: {spec.run_dir}{hint}", file=sys.stderr)
    elif isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
        if is_writer:  # the machine's fault: one line says what to mend, status.json has the traceback
            print(f"error: {redact_text(str(error))}", file=sys.stderr)
    elif not isinstance(error, Pruned):
        print(redact_text(traceback.format_exc()), file=sys.stderr)


def _write_provenance(spec: JobSpec, run_dir: Path) -> None:
    """Write provenance.json; a resumed run keeps what its earlier attempts wrote there."""
    path = run_dir / "provenance.json"
    earlier: list[dict[str, Any]] = []
    if path.exists():
        before = json.loads(read_limited(path))
        earlier = [*before.pop("earlier_attempts", []), before]
    started = datetime.now(UTC).isoformat(timespec="milliseconds")
    facts = {"started": started, **provenance(spec.overrides, spec.choices, spec.hydra_overrides)}
    write_json(path, {**facts, "earlier_attempts": earlier} if earlier else facts)


def import_task(task: str) -> Callable[..., Any]:
    """Import `package.module:function`."""
    module, _, function = task.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return found


def report_user_error(error: UserError) -> None:
    """Say what the user can mend, in one line, on stderr."""
    print(f"error: {one_line(str(error))}", file=sys.stderr)


def _raise_on_signals() -> dict[signal.Signals, Any]:
    """Turn the signals to stop into `Interrupted`; return the handlers there were."""
    _this_process.is_leaving = False

    def handle(signum: int, _frame: FrameType | None) -> None:
        # Lightning puts this handler back when it is torn down, also after the signals were ignored.
        if not _this_process.is_leaving:
            ignore_signals()
            raise Interrupted(signum)

    return {signum: signal.signal(signum, handle) for signum in stop_signals()}


def ignore_signals() -> None:
    """Ignore the signals to stop from now on: the process is leaving.

    No further one shall break off writing the status or change the exit code.
    """
    _this_process.is_leaving = True
    for signum in STOP_SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
