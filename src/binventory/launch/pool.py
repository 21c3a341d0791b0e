"""Jobs as processes of this machine: each starts when there is room for it, and none can take the others with it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

from binventory.cores import usable_cores
from binventory.signals import STOP_SIGNALS

POLL_S = 0.2
GRACE_S = 90.0  # longer than a job gives its own ranks


@dataclass(frozen=True)
class Share:
    """What a job has of the machine to itself: CPU threads, and GPUs as CUDA_VISIBLE_DEVICES names them."""

    threads: int
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Work:
    """What a job's process calls: `target(share, *args)`, importable. Its exit code is that of the process."""

    target: Callable[..., None]
    args: tuple[Any, ...]
    num_gpus: int = 0


@dataclass(eq=False)
class Job:
    """One job of a pool.

    Attributes:
        number: its place in the sweep.
        prepare: returns the work when it is the job's turn; None: there is nothing to run, the job has ended.
        on_start: called when its process has started.
        exit_code: of its process once it ended; negative: the signal that killed it. None without a process.
    """

    number: int
    prepare: Callable[[], Work | None] = field(repr=False)
    on_start: Callable[[], None] = field(repr=False)
    exit_code: int | None = None
    process: BaseProcess | None = field(default=None, repr=False)
    share: Share | None = None
    _work: Work | None = field(default=None, repr=False)


class Pool:
    """At most `n_jobs` processes at once, forked from a server that has imported what they need.

    Args:
        n_jobs: how many; None: as many as the GPUs allow for jobs that need some, one job at a time for others.
        threads_per_job: CPU threads of each; None: a fair share of the cores.
        preload: modules that the server imports once. A process of its own would need seconds for them.
    """

    def __init__(self, n_jobs: int | None, threads_per_job: int | None, preload: Sequence[str]) -> None:
        self.n_jobs = n_jobs
        self.waiting: deque[Job] = deque()
        self.running: list[Job] = []
        self._ended: deque[Job] = deque()
        self._threads = threads_per_job
        self._free_gpus: list[str] | None = None
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(list(preload))

    def submit(self, job: Job) -> None:
        """Start a job, or let it wait until there is room."""
        self.waiting.append(job)
        self._start_waiting()

    def as_completed(self, timeout_s: float | None = None) -> Iterator[Job]:
        """Yield each job as it ends; return when none is left, or when none ended for `timeout_s`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            self._collect()
            while self._ended:
                yield self._ended.popleft()
                deadline = None if timeout_s is None else time.monotonic() + timeout_s
            # Not before: whoever was told may not want any more to start.
            self._start_waiting()
            if self._ended:
                continue
            if not self.running and not self.waiting:
                return
            if deadline is not None and time.monotonic() > deadline:
                return
            wait([job.process.sentinel for job in self.running if job.process is not None], POLL_S)

    def cancel(self, job: Job, signum: int = signal.SIGTERM) -> None:
        """Drop a job that waits; send a signal to one that runs."""
        if job in self.waiting:
            self.waiting.remove(job)
        elif job.process is not None and job.process.pid is not None and job.process.is_alive():
            os.kill(job.process.pid, signum)

    def stop(self, signum: int = signal.SIGTERM) -> None:
        """Drop what waits, send a signal to what runs and wait for its end; kill what does not end in time."""
        self.waiting.clear()
        for job in self.running:
            self.cancel(job, signum)
        deadline = time.monotonic() + GRACE_S
        while self.running:
            if time.monotonic() > deadline:
                for job in self.running:
                    _kill_group(job)
            wait([job.process.sentinel for job in self.running if job.process is not None], POLL_S)
            self._collect()

    def _collect(self) -> None:
        for job in list(self.running):
            if job.process is None or job.process.is_alive():
                continue
            job.process.join()
            job.exit_code = job.process.exitcode
            if job.exit_code is not None and job.exit_code < 0:
                _kill_group(job)  # the ranks and loader workers that a kill left behind
            job.process.close()
            job.process = None
            self.running.remove(job)
            self._give_back(job)
            self._ended.append(job)

    def _start_waiting(self) -> None:
        while self.waiting and (self.n_jobs is None or len(self.running) < self.n_jobs):
            job = self.waiting[0]
            if job._work is None:
                job._work = job.prepare()
            if job._work is None:
                self._ended.append(self.waiting.popleft())
                continue
            share = self._take(job._work.num_gpus)
            if share is None:
                return  # the next one may fit, but would keep this one waiting for ever
            self._start(self.waiting.popleft(), job._work, share)

    def _start(self, job: Job, work: Work, share: Share) -> None:
        job.share = share
        # Not a daemon: those may have no children, and a job has loader workers and ranks.
        process = self._context.Process(target=work.target, args=(share, *work.args), daemon=False)
        # The server that the first one starts keeps this mask: a signal to the process group ends its jobs, not it.
        resource_tracker.ensure_running()  # begun in between, it would unblock SIGINT and SIGTERM
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        job.process = process
        self.running.append(job)
        job.on_start()

    def _take(self, num_gpus: int) -> Share | None:
        """Return what a job may use; None: it has to wait."""
        if num_gpus == 0:
            if self.n_jobs is None and self.running:
                return None
            return Share(self._fair_threads(self.n_jobs or 1))
        if self._free_gpus is None:
            self._free_gpus = visible_gpus()
        num_all = len(self._free_gpus) + sum(len(job.share.gpus) for job in self.running if job.share)
        # More than there are: the job says so itself, in its own words, when it starts.
        wanted = min(num_gpus, num_all)
        if len(self._free_gpus) < wanted or (wanted == 0 and self.running):
            return None
        taken = tuple(self._free_gpus[:wanted])
        del self._free_gpus[:wanted]
        return Share(self._fair_threads(self.n_jobs or max(1, num_all // max(1, wanted))), taken)

    def _fair_threads(self, num_jobs: int) -> int:
        return self._threads or max(1, usable_cores() // num_jobs)

    def _give_back(self, job: Job) -> None:
        if job.share is not None and self._free_gpus is not None:
            self._free_gpus.extend(job.share.gpus)


def visible_gpus() -> list[str]:
    """Return the GPUs of this process as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip() not in ("", "-1")]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _kill_group(job: Job) -> None:
    """Kill the process group that a job's process made for itself."""
    if job.process is not None and job.process.pid is not None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(job.process.pid, signal.SIGKILL)
