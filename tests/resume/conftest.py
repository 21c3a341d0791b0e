"""The job server, and runs that nobody disturbed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from tests.resume.jobs import Jobs
from tests.resume.runs import Lab


@pytest.fixture(scope="session")
def jobs() -> Iterator[Jobs]:
    """The server that starts real processes; see `tests.resume.jobs`."""
    probe = ["unshare", "--mount", "--propagation", "private", "true"]
    can_mount = os.geteuid() == 0 and subprocess.run(probe, check=False, capture_output=True).returncode == 0
    server = Jobs(private_mounts=can_mount)
    yield server
    server.close()


@pytest.fixture(scope="session")
def lab(jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A folder with prepared bins where runs are made, and the undisturbed runs to compare with."""
    return Lab(jobs, tmp_path_factory.mktemp("lab"))
