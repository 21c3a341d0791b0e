"""Fixtures shared by all tests."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

from binventory.signals import STOP_SIGNALS
from tests.resume.jobs import Jobs
from tests.running import ROOT, TINY, Run, run_here

pytest_plugins = ["tests.browser", "tests.s3", "tests.wandb.server"]

# Colours and widths of the terminal that runs the tests must not reach what they read; nothing may reach for a cloud.
os.environ.update({"NO_COLOR": "1", "COLUMNS": "120", "WANDB_MODE": "offline"})
# Tests and their jobs share the cores. Threads of one job that spin while they wait for each other take them from the
# rest: four times the CPU time, measured. torch reads this when it is imported.
os.environ.update({"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"})


# Folders and files that take long, the longest first: what is begun last keeps one worker busy while the other idles.
LONGEST = (
    "sweeps/",
    "resume/",
    "security/test_secrets.py",
    "e2e/",
    "docs/",
    "plugins/",
    "sagemaker/",
    "compare/",
    "callbacks/",
)


STARTED = time.monotonic()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what bounds a sample of the long tests."""
    parser.addoption(
        "--sample-minutes",
        type=float,
        help="start no test after so many minutes; files come in an order that the commit decides, so that others are"
        " run at the next one",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Let the longest files come first, or those whose turn it is; within a file nothing changes."""
    if config.getoption("--sample-minutes") is None:
        items.sort(key=lambda item: _length_rank(_file_of(item)))
    else:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
        ).stdout
        items.sort(key=lambda item: turn(commit, _file_of(item)))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what a sample has no time for."""
    minutes = item.config.getoption("--sample-minutes")
    if minutes is not None and time.monotonic() - STARTED > 60 * minutes:
        pytest.skip(f"{minutes:g} minutes are over: left to another commit")


def turn(commit: str, file: str) -> str:
    """Return by what the files of a sample are sorted: another order at each commit, the same in every process."""
    return hashlib.sha256(f"{commit} {file}".encode()).hexdigest()


def _file_of(item: pytest.Item) -> str:
    return item.path.relative_to(ROOT / "tests").as_posix()


def _length_rank(file: str) -> int:
    return next((number for number, start in enumerate(LONGEST) if file.startswith(start)), len(LONGEST))


@pytest.fixture(autouse=True)
def _signal_handlers() -> Iterator[None]:
    """Put the handlers back: a job that is stopped leaves its process ignoring signals, and children inherit that."""
    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture(scope="session")
def abid() -> Path:
    """Folder of real photos beside the checkout; tests that need it are marked `abid`."""
    folder = ROOT.parent / "shared" / "abid"
    if not folder.is_dir():
        if os.environ.get("BINVENTORY_REQUIRE_ABID"):
            pytest.fail("BINVENTORY_REQUIRE_ABID is set and ../shared/abid is not there")
        pytest.skip("the real photos are not here (../shared/abid)")
    return folder


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose synthetic photos and indexes the tests share."""
    return tmp_path_factory.mktemp("workplace")


@pytest.fixture(scope="session")
def trained(workplace: Path) -> Path:
    """Run folder of a finished training: done once, looked at by many tests."""
    return run_here(workplace, "train", *TINY)


@pytest.fixture(scope="session")
def job_server() -> None:
    """The server that the pool's jobs are forked from, with the whole stack imported; a process has one for its life."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(["binventory.launch.preload"])
    forkserver.ensure_running()


@pytest.fixture(scope="session")
def jobs() -> Iterator[Jobs]:
    """The server that starts real processes; see `tests.resume.jobs`."""
    probe = ["unshare", "--mount", "--propagation", "private", "true"]
    can_mount = os.geteuid() == 0 and subprocess.run(probe, check=False, capture_output=True).returncode == 0
    server = Jobs(private_mounts=can_mount)
    yield server
    server.close()


@pytest.fixture
def run(workplace: Path) -> Run:
    """Run a task in this process and return its run folder."""

    def start(task: str, *overrides: str) -> Path:
        return run_here(workplace, task, *overrides)

    return start
