"""Where the tests of `compare` run."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page goes to outputs/ where the command is run."""
    monkeypatch.chdir(tmp_path)
