"""What AWS does to a job that did nothing wrong: set beforehand, for jobs by the pattern of their name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from typing import Any

from binventory.errors import ConfigError
from binventory.sagemaker.local.errors import ServiceError


@dataclass(frozen=True)
class Interruption:
    """One spot interruption of a running job.

    Attributes:
        after_s: seconds of training (job time) after which it comes; None: only `when_file` counts.
        when_file: glob of a path in the checkpoint directory; it comes when such a file is there.
        sigterm: the process group gets SIGTERM and `grace_s` seconds, as on AWS most of the time; else SIGKILL at once.
        grace_s: seconds (job time) between SIGTERM and SIGKILL.
        upload_limit: that many more files reach the checkpoint prefix once the interruption begins; None: all.
    """

    after_s: float | None = None
    when_file: str | None = None
    sigterm: bool = True
    grace_s: float = 120
    upload_limit: int | None = None

    def __post_init__(self) -> None:
        if self.after_s is None and self.when_file is None:
            raise ConfigError("interruption: after_s and when_file are both missing; say when it comes")


@dataclass
class _Planned:
    """A fault for jobs whose name matches; `jobs_left` None: for all of them."""

    pattern: str
    kind: str
    value: Any
    jobs_left: int | None


@dataclass
class Faults:
    """The faults to come. Every method may be called while jobs run; a job takes its faults when it is created."""

    max_jobs: int | None = None  # the account's quota of jobs that run at one time
    _planned: list[_Planned] = field(default_factory=list)
    _throttled: list[tuple[str | None, int]] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def interrupt(self, pattern: str, *interruptions: Interruption, jobs: int | None = None) -> None:
        """Interrupt matching spot jobs (the next `jobs` of them): the n-th interruption hits the n-th attempt."""
        self._plan(pattern, "interrupt", interruptions, jobs)

    def no_capacity(self, pattern: str, jobs: int | None = None) -> None:
        """Give matching jobs no instance: they fail at once; spot jobs wait for one until their MaxWaitTime is over."""
        self._plan(pattern, "no_capacity", True, jobs)

    def slow_start(self, pattern: str, seconds: float, jobs: int | None = None) -> None:
        """Let matching jobs wait `seconds` (job time) for their instances."""
        self._plan(pattern, "slow_start", seconds, jobs)

    def throttle(self, calls: int, operation: str | None = None) -> None:
        """Answer the next calls (of one operation) with ThrottlingException."""
        with self._lock:
            self._throttled.append((operation, calls))

    def check_throttled(self, operation: str) -> None:
        """Raise ServiceError when a call of this operation is to be throttled."""
        with self._lock:
            for position, (only, calls) in enumerate(self._throttled):
                if calls > 0 and only in (None, operation):
                    self._throttled[position] = (only, calls - 1)
                    raise ServiceError("ThrottlingException", "Rate exceeded")

    def take(self, job_name: str) -> dict[str, Any]:
        """Faults of a job that is being created: kind -> value; the last one set of a kind counts."""
        taken: dict[str, Any] = {}
        with self._lock:
            for planned in reversed(self._planned):
                if planned.kind in taken or planned.jobs_left == 0 or not fnmatchcase(job_name, planned.pattern):
                    continue
                taken[planned.kind] = planned.value
                if planned.jobs_left is not None:
                    planned.jobs_left -= 1
        return taken

    def _plan(self, pattern: str, kind: str, value: Any, jobs: int | None) -> None:
        with self._lock:
            self._planned.append(_Planned(pattern, kind, value, jobs))

    def add_text(self, text: str) -> None:
        """Set a fault as the command line names it.

        `interrupt=NAME:after_s=20,sigterm=no` (once per attempt to be interrupted), `no_capacity=NAME`,
        `slow_start=NAME:30`, `throttle=3`, `quota=2` (jobs that may run at one time); NAME is a glob of job names.

        Raises:
            ConfigError: the text names no fault, or a value cannot be read.
        """
        kind, _, rest = text.partition("=")
        pattern, _, value = rest.partition(":")
        try:
            if kind == "interrupt" and pattern:
                self._add_interruption(pattern, _read_interruption(value))
            elif kind == "no_capacity" and pattern and not value:
                self.no_capacity(pattern)
            elif kind == "slow_start" and pattern:
                self.slow_start(pattern, float(value))
            elif kind == "throttle":
                self.throttle(int(rest))
            elif kind == "quota":
                self.max_jobs = int(rest)
            else:
                raise ValueError
        except ValueError as error:
            if isinstance(error, ConfigError):
                raise
            known = "interrupt=NAME:after_s=20,sigterm=no, no_capacity=NAME, slow_start=NAME:30, throttle=3, quota=2"
            raise ConfigError(f"--fault {text!r} cannot be read; known are {known}") from error

    def _add_interruption(self, pattern: str, interruption: Interruption) -> None:
        for planned in self._planned:
            if planned.kind == "interrupt" and planned.pattern == pattern:
                planned.value = (*planned.value, interruption)
                return
        self.interrupt(pattern, interruption)


def _read_interruption(text: str) -> Interruption:
    readers: dict[str, Callable[[str], Any]] = {
        "after_s": float,
        "when_file": str,
        "sigterm": lambda value: {"yes": True, "no": False}[value],
        "grace_s": float,
        "upload_limit": int,
    }
    assert set(readers) == {item.name for item in fields(Interruption)}
    given: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            given[name] = readers[name](value)
        except KeyError as error:
            raise ValueError(part) from error
    return Interruption(**given)
