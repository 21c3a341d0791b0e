"""Hydra's own suites: the sweeper on a grid does what Hydra's sweeper does."""

from __future__ import annotations

import pytest
from hydra.test_utils.launcher_common_tests import (
    BatchedSweeperTestSuite,
    IntegrationTestSuite,
    LauncherTestSuite,
)

GRID = ["hydra/sweeper=binventory_optuna", "hydra.sweeper.sampler=grid", "hydra.sweeper.n_jobs=2"]


# The suites expect the working directory of Hydra 1.1, and other tests of this process set another version.
CHDIR = "hydra.job.chdir=true"


@pytest.mark.parametrize(("launcher_name", "overrides"), [("basic", [*GRID, CHDIR])])
class TestLaunching(LauncherTestSuite):
    """The basic launcher blocks: batches of two, as the suite's sweeps of two jobs expect."""


@pytest.mark.parametrize(("launcher_name", "overrides"), [("basic", [*GRID, CHDIR])])
class TestBatches(BatchedSweeperTestSuite):
    """Six jobs in three batches."""


@pytest.mark.parametrize(
    ("task_launcher_cfg", "extra_flags"),
    [({}, ["-m", "hydra/launcher=basic", *GRID])],
)
class TestIntegration(IntegrationTestSuite):
    """Real scripts; their tasks return nothing, which is a failed trial but no failed job."""
