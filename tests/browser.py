"""One headless Chromium for all tests of pages, with the network cut off."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip


@dataclass
class Tab:
    """A page in the browser, and everything that went wrong with it.

    Attributes:
        page: Playwright's page.
        errors: of the console, of scripts, of the content policy, and of dialogs.
        requests: the URLs that were asked for, in order; those of data: are left out.
    """

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def texts(self, selector: str) -> list[str]:
        """Return the visible text of the elements that a selector finds and that are shown."""
        found: list[str] = self.page.eval_on_selector_all(
            selector, "all => all.filter(one => one.checkVisibility()).map(one => one.innerText.trim())"
        )
        return found

    def until(self, expression: str) -> None:
        """Wait until a JavaScript expression holds; the page's content policy forbids Playwright's own way."""
        deadline = time.monotonic() + 10
        while not self.page.evaluate(expression):
            assert time.monotonic() < deadline, f"never so: {expression}"
            time.sleep(0.02)

    def contrast(self, selector: str) -> float:
        """Return the least contrast (WCAG) of the text of all elements that a selector finds against what is behind."""
        lowest: float = self.page.evaluate(CONTRAST, selector)
        return lowest


# SVG text has a fill and lies on the chart's paper; everything else lies on the nearest background that is not see-through.
CONTRAST = """selector => {
  const paint = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = (text) => {
    paint.clearRect(0, 0, 1, 1); paint.fillStyle = text; paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((value) => value / 255)
    .map((value) => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, place) => sum + value * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const color = rgb(getComputedStyle(one).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255, 255];
  };
  const ratios = [...document.querySelectorAll(selector)].filter((one) => one.checkVisibility()).map((one) => {
    const style = getComputedStyle(one);
    const two = [light(rgb(one instanceof SVGElement ? style.fill : style.color)), light(behind(one))].sort((a, b) => b - a);
    return (two[0] + 0.05) / (two[1] + 0.05);
  });
  return ratios.length ? Math.min(...ratios) : 0;
}"""


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser, with a profile of its own that is removed after the last test."""
    if CHROMIUM is None:
        if os.environ.get("BINVENTORY_REQUIRE_BROWSER"):
            pytest.fail("BINVENTORY_REQUIRE_BROWSER is set and there is no Chromium")
        pytest.skip("there is no Chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=FLAGS, handle_sigint=False, handle_sigterm=False, handle_sighup=False
        )
        yield browser
        browser.close()


@contextmanager
def opened(browser: Any, path: Path, *, scheme: str = "light", width: int = 1400, fragment: str = "") -> Iterator[Tab]:
    """Open a file in a browser without network; on leaving, nothing may have gone wrong and nothing been asked for.

    Args:
        browser: the fixture `chromium`.
        path: the page.
        scheme: light or dark.
        width: of the window, in pixels.
        fragment: to scroll to.
    """
    context = browser.new_context(offline=True, color_scheme=scheme, viewport={"width": width, "height": 900})
    tab = Tab(context.new_page())
    tab.page.set_default_timeout(20_000)
    tab.page.on("console", lambda said: tab.errors.append(said.text) if said.type in ("error", "warning") else None)
    tab.page.on("pageerror", lambda error: tab.errors.append(str(error)))
    tab.page.on("dialog", lambda dialog: (tab.errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    tab.page.on("request", lambda asked: None if asked.url.startswith("data:") else tab.requests.append(asked.url))
    try:
        tab.page.goto(path.resolve().as_uri() + fragment)
        yield tab
        assert tab.errors == []
        assert {url.split("#")[0] for url in tab.requests} == {path.resolve().as_uri()}
    finally:
        context.close()
