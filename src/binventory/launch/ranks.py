"""Start one process per rank of a job, on this machine or on each of several, and end them together."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from binventory.files import read_limited
from binventory.launch.runner import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    execute,
    forget_foreign_ranks,
    ignore_signals,
)
from binventory.launch.spec import JobSpec
from binventory.signals import STOP_SIGNALS, passed_on, stop_signals
from binventory.streams import keep_streams_open
from binventory.tracking.run_folder import RunFolder

GRACE_S = 60.0
PARENT_VARIABLE = "BINVENTORY_PARENT_PID"
# JSON of Hydra's job_logging and verbose, for the rank that writes the run folder. Not in job.json: it names classes.
LOGGING_VARIABLE = "BINVENTORY_JOB_LOGGING"
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class RankError(RuntimeError):
    """A rank of a job ended early."""


def run_spec(spec: JobSpec) -> tuple[int, Any]:
    """Run a job: in this process, or on one process a device; as `execute`."""
    keep_streams_open()
    forget_foreign_ranks()
    world_size = spec.config.get("trainer", {}).get("devices", 1)
    if world_size == 1:
        return execute(spec)
    exit_code = run_ranks(spec, world_size)
    return exit_code, None if exit_code else returned_value(Path(spec.run_dir), spec.config)


def returned_value(run_dir: Path, config: Mapping[str, Any]) -> float | None:
    """Return the objective metric that a finished run wrote; None where it has none."""
    metric = config.get("objective_metric")
    path = run_dir / "metrics.json"
    if metric is None or not path.exists():  # a pruned run has no final figures
        return None
    split, _, name = metric.partition("/")
    value: float | None = (json.loads(read_limited(path)).get(split) or {}).get(name)
    return value


@dataclass(frozen=True)
class Node:
    """One of the machines that a job runs on.

    Attributes:
        rank: its number, from 0.
        num_nodes: how many there are.
        master_addr: where rank 0 of the job is reached by all of them.
        master_port: there; None: any that is free, where there is one machine.
    """

    rank: int = 0
    num_nodes: int = 1
    master_addr: str = "127.0.0.1"
    master_port: int | None = None


ONLY_NODE = Node()


def run_ranks(spec: JobSpec, num_processes: int, node: Node = ONLY_NODE) -> int:
    """Run a job on `num_processes` processes of this machine and return the job's exit code.

    Of several machines each calls this with its own `node`, and has a run folder of its own: only that of the first
    one is the job's, the others only hold job.json.

    Every rank is `python -m binventory.launch <run folder>/job.json` with torchrun's environment variables. Signals
    to stop are passed on. When one rank fails, the others are asked to stop, and killed after a grace period. When this
    process is killed, the ranks get SIGTERM. To be called from the main thread: Linux takes the end of the thread that
    started a process for the end of its parent.
    """
    path = Path(spec.run_dir) / "job.json"
    spec.save(path)
    forget_foreign_ranks()
    environment = {
        **os.environ,
        **spec.environment(),
        **_logging(),
        # Ranks import from where this process does. `-m` would add the working directory, where photos may lie.
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(str(Path(folder).absolute()) for folder in sys.path),
        PARENT_VARIABLE: str(os.getpid()),
        "MASTER_ADDR": node.master_addr,
        "MASTER_PORT": str(node.master_port or _free_port()),
        "WORLD_SIZE": str(num_processes * node.num_nodes),
        "LOCAL_WORLD_SIZE": str(num_processes),
        "NODE_RANK": str(node.rank),
        "GROUP_RANK": str(node.rank),
    }
    # Left to itself every rank would take all cores, and they would fight.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    ranks = []
    for number in range(num_processes):
        rank = {"LOCAL_RANK": str(number), "RANK": str(node.rank * num_processes + number)}
        command = [sys.executable, "-m", "binventory.launch", str(path)]
        ranks.append(subprocess.Popen(command, env={**environment, **rank}))  # noqa: S603  our own interpreter and file
    codes = _wait(ranks)
    _tell_what_ended(codes, Path(spec.run_dir), node)
    return _job_exit_code(codes)


def _logging() -> dict[str, str]:
    """Return what lets a rank log as this process does; nothing where Hydra did not start the job."""
    from hydra.core.hydra_config import HydraConfig  # only here: ranks themselves do without Hydra
    from omegaconf import OmegaConf

    if not HydraConfig.initialized() or OmegaConf.is_missing(HydraConfig.get().runtime, "output_dir"):
        return {}
    node: Any = HydraConfig.get()
    verbose = OmegaConf.to_container(node.verbose) if OmegaConf.is_list(node.verbose) else node.verbose
    said = {"job_logging": OmegaConf.to_container(node.job_logging, resolve=True), "verbose": verbose}
    return {LOGGING_VARIABLE: json.dumps(said)}


def take_over_logging() -> None:
    """Log as the process that `run_ranks` runs in does, in the rank that writes the run folder."""
    said = os.environ.pop(LOGGING_VARIABLE, None)
    if said is None or os.environ.get("RANK", "0") != "0":
        return
    from hydra.core.utils import configure_log
    from omegaconf import OmegaConf

    node = OmegaConf.create(json.loads(said))
    configure_log(node.job_logging, node.verbose)


def end_with_parent() -> bool:
    """Return whether `run_ranks` started this process; then SIGTERM comes when the one it runs in ends.

    However that ends: a rank that outlived it would hold the run folder and train on unseen. Linux only.
    """
    parent = os.environ.pop(PARENT_VARIABLE, None)  # not for the processes that this one starts
    if parent is None or sys.platform != "linux":
        return parent is not None
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:  # inherited, from `trap '' TERM` for one
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if os.getppid() != int(parent):  # it ended before it could be watched
        os.kill(os.getpid(), signal.SIGTERM)
    return True


def _wait(ranks: list[subprocess.Popen[bytes]]) -> list[int]:
    """Wait for all ranks and return their exit codes; negative: the signal that killed one."""
    was_stopped = False

    def send(signum: int) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(signum)

    def pass_on(signum: int, _frame: FrameType | None) -> None:
        nonlocal was_stopped
        was_stopped = True
        send(passed_on(signum))

    before = {signum: signal.signal(signum, pass_on) for signum in stop_signals()}
    try:
        deadline = None
        while None in (codes := [process.poll() for process in ranks]):
            if deadline is None and (ended := next((code for code in codes if code), 0)):
                deadline = time.monotonic() + GRACE_S
                send(signal.SIGINT if ended in (EXIT_INTERRUPTED, -signal.SIGINT) else signal.SIGTERM)
            if deadline is not None and time.monotonic() > deadline:
                send(signal.SIGKILL)
            time.sleep(0.05)
    finally:
        if was_stopped:  # this process is leaving too
            ignore_signals()
        else:
            for signum, handler in before.items():
                signal.signal(signum, handler)
    return [process.returncode for process in ranks]


def _failed_ranks(codes: list[int]) -> list[int]:
    stopped = (0, EXIT_INTERRUPTED, EXIT_PREEMPTED, *(-signum for signum in STOP_SIGNALS))
    return [rank for rank, code in enumerate(codes) if code not in stopped]


def _job_exit_code(codes: list[int]) -> int:
    """Rank 0 wrote the status, so its code counts, unless it only stopped because another rank failed."""
    if failed := _failed_ranks(codes):
        return EXIT_USER_ERROR if codes[failed[0]] == EXIT_USER_ERROR else EXIT_FAILED
    return 128 + passed_on(-codes[0]) if codes[0] < 0 else codes[0]


def _tell_what_ended(codes: list[int], run_dir: Path, node: Node) -> None:
    """Write the status where rank 0 could not: it was killed, or it was stopped because of another rank."""
    failed = _failed_ranks(codes)
    if not failed:
        return
    first = node.rank * len(codes)
    said = ", ".join(f"rank {first + number} {_describe(codes[number])}" for number in failed)
    if node.rank > 0:  # the job's folder is on another machine, whose ranks end when these are gone
        print(f"{said}; the other ranks of this machine were stopped", file=sys.stderr)
        return
    folder = RunFolder(run_dir).open()
    try:
        if folder.read_state() != "failed":
            folder.write_status("failed", exit_code=_job_exit_code(codes), error=RankError(said))
            print(f"{said}; the other ranks were stopped", file=sys.stderr)
    finally:
        folder.close()


def _describe(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
