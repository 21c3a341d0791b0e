"""The plugins are found, and pass Hydra's suites, from an installed wheel as from the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.running import ROOT

SUITES = ["tests/plugins/test_local_launcher.py", "tests/plugins/test_optuna_suites.py"]


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_suites_pass_from_a_wheel(tmp_path: Path) -> None:
    """Builds one as `pip install .` does: the index gives setuptools."""
    checkout = tmp_path / "checkout"  # a build leaves files behind, which the next one would take up
    checkout.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, checkout)
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, checkout / name, symlinks=True)
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(tmp_path), str(checkout)]
    subprocess.run(install, check=True)
    assert (tmp_path / "hydra_plugins" / "binventory_local_launcher" / "local_launcher.py").exists()
    assert not (tmp_path / "hydra_plugins" / "__init__.py").exists(), "it would hide the plugins of others"
    assert (tmp_path / "binventory" / "configs" / "experiment" / "published_results.csv").exists()
    assert (tmp_path / "binventory" / "data" / "sources" / "report_list.json.gz").exists()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}  # before the checkout
    where = "import binventory, hydra_plugins.binventory_grid_sweeper as g; print(binventory.__file__, g.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", where], env=environment, capture_output=True, text=True, check=True, cwd=tmp_path
    )
    assert all(path.startswith(str(tmp_path)) for path in found.stdout.split())
    suites = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *SUITES]
    done = subprocess.run(suites, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:]
