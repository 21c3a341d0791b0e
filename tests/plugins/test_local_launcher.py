"""Hydra's own suites on our launcher and our grid sweeper: they run any Hydra application, not only ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.test_utils.launcher_common_tests import BatchedSweeperTestSuite, IntegrationTestSuite, LauncherTestSuite

from hydra_plugins.binventory_grid_sweeper.grid_sweeper import GridSweeper
from hydra_plugins.binventory_local_launcher.local_launcher import LocalLauncher

pytestmark = pytest.mark.usefixtures("job_server")

GRID = "hydra/sweeper=binventory_grid"
# The suites give closures as tasks, which no process can import.
PICKLED = "hydra.launcher.allow_pickled_task=true"
# They expect the working directory of Hydra 1.1, and other tests of this process set another version.
CHDIR = "hydra.job.chdir=true"


def test_hydra_finds_them() -> None:
    names = {found.__name__ for kind in (Launcher, Sweeper) for found in Plugins.instance().discover(kind)}
    assert {LocalLauncher.__name__, GridSweeper.__name__} <= names


@pytest.mark.parametrize(
    ("launcher_name", "overrides"),
    [
        ("local", [PICKLED, CHDIR]),
        ("local", [PICKLED, CHDIR, GRID, "hydra.launcher.n_jobs=2"]),
        ("basic", [GRID, CHDIR]),
    ],
    ids=["launcher", "launcher and sweeper", "sweeper"],
)
class TestLaunching(LauncherTestSuite):
    """Each with Hydra's own other half, and both together."""


@pytest.mark.parametrize(
    ("launcher_name", "overrides"),
    [
        ("local", [PICKLED, CHDIR, "hydra.sweeper.max_batch_size=2"]),
        ("local", [PICKLED, CHDIR, GRID, "hydra.sweeper.max_batch_size=2", "hydra.launcher.n_jobs=2"]),
        ("basic", [GRID, CHDIR, "hydra.sweeper.max_batch_size=2"]),
    ],
    ids=["launcher", "launcher and sweeper", "sweeper"],
)
class TestBatches(BatchedSweeperTestSuite):
    """Six jobs in three batches of two."""


@pytest.mark.parametrize(("task_launcher_cfg", "extra_flags"), [({}, ["-m", "hydra/launcher=local", GRID])])
class TestIntegration(IntegrationTestSuite):
    """Real scripts; their tasks are functions of a module, so nothing is pickled but their config."""


def test_a_pickled_task_is_refused_unless_asked_for(tmp_path: Path) -> None:
    script = tmp_path / "app.py"
    script.write_text(
        "import hydra\n"
        "def make():\n"
        "    @hydra.main(version_base='1.3', config_path=None)\n"
        "    def app(cfg):\n"
        "        print('ran')\n"
        "    return app\n"
        "if __name__ == '__main__':\n"
        "    make()()\n"
    )
    command = [sys.executable, str(script), "-m", "hydra/launcher=local", GRID]
    refused = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "allow_pickled_task=true" in refused.stdout
    assert "ran" not in refused.stdout
    allowed = subprocess.run([*command, PICKLED], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert allowed.returncode == 0, allowed.stderr
    assert "ran" in allowed.stdout
