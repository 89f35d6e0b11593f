"""The page in a browser, from disk and without a network: nothing fails, nothing is fetched, everything is drawn.

Needs the extra `browser` and a Chromium, found by PERFTOOL_CHROMIUM or by its usual names. The check of accessibility
needs axe-core (`npm install axe-core`), found by PERFTOOL_AXE (its axe.min.js) or in node_modules.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from perftool.report import html
from tests.report.pages import PAGES, two_sessions

pytestmark = pytest.mark.browser
BESIDE = "beside"
ROOT = Path(__file__).parents[2]
CHROMIUM = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
STRICT = ("moderate", "serious", "critical")
DRAWN = """() => [...document.querySelectorAll('svg.plot, svg.row')].map(one => {
    const box = one.getBoundingClientRect();
    const shapes = [...one.querySelectorAll('circle, path, rect, line')];
    return {
        name: one.querySelector('title').textContent,
        folded: !one.checkVisibility(),
        width: box.width,
        height: box.height,
        shapes: shapes.length,
        outside: shapes.filter(shape => {
            const own = shape.getBoundingClientRect();
            return own.left < -1 || own.right > innerWidth + 1;
        }).length,
    };
})"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="the extra `browser` is not installed")
    named = os.environ.get("PERFTOOL_CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM)), None)
    if named is None:
        pytest.skip("there is no Chromium; name one with PERFTOOL_CHROMIUM")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=named, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages as files."""
    folder = tmp_path_factory.mktemp("pages")
    for name, made in PAGES.items():
        (folder / f"{name}.html").write_text(html.render(*made()), encoding="utf-8")
    (folder / f"{BESIDE}.html").write_text(html.render_beside(two_sessions()), encoding="utf-8")
    return folder


@dataclass
class Opened:
    """A page in the browser, and what it did that it should not."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def opening(browser: Any, folder: Path) -> Iterator[Any]:
    contexts = []

    def open_page(name: str, size: str = "desktop", scheme: str = "light", *, trusted: bool = False) -> Opened:
        width, height = SIZES[size]
        context = browser.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            offline=True,
            permissions=["clipboard-read", "clipboard-write"],
            bypass_csp=trusted,
        )
        contexts.append(context)
        opened = Opened(context.new_page())
        opened.page.on("console", lambda message: opened.said.append(message.text))
        opened.page.on("pageerror", lambda error: opened.said.append(str(error)))
        opened.page.on("request", lambda request: opened.asked.append(request.url))
        opened.page.goto((folder / f"{name}.html").as_uri())
        return opened

    yield open_page
    for context in contexts:
        context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [*PAGES, BESIDE])
def test_it_is_whole_and_quiet(opening: Any, folder: Path, name: str, size: str, scheme: str) -> None:
    opened = opening(name, size, scheme)
    assert opened.said == []
    assert opened.asked == [(folder / f"{name}.html").as_uri()]
    wide = opened.page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide == 0, "the page is wider than the window"

    plots = opened.page.evaluate(DRAWN)
    assert len(plots) >= 3
    for plot in plots:
        assert plot["folded"] or (plot["width"] > 60 and plot["height"] > 10), plot
        assert plot["outside"] == 0, plot
        assert plot["shapes"] or "over the baseline" in plot["name"], plot  # an axis is text alone

    paper = opened.page.evaluate("() => getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, paper[4:-1].split(",")))
    assert (brightness > 600) == (scheme == "light")


def test_the_copy_button_copies_the_code(opening: Any) -> None:
    page = opening("tuned").page
    button = page.get_by_role("button", name="Copy").first
    button.click()
    page.get_by_role("button", name="Copied").wait_for(timeout=5000)
    copied = page.evaluate("() => navigator.clipboard.readText()")
    assert copied == page.locator("#code").text_content()
    assert "fused=True" in copied


def test_what_is_folded_is_printed(opening: Any) -> None:
    page = opening("tuned").page
    assert not page.get_by_text("--- before").is_visible()
    page.emulate_media(media="print")
    assert page.get_by_text("--- before").is_visible()
    assert not page.get_by_role("button", name="Copy").first.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", [*PAGES, BESIDE])
def test_it_is_accessible(opening: Any, name: str, size: str, scheme: str) -> None:
    axe = Path(os.environ.get("PERFTOOL_AXE") or ROOT / "node_modules" / "axe-core" / "axe.min.js")
    if not axe.is_file():
        pytest.skip("there is no axe-core: npm install axe-core, or name its axe.min.js with PERFTOOL_AXE")
    # The page's own policy would forbid the checker's script, too.
    page = opening(name, size, scheme, trusted=True).page
    page.evaluate("() => document.querySelectorAll('details').forEach(one => { one.open = true; })")
    page.add_script_tag(path=str(axe))
    found = page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")["violations"]
    told = [(one["id"], one["nodes"][0]["html"], one["help"]) for one in found if one["impact"] in STRICT]
    assert told == []
