"""The monitor in a real browser: what a person sees, and that no script but ours runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from werkzeug.serving import make_server

from ..browser import PROGRAM, Browser, open_browser
from ..proxy import Proxy
from ..servers import PrivateServer
from .conftest import Watch, Watched

pytestmark = [
    pytest.mark.any_version,
    pytest.mark.skipif(PROGRAM is None, reason="there is no Chromium"),
]

PAGES = ("", "requests/", "queries/", "server/default", "config/")
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'</main><svg onload=alert(3)>"
TAB = ("Tab", 9)
ENTER = ("Enter", 13)
LIVE = "document.getElementById('state').textContent"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(autouse=True)
def _as_new(browser: Browser) -> None:
    browser.look()
    browser.go("about:blank")
    browser.complaints.clear()
    browser.dialogs.clear()


@contextmanager
def served(watched: Watched) -> Iterator[str]:
    """The address of the app's monitor, as a web server serves it."""
    http = make_server("127.0.0.1", 0, watched.app, threaded=True)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.port}/_pgmonkey/"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def query(watched: Watched, *texts: str) -> None:
    def view() -> None:
        for text in texts:
            watched.db.fetch_all(text)

    watched.visit(view)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_page_fits_and_nothing_is_refused(
    watched: Watched, browser: Browser, width: int, dark: bool
) -> None:
    query(watched, "SELECT 1", f"SELECT {', '.join(map(str, range(300)))}")
    (request,) = watched.rings.list_requests()
    details = (f"requests/{request.number}", f"queries/{request.queries[1].number}")
    browser.look(width, dark=dark)
    with served(watched) as address:
        for page in (*PAGES, *details):
            browser.go(address + page)
            assert browser.run("document.documentElement.scrollWidth") <= width, page
            luminance = browser.run(
                "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)"
                ".reduce((sum, each) => sum + each) / 3"
            )
            assert (luminance < 60) == dark
    assert not [each for each in browser.complaints if "favicon.ico" not in each]


def test_the_page_shows_what_goes_on_without_being_loaded_again(
    watched: Watched, browser: Browser
) -> None:
    with served(watched) as address:
        browser.go(address)
        browser.run("window.isTheSame = true")
        browser.wait_for(f"{LIVE} === 'Live'")
        assert browser.run("document.querySelectorAll('table').length") == 0
        query(watched, "SELECT 'seen'")
        browser.wait_for("document.querySelector('main').textContent.includes('/page')")
        assert browser.run("window.isTheSame") is True


def test_it_can_be_paused_and_used_by_keyboard(watched: Watched, browser: Browser) -> None:
    query(watched, "SELECT 'first'")
    with served(watched) as address:
        browser.go(address)
        browser.press(*TAB)
        assert browser.run("document.activeElement.className") == "skip"
        seen = set()
        while (focused := browser.run("document.activeElement.textContent.trim()")) != "Pause":
            seen.add(focused)
            browser.press(*TAB)
        assert {"Overview", "Requests", "Queries", "Server", "Config"} <= seen
        browser.press(*ENTER)
        assert browser.run(LIVE) == "Paused"
        assert browser.run("document.activeElement.getAttribute('aria-pressed')") == "true"
        query(watched, "SELECT 'second'")
        rows = "document.querySelectorAll('tbody tr').length"
        time.sleep(0.3)  # longer than to the next look
        assert browser.run(rows) == 1
        browser.press(*ENTER)
        browser.wait_for(f"{rows} === 2")
        focus = "document.activeElement.textContent.trim()"
        assert browser.run(focus) == "Pause"


def test_who_reads_a_stack_is_not_disturbed(watched: Watched, browser: Browser) -> None:
    holding, done = threading.Event(), threading.Event()

    def hold() -> None:
        watched.db.fetch_value("SELECT 1")
        holding.set()
        done.wait(60)

    with served(watched) as address, ThreadPoolExecutor(1) as threads:
        held = threads.submit(watched.visit, hold)
        try:
            assert holding.wait(20)
            browser.go(address)
            browser.run("document.querySelector('summary').focus()")
            browser.press(*ENTER)
            assert "in hold" in browser.wait_for(
                "document.querySelector('details[open]').innerText"
            )
            browser.run("document.querySelector('details').isOld = true")
            browser.wait_for("!document.querySelector('details').isOld")
            assert browser.run("document.querySelector('details').open")
            assert browser.run("document.activeElement.tagName") == "SUMMARY"
        finally:
            done.set()
            held.result()
        browser.wait_for(
            "document.querySelector('main').innerText.includes('No connection is out')"
        )


def test_no_script_of_a_text_or_name_runs(
    watch: Watch, database: dict[str, Any], admin: psycopg.Connection[Any], browser: Browser
) -> None:
    admin.execute('CREATE TABLE "<img src=x onerror=alert(4)>" (id int PRIMARY KEY)')
    watched = watch(
        {**database, "application_name": "<img src=x onerror=alert(5)>"},
        PGMONKEY_BINDS={"<svg onload=alert(6)>": {"connection_settings": database}},
    )
    watched.app.name = HOSTILE

    def view() -> Any:
        watched.db.fetch_value("SELECT %s::text", (HOSTILE,))
        with pytest.raises(psycopg.Error):
            watched.db.fetch_value(f"SELECT {HOSTILE}")

    watched.app.add_url_rule("/<path:path>", "<svg onload=alert(7)>", lambda path: view() or "done")
    watched.app.test_client().get("/<script>alert(8)</script>")
    (request,) = watched.rings.list_requests()
    details = [f"queries/{entry.number}" for entry in request.entries]
    with served(watched) as address:
        for page in (*PAGES, f"requests/{request.number}", *details):
            browser.go(address + page)
            assert browser.run("document.scripts.length") == 1
            assert browser.run("document.querySelectorAll('[onerror], [onload]').length") == 0
            assert browser.run("document.querySelectorAll('img').length") == 1
        assert "onerror=alert" in browser.run("document.querySelector('main').innerText")
    assert browser.dialogs == []


def test_a_click_shows_the_plan_and_a_key_does_too(watched: Watched, browser: Browser) -> None:
    query(watched, "SELECT relname FROM pg_class JOIN pg_namespace n ON n.oid = relnamespace")
    with served(watched) as address:
        browser.go(f"{address}queries/{watched.rings.queries[-1].number}")
        browser.run("document.querySelector('form button').click()")
        browser.wait_for("document.querySelector('.plan')?.innerText.includes('Own cost')")
        browser.wait_for("document.readyState === 'complete'")
        browser.run("document.querySelector('form button[name=analyze]').focus()")
        browser.wait_for("document.activeElement.name === 'analyze'")
        browser.press(*ENTER)
        browser.wait_for("document.querySelector('.plan')?.innerText.includes('Own ms')")
        assert browser.run("document.querySelectorAll('.plan .bar').length") >= 3
    assert not [each for each in browser.complaints if "favicon.ico" not in each]


def test_a_server_that_goes_and_comes_is_seen_to(
    watch: Watch,
    private_server: PrivateServer,
    proxy: Callable[[str, int], Proxy],
    browser: Browser,
) -> None:
    gate = proxy(private_server.host, private_server.port)
    watched = watch(private_server.settings(port=gate.port), pool_settings={"timeout": 0.5})
    alarm = "document.querySelector('[role=alert]')"
    with served(watched) as address:
        browser.go(address)
        assert browser.run(alarm) is None
        gate.refuse()
        gate.drop_all()
        browser.wait_for(f"{alarm}?.innerText.includes('the server does not answer')")
        assert browser.run(LIVE) == "Live"
        gate.accept()
        browser.wait_for(f"{alarm} === null")


def test_an_app_that_goes_and_comes_is_seen_to(watched: Watched, browser: Browser) -> None:
    @watched.app.before_request
    def fail() -> Any:
        return ("no", 500) if is_broken else None

    is_broken = False
    with served(watched) as address:
        browser.go(address)
        is_broken = True
        browser.wait_for(f"{LIVE}.includes('does not answer')")
        is_broken = False
        browser.wait_for(f"{LIVE} === 'Live'")


def test_it_lives_under_load(watched: Watched, browser: Browser) -> None:
    stop = threading.Event()

    def work(number: int) -> None:
        client = watched.app.test_client()
        while not stop.is_set():
            assert client.get("/load").status_code == 200

    watched.visit(lambda: watched.db.fetch_all("SELECT pg_sleep(0.002)"), "load", "/load")
    with served(watched) as address, ThreadPoolExecutor(4) as threads:
        workers = [threads.submit(work, number) for number in range(4)]
        try:
            for page in PAGES:
                browser.go(address + page)
                assert browser.run("document.querySelector('main').innerText.length") > 100
        finally:
            stop.set()
            for worker in workers:
                worker.result()
    assert not [each for each in browser.complaints if "favicon.ico" not in each]
