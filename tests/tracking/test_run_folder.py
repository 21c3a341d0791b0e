"""Run folders are made exclusively."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from binventory.errors import InputError
from binventory.tracking.run_folder import make_run_folder


def test_a_hundred_at_once_are_a_hundred(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make_run_folder(tmp_path / "train"), range(100)))
    assert len(set(made)) == 100
    assert all(path.is_dir() for path in made)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-[0-9a-f]{4}", path.name) for path in made)


def test_place_that_is_no_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"paths\.output_dir"):
        make_run_folder(tmp_path / "file")
    with pytest.raises(InputError, match=r"paths\.output_dir"):
        make_run_folder(tmp_path / "file" / "train")
