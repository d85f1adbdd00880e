"""The pages in a real browser: wide and narrow, light and dark."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from ..browser import PROGRAM, Browser, open_browser
from .examples import DOCS

pytestmark = [
    pytest.mark.any_version,
    pytest.mark.timeout(240),  # Sphinx has much to read
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium"),
    pytest.mark.skipif(find_spec("furo") is None, reason="Sphinx and its theme are not installed"),
]

# Width, what the system prefers, and what the reader has chosen on the page.
LOOKS = [
    (1280, False, "auto"),
    (390, False, "auto"),
    (1280, False, "dark"),
    (390, True, "auto"),
]
CHECK = Path(__file__).with_name("check_page.js").read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation as HTML."""
    folder = tmp_path_factory.mktemp("site")
    doctrees, html = folder / "doctrees", folder / "html"
    command: list[str | Path] = [sys.executable, "-m", "sphinx", "-q", "-d", doctrees, DOCS, html]
    subprocess.run(command, check=True, timeout=200)
    return html


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


def test_pages_fit_and_read_well_at_any_width_light_and_dark(site: Path, browser: Browser) -> None:
    complaints = []
    pages = list(DOCS.rglob("*.md"))
    for page in pages:
        path = page.relative_to(DOCS).with_suffix(".html")
        browser.look()
        browser.go((site / path).as_uri())
        for width, dark, theme in LOOKS:
            browser.look(width, dark=dark)
            browser.run(f"document.body.dataset.theme = '{theme}'")
            for complaint in browser.run(CHECK):
                scheme = "dark" if dark else "light"
                complaints.append(f"{path} at {width}, {scheme}, {theme}: {complaint}")
    assert len(pages) > 30
    assert not complaints, "\n".join(complaints)


def test_the_check_finds_what_is_wrong(browser: Browser) -> None:
    def found(html: str) -> str:
        browser.look(390)
        browser.go("about:blank")
        browser.run(f"document.body.innerHTML = {html!r}; document.body.dataset.theme = 'auto'")
        return "\n".join(browser.run(CHECK))

    assert found("<p>black on white</p>") == ""
    assert "contrast" in found("<p style='color: #999'>grey on white</p>")
    assert "contrast" in found("<p style='background: #000'>black on black</p>")
    assert "scrolls" in found("<p style='width: 600px'>wide</p>")
    inner = "<div style='overflow-x: auto'><p style='width: 600px'>wide</p></div>"
    assert "scrolls" in found(inner)
    assert found(f"<pre>{inner}</pre>") == ""
    assert "picture" in found("<img src='data:,' alt=''>")
    svg = "<svg viewBox='0 0 50 20' width='50'><text y='15' x='{}'>text</text></svg>"
    assert found(svg.format(0)) == ""
    assert "cut" in found(svg.format(40))
