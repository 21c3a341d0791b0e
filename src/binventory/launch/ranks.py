"""Start one process per rank of a job on this machine, and end them together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

GRACE_S = 60.0


def run_ranks(spec_path: Path, local_world_size: int, num_nodes: int = 1) -> int:
    """Run a job spec on `local_world_size` processes and return the job's exit code.

    Every rank is `python -m binventory.launch job.json` with torchrun's environment variables. SIGINT and SIGTERM are
    passed on. When one rank fails, the others are asked to stop, and killed after a grace period.
    """
    node = int(os.environ.get("NODE_RANK", "0"))
    environment = {
        **os.environ,
        "MASTER_ADDR": os.environ.get("MASTER_ADDR", "127.0.0.1"),
        "MASTER_PORT": os.environ.get("MASTER_PORT") or str(_free_port()),
        "WORLD_SIZE": str(local_world_size * num_nodes),
        "LOCAL_WORLD_SIZE": str(local_world_size),
        "NODE_RANK": str(node),
        "GROUP_RANK": str(node),
    }
    # Left to itself every rank would take all cores, and they would fight.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // local_world_size)))
    ranks = []
    for local_rank in range(local_world_size):
        rank = {"LOCAL_RANK": str(local_rank), "RANK": str(node * local_world_size + local_rank)}
        command = [sys.executable, "-m", "binventory.launch", str(spec_path)]
        ranks.append(subprocess.Popen(command, env={**environment, **rank}))
    return _wait(ranks)


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    def forward(signum: int, _frame: FrameType | None) -> None:
        for process in ranks:
            if process.poll() is None:
                process.send_signal(signum)

    before = {signum: signal.signal(signum, forward) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        deadline = None
        while any(process.poll() is None for process in ranks):
            ended = [process.returncode for process in ranks if process.returncode is not None]
            if deadline is None and any(code != 0 for code in ended):
                deadline = time.monotonic() + GRACE_S
                forward(signal.SIGTERM, None)
            if deadline is not None and time.monotonic() > deadline:
                forward(signal.SIGKILL, None)
            time.sleep(0.05)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return _job_exit_code([process.returncode for process in ranks])


def _job_exit_code(codes: list[int]) -> int:
    """Rank 0 wrote the status, so its code counts, unless it only stopped because another rank failed."""
    codes = [128 - code if code < 0 else code for code in codes]
    failures = [code for code in codes if code not in (0, 128 + signal.SIGINT, 128 + signal.SIGTERM)]
    return failures[0] if failures else codes[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
