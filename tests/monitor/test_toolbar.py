"""The panel of Flask-DebugToolbar."""

from __future__ import annotations

import re

import psycopg
import pytest
from flask_debugtoolbar import DebugToolbarExtension

from .conftest import Watch, Watched

PAGE = "<html><head></head><body>hello</body></html>"


def show(watched: Watched) -> str:
    """The toolbar on the page of a request with queries."""
    watched.app.config.update(
        SECRET_KEY="of-the-test",
        DEBUG_TB_PANELS=["flask_pgmonkey.monitor.toolbar.QueriesPanel"],
    )
    DebugToolbarExtension(watched.app)

    @watched.app.get("/with-toolbar")
    def shown() -> str:
        watched.db.fetch_one("SELECT %s::text", ("<script>alert(1)</script>",))
        with pytest.raises(psycopg.Error):
            watched.db.fetch_one("SELECT <img src=x>")
        return PAGE

    return watched.app.test_client().get("/with-toolbar").text


def test_the_panel_shows_the_queries_of_its_request(watched: Watched) -> None:
    page = show(watched)
    assert re.search(r"2 in \d+\.\d ms", page)
    assert page.count("in shown</td>") == 2
    assert "SyntaxError" in page
    numbers = [entry.number for entry in watched.rings.queries]
    assert all(f'href="/_pgmonkey/queries/{number}"' in page for number in numbers)
    assert "<img src=x>" not in page
    assert "alert(1)</script>" not in page


def test_the_panel_does_without_the_page(watch: Watch) -> None:
    page = show(watch(PGMONKEY_MONITOR=False))
    assert page.count("in shown</td>") == 2
    assert "/_pgmonkey/" not in page
