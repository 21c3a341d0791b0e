"""Fixtures shared by all tests."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Colours and widths of the terminal that runs the tests must not reach what they read.
os.environ.update({"NO_COLOR": "1", "COLUMNS": "120", "WANDB_MODE": "offline"})

Command = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def abid() -> Path:
    """Folder of real photos beside the checkout; tests that need it are marked `abid`."""
    folder = ROOT.parent / "shared" / "abid"
    if not folder.is_dir():
        if os.environ.get("BINVENTORY_REQUIRE_ABID"):
            pytest.fail("BINVENTORY_REQUIRE_ABID is set and ../shared/abid is not there")
        pytest.skip("the real photos are not here (../shared/abid)")
    return folder


def run_command(*arguments: str | Path, cwd: Path, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """Run `train.py`, `predict.py` or `binventory` as a user does, from another folder than the checkout."""
    first, *rest = [str(argument) for argument in arguments]
    command = [sys.executable, str(ROOT / first), *rest]
    if first == "binventory":
        command = [str(Path(sys.executable).parent / "binventory"), *rest]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, timeout=timeout_s)


@pytest.fixture
def command(tmp_path: Path) -> Command:
    """Run a command in this test's own folder."""

    def run(*arguments: str | Path, cwd: Path = tmp_path, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
        return run_command(*arguments, cwd=cwd, timeout_s=timeout_s)

    return run
