"""The training toolkit's environment: made once, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from binventory.errors import InputError
from binventory.sagemaker.local.toolkit import toolkit_python


def test_it_is_found_again(toolkit: Path) -> None:
    assert toolkit.is_file()
    assert toolkit.with_name("train").is_file()
    assert (toolkit.parent.parent / "complete").is_file()


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
