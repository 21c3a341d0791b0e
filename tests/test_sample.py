"""Which long tests a commit runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests import conftest

FILES = [f"folder/test_{number}.py" for number in range(30)]


def test_each_commit_has_an_order_of_its_own_and_every_file_has_its_turn() -> None:
    orders = [sorted(FILES, key=lambda file: conftest.turn(commit, file)) for commit in map(str, range(40))]
    backwards = FILES[::-1]
    assert orders[0] == sorted(backwards, key=lambda file: conftest.turn("0", file))
    assert len({tuple(order) for order in orders}) == 40
    assert set().union(*(order[:6] for order in orders)) == set(FILES)


@pytest.mark.parametrize(("minutes", "runs"), [(None, True), (1e9, True), (0.0, False)])
def test_what_there_is_no_time_for_is_skipped(minutes: float | None, runs: bool) -> None:
    item = cast(Any, SimpleNamespace(config=SimpleNamespace(getoption={"--sample-minutes": minutes}.get)))
    if runs:
        conftest.pytest_runtest_setup(item)
    else:
        with pytest.raises(pytest.skip.Exception, match="left to another commit"):
            conftest.pytest_runtest_setup(item)
