"""A control plane shared by the tests of a file, and the toolkit's environment, made once for a machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from binventory.errors import InputError
from binventory.sagemaker.local.container import namespace_command
from binventory.sagemaker.local.server import LocalSageMaker
from binventory.sagemaker.local.toolkit import toolkit_python
from tests.running import ROOT
from tests.sagemaker.local.lab import MARK, Lab, fresh_mark

CACHE = Path(os.environ.get("BINVENTORY_CACHE_DIR", ROOT / ".cache")).absolute()
TIME_SCALE = 60.0  # a job's minute is a second


@pytest.fixture(scope="session")
def toolkit() -> Path:
    """Python of the training toolkit. BINVENTORY_REQUIRE_TOOLKIT=1 makes its absence a failure."""
    try:
        return toolkit_python(CACHE)
    except InputError as error:
        if os.environ.get("BINVENTORY_REQUIRE_TOOLKIT"):
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def namespaces() -> None:
    """Private mount namespaces. BINVENTORY_REQUIRE_TOOLKIT=1 makes their absence a failure."""
    if namespace_command() is None:
        reason = "this system allows no private mount namespaces"
        if os.environ.get("BINVENTORY_REQUIRE_TOOLKIT"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def api_lab() -> Iterator[Lab]:
    """For tests of calls that start no job."""
    with LocalSageMaker(cache=CACHE) as plane:
        yield Lab(plane)


@pytest.fixture(scope="module")
def lab(toolkit: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """For tests that run jobs."""
    folder = tmp_path_factory.mktemp("plane")
    environment = {MARK: fresh_mark(folder), "PIP_NO_INDEX": "1"}
    with LocalSageMaker(
        folder, cache=CACHE, time_scale=TIME_SCALE, checkpoint_period_s=0.1, environment=environment
    ) as plane:
        yield Lab(plane)
    assert not (folder / "jobs").exists() or not list((folder / "jobs").iterdir())
