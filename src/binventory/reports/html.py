"""One HTML file that needs nothing beside it: styles, scripts, libraries and data are in it, and it asks no network.

A page is a Jinja template that extends `page.html`, with its own CSS and JavaScript beside it under the same name.
Values become text in it; what is not text for people goes into `data`, which the page's script reads as JSON. Scripts
run by their hashes only: markup that got in all the same could not run any.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from binventory.data.text import utf8
from binventory.errors import InputError

ASSETS = Path(__file__).resolve().parent / "assets"
POLICY = (
    "default-src 'none'; script-src {scripts}; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none';"
    " form-action 'none'"
)


def render_page(template: Path, values: Mapping[str, Any], data: Any, *, charts: bool) -> str:
    """Return a page.

    Args:
        template: the Jinja template; `NAME.css` and `NAME.js` lie beside it.
        values: what the template shows.
        data: plain values for its script: JSON without NaN.
        charts: whether plotly.js is put into the page; it takes 4.8 MB.

    Raises:
        InputError: a package that the page takes its scripts from is not installed or has other files.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    style, script = (
        "\n".join((folder / f"{name}{suffix}").read_text(encoding="utf-8") for folder, name in _parts(template))
        for suffix in (".css", ".js")
    )
    # Scripts of one type run in the order in which they stand; modules after the others.
    scripts = [(False, plotly_js())] if charts else []
    scripts += [(True, datatables_js()), (True, script)]
    policy = POLICY.format(scripts=" ".join(_hash(text) for _, text in scripts))
    environment = Environment(
        loader=FileSystemLoader([template.parent, ASSETS]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    head = {"policy": policy, "style": Markup(style), "data": Markup(script_json(data))}  # noqa: S704  our own files
    shown = [(is_module, Markup(text)) for is_module, text in scripts]  # noqa: S704  and the libraries'
    return utf8(environment.get_template(template.name).render({**values, **head, "scripts": shown}))


def script_json(data: Any) -> str:
    """Return JSON that can stand inside of a script element: nothing in it ends the element or starts a comment."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))  # ASCII, so no U+2028 either
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


@cache
def plotly_js() -> str:
    """Return plotly.js of the installed package. Importing plotly itself would take longer."""
    return _library("plotly", "package_data/plotly.min.js")


@cache
def datatables_js() -> str:
    """Return the DataTables bundle of the installed itables; it defines `window.DataTable`."""
    text = _library("itables", "html/dt_bundle.js")
    exports = re.findall(r"export\{([^}]*)\}", text)
    if len(exports) != 1 or (default := re.search(r"([\w$]+) as default", exports[0])) is None:
        raise InputError("itables: its DataTables bundle has no default export; install itables==2.9.1")
    return text.replace(f"export{{{exports[0]}}}", f"window.DataTable={default[1]}")


def _library(package: str, name: str) -> str:
    found = importlib.util.find_spec(package)
    folders = [] if found is None else list(found.submodule_search_locations or [])
    for folder in folders:
        path = Path(folder) / name
        if path.is_file():
            return _inline(path.read_text(encoding="utf-8"))
    raise InputError(f"{package}: the page needs its {name}; pip install {package}")


def _inline(text: str) -> str:
    """Return a script with nothing in it that would end its element or hide the rest of it."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _parts(template: Path) -> list[tuple[Path, str]]:
    return [(ASSETS, "page"), (template.parent, template.stem)]


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
