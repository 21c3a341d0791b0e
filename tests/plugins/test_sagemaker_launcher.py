"""Hydra's own suites on hydra/launcher=sagemaker_local: each job a training job, whatever application it belongs to."""

from __future__ import annotations

import os

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, LauncherTestSuite

from hydra_plugins.binventory_sagemaker_launcher.sagemaker_launcher import SageMakerLauncher
from tests.sagemaker.local.conftest import CACHE, toolkit

__all__ = ["toolkit"]

# The suites give closures as tasks, and expect the working directory of Hydra 1.1.
FOREIGN = ["hydra.launcher.allow_pickled_task=true", "hydra.job.chdir=true", "hydra.launcher.max_parallel=2"]


@pytest.fixture(autouse=True)
def everything_is_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toolkit's environment is this machine's, and pip must not look for packages."""
    if request.cls is None:
        return
    request.getfixturevalue("toolkit")
    monkeypatch.setenv("BINVENTORY_CACHE_DIR", str(CACHE))
    monkeypatch.setenv("PIP_NO_INDEX", "1")


def test_hydra_finds_it_and_its_presets() -> None:
    assert SageMakerLauncher.__name__ in {found.__name__ for found in Plugins.instance().discover(Launcher)}


@pytest.mark.long
@pytest.mark.parametrize(("launcher_name", "overrides"), [("sagemaker_local", FOREIGN)])
class TestLaunching(LauncherTestSuite):
    """With Hydra's basic sweeper."""


@pytest.mark.long
@pytest.mark.parametrize(
    ("launcher_name", "overrides"), [("sagemaker_local", [*FOREIGN, "hydra.sweeper.max_batch_size=2"])]
)
class TestBatches(BatchedSweeperTestSuite):
    """Six jobs in three batches of two."""


def test_no_endpoint_of_a_plane_is_left_behind() -> None:
    """Runs after the suites."""
    assert not any(name.startswith("AWS_ENDPOINT_URL") for name in os.environ)
