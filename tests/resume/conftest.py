"""Runs that nobody disturbed."""

from __future__ import annotations

import pytest

from tests.resume.jobs import Jobs
from tests.resume.runs import Lab


@pytest.fixture(scope="session")
def lab(jobs: Jobs, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A folder with prepared bins where runs are made, and the undisturbed runs to compare with."""
    return Lab(jobs, tmp_path_factory.mktemp("lab"))
