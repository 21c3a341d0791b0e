"""What provenance.json says of the code, and what asking for it leaves alone."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from binventory.tracking import provenance as module


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one commit, which the package seems to lie in."""
    (tmp_path / "code.py").write_text("one = 1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "code.py")
    git(tmp_path, "commit", "--quiet", "--message", "one")
    monkeypatch.setattr(module, "__file__", str(tmp_path / "code.py"))
    return tmp_path


def test_commit_and_what_differs_from_it(checkout: Path) -> None:
    clean = module.provenance([], {})["git"]
    assert clean == {"commit": git(checkout, "rev-parse", "HEAD"), "dirty": False, "diff_sha256": None}
    (checkout / "code.py").write_text("one = 2\n")
    dirty = module.provenance([], {})["git"]
    assert dirty["commit"] == clean["commit"]
    assert dirty["dirty"]
    assert len(dirty["diff_sha256"]) == 64


def test_asking_writes_nothing_into_the_repository(checkout: Path) -> None:
    """Killed while it rewrites the index, git would leave a lock behind that stops the user's next commit."""
    os.utime(checkout / "code.py", (1, 1))  # so that git would bring its index up to date
    before = (checkout / ".git" / "index").read_bytes()
    module.provenance([], {})
    assert (checkout / ".git" / "index").read_bytes() == before
