"""The training toolkit's environment: made once, or not at all."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from binventory.errors import InputError
from binventory.sagemaker.local.toolkit import toolkit_python


def test_it_is_found_again(toolkit: Path) -> None:
    assert toolkit.is_file()
    assert toolkit.with_name("train").is_file()
    assert (toolkit.parent.parent / "complete").is_file()


def test_what_it_shares_with_this_python_is_of_one_version(toolkit: Path) -> None:
    """A job requires the tested versions, and the index may have newer ones."""
    (own,) = toolkit.parent.parent.glob("lib/python*/site-packages")
    there = {package.metadata["Name"]: package.version for package in metadata.distributions(path=[str(own)])}
    assert {"boto3", "numpy"} <= there.keys()
    here = {package.metadata["Name"]: package.version for package in reversed([*metadata.distributions()])}
    shared = there.keys() & here.keys() - {"pip"}  # the venv's own
    assert {name: there[name] for name in shared} == {name: here[name] for name in shared}


@pytest.mark.long
def test_without_an_index_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(InputError, match=r"^sagemaker-training==\S+ could not be installed into .*: ERROR: "):
        toolkit_python(tmp_path)
    assert [path.suffix for path in (tmp_path / "sagemaker-toolkit").iterdir()] in ([], [".lock"])


def test_a_cache_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be written to .* set BINVENTORY_CACHE_DIR"):
        toolkit_python(tmp_path / "file")
