"""Launchers of other packages (the extras `submitit` and `ray`): what composes, and real jobs under the long marker.

A test is skipped where its plugin is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from binventory.config.compose import PLUGIN_EXTRAS, compose_checked
from binventory.errors import ConfigError
from binventory.launch.entry import main
from tests.running import ROOT, TINY

# launcher -> (the plugin's package, the class that its config names)
PLUGINS = {
    "submitit_local": ("hydra_submitit_launcher", "submitit_launcher.LocalLauncher"),
    "submitit_slurm": ("hydra_submitit_launcher", "submitit_launcher.SlurmLauncher"),
    "ray": ("hydra_ray_launcher", "ray_launcher.RayLauncher"),
}
# Options of the plugins that a user of the design's sweeps needs; a new version of a plugin must not lose them.
OPTIONS = {
    "submitit_local": ["hydra.launcher.timeout_min=600", "hydra.launcher.cpus_per_task=2"],
    "submitit_slurm": [
        "hydra.launcher.partition=gpu",
        "hydra.launcher.gpus_per_node=1",
        "hydra.launcher.timeout_min=600",
    ],
    "ray": ["+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.remote.num_cpus=1"],
}


def is_installed(launcher: str) -> bool:
    return importlib.util.find_spec(f"hydra_plugins.{PLUGINS[launcher][0]}") is not None


def need(launcher: str) -> None:
    if not is_installed(launcher):
        pytest.skip(f"{PLUGINS[launcher][0]} is not installed; pip install 'binventory[{launcher.partition('_')[0]}]'")


def test_each_has_an_extra() -> None:
    assert PLUGIN_EXTRAS.keys() == {f"hydra/launcher={launcher}" for launcher in PLUGINS}


@pytest.mark.parametrize("launcher", PLUGINS)
def test_without_the_plugin_one_line_names_the_extra(launcher: str) -> None:
    if is_installed(launcher):
        pytest.skip(f"{PLUGINS[launcher][0]} is installed")
    extra = launcher.partition("_")[0]
    with pytest.raises(ConfigError, match=rf"hydra/launcher={launcher}: .*pip install 'binventory\[{extra}\]'"):
        compose_checked("train", [f"hydra/launcher={launcher}"], multirun=True)


@pytest.mark.parametrize("launcher", PLUGINS)
def test_composes(launcher: str, capsys: pytest.CaptureFixture[str]) -> None:
    need(launcher)
    overrides = [f"hydra/launcher={launcher}", *OPTIONS[launcher]]
    assert len(compose_checked("train", [*overrides, "seed=0,1"], multirun=True)) == 2
    main("train", ["--cfg", "hydra", "--package", "hydra.launcher", *overrides])
    config = yaml.safe_load(capsys.readouterr().out)
    package, class_name = PLUGINS[launcher]
    assert config["_target_"] == f"hydra_plugins.{package}.{class_name}"
    for option in OPTIONS[launcher]:
        key, _, value = option.removeprefix("+").removeprefix("hydra.launcher.").partition("=")
        found: Any = config
        for part in key.split("."):
            found = found[part]
        assert str(found) == value


# Two jobs: the second can only fail when it runs, for no drawn bin holds 9 items.
JOBS = "data.counts=[1,2],[1,9]"
RAY = ["+hydra.launcher.ray.init.num_cpus=2", "+hydra.launcher.ray.init.include_dashboard=false"]


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("launcher", ["submitit_local", "ray"])
def test_real_jobs_and_one_that_fails(launcher: str, tmp_path: Path) -> None:
    """One job is done, the other is one failed row and was tried once; the exit code says so."""
    need(launcher)
    words = ["-m", f"hydra/launcher={launcher}", *(RAY if launcher == "ray" else []), *TINY, JOBS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    command = [sys.executable, str(ROOT / "train.py"), *words]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 1, done.stdout + done.stderr
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    status = [json.loads((sweep / str(number) / "status.json").read_text()) for number in (0, 1)]
    assert [each["state"] for each in status] == ["done", "failed"]
    assert json.loads((sweep / "0" / "metrics.json").read_text())["epochs"] == 2
    assert "no bin with quantity 9" in status[1]["error"]["message"]
    assert "earlier_attempts" not in json.loads((sweep / "1" / "provenance.json").read_text()), "it was tried again"
    record = json.loads((sweep / "sweep.json").read_text())
    assert [job["state"] for job in record["jobs"]] == ["done", "failed"]
    assert record["state"] == "failed"
