"""The desk in a real browser: wide and narrow, light and dark, and the pictures of it."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask

from example_app.database import init_db

from ..browser import PROGRAM, Browser, open_browser
from .pictures import IMAGES, PICTURES, served, take

pytestmark = [
    pytest.mark.any_version,
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium"),
]

PAGES = ("/", "/orders/45", "/orders/new", "/products", "/users", "/nowhere")

# The texts whose contrast is below what WCAG 2 asks for at level AA.
FAINT = """
(() => {
  const numbers = (color) => color.match(/[\\d.]+/g).map(Number);
  const luminance = (rgb) => rgb.slice(0, 3).reduce((sum, value, i) => {
    const c = value / 255;
    return sum + [.2126, .7152, .0722][i] * (c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4);
  }, 0);
  const behind = (element) => {
    for (let each = element; each; each = each.parentElement) {
      const color = numbers(getComputedStyle(each).backgroundColor);
      if (color.length < 4 || color[3] > 0) return color;
    }
    return [255, 255, 255];
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const faint = [];
  for (let text = texts.nextNode(); text; text = texts.nextNode()) {
    if (!text.data.trim()) continue;
    const style = getComputedStyle(text.parentElement);
    const pair = [numbers(style.color), behind(text.parentElement)].map(luminance);
    const ratio = (Math.max(...pair) + .05) / (Math.min(...pair) + .05);
    const isLarge = parseFloat(style.fontSize) >= 24;
    if (ratio < (isLarge ? 3 : 4.5)) faint.push(`${text.data.trim()}: ${ratio.toFixed(2)}`);
  }
  return faint;
})()
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_fits_and_can_be_read(
    desk: Flask, browser: Browser, width: int, dark: bool
) -> None:
    browser.complaints.clear()
    browser.look(width, dark=dark)
    with served(desk) as address:
        for page in PAGES:
            browser.go(address + page)
            assert browser.run("document.documentElement.scrollWidth") <= width, page
            assert browser.run(FAINT) == [], page
            is_dark = "getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 60"
            assert browser.run(is_dark) == dark
    # The page that is not there, and nothing that the policy forbids.
    assert [each for each in browser.complaints if "nowhere" not in each] == []


def test_the_pictures_of_the_docs_can_be_taken_and_are_small(
    desk: Flask, browser: Browser, tmp_path: Path
) -> None:
    with desk.app_context():
        init_db(orders=200)
    with served(desk) as address:
        take(browser, address, tmp_path)
    for folder in (tmp_path, IMAGES):
        taken = {file.name: file.read_bytes() for file in folder.glob("example-*.png")}
        assert taken.keys() == PICTURES.keys()
        for name, picture in taken.items():
            assert struct.unpack(">II", picture[16:24]) == PICTURES[name][1:3]
            assert 20_000 < len(picture) < 100_000
