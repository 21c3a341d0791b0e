"""Fixtures shared by all tests."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Iterator
from multiprocessing import forkserver
from pathlib import Path

import pytest

from binventory.launch.runner import STOP_SIGNALS
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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the longest files come first; within a file nothing changes."""

    def place(item: pytest.Item) -> int:
        file = item.path.relative_to(ROOT / "tests").as_posix()
        return next((number for number, start in enumerate(LONGEST) if file.startswith(start)), len(LONGEST))

    items.sort(key=place)


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
