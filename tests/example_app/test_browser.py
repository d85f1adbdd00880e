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

# As for the pages of the documentation: nothing scrolls or is cut, and every text has contrast AA.
CHECK = (Path(__file__).parents[1] / "docs" / "check_page.js").read_text()


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
            assert browser.run(CHECK) == [], page
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
