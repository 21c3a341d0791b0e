"""Make the page as a user does, and read it."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from binventory.cli import app
from tests.browser import Tab

# The curves as they are drawn: name, epochs, values, whether it is shown.
TRACES = "document.getElementById('curve-chart').data.map(one => [one.name, [...one.x], [...one.y], one.visible])"


def page_of(place: Path, page: Path, *options: str) -> Path:
    result = CliRunner().invoke(app, ["compare", str(place), *options, "--html", str(page)])
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"wrote {page}"
    return page


def rows_of(tab: Tab, table: str) -> list[dict[str, str]]:
    """The shown rows of a table by heading."""
    names = [name.split("\n")[0] for name in tab.texts(f"{table} thead th")]
    cells = tab.page.eval_on_selector_all(
        f"{table} tbody tr",
        "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.split('\\n')[0].trim()))",
    )
    return [dict(zip(names, row, strict=True)) for row in cells]
