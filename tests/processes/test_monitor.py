"""The monitor page in forked workers, and among greenlets."""

from __future__ import annotations

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from .running import Programs, WebServer, wait_for
from .test_gunicorn import ask_all_workers, start_gunicorn, stop_gunicorn


def pages_of_workers(gunicorn: WebServer, path: str, workers: int) -> dict[int, str]:
    """What each worker shows of itself, by its process."""
    pages: dict[int, str] = {}

    def ask() -> bool:
        for page in gunicorn.get_all([f"/monitor/{path}"] * 8):
            (process,) = re.findall(r'data-process="(\d+)"', page)
            pages[int(process)] = page
        return len(pages) == workers

    wait_for(ask, f"a page of each of {workers} workers")
    return pages


def requests_to(endpoint: str, page: str) -> int:
    """How many requests to *endpoint* a page lists one by one."""
    found = rf'/requests/\d+"><span class="method">GET</span> <span class="path">{endpoint}<'
    return len(re.findall(found, page))


def test_after_a_fork_each_worker_shows_what_it_has_done_itself(programs: Programs) -> None:
    gunicorn = start_gunicorn(
        *(programs, "--preload", "--workers", 2, "--worker-class", "gthread", "--threads", 4),
        QUERY_AT_IMPORT=1,  # which the master has recorded, and nobody shows
        MONITOR=1,
    )
    answered = Counter(answer["process"] for answer in ask_all_workers(gunicorn, 2))
    shown = {
        process: requests_to("pids", page)
        for process, page in pages_of_workers(gunicorn, "requests/", 2).items()
    }
    assert shown == dict(answered)

    def charts_of_all() -> bool:
        pages = pages_of_workers(gunicorn, "", 2).values()
        # Each H is a second at which the worker's own thread has looked at its pools.
        charts = [re.findall(r'class="open" d="([^"]*)"', page) for page in pages]
        return all(chart and chart[0].count("H") > 2 for chart in charts)

    wait_for(charts_of_all, "charts in both workers")
    # Over one worker's page the sessions of all workers can be seen.
    (sessions, *_) = pages_of_workers(gunicorn, "server/default", 2).values()
    for process in answered:
        own = {a["server"][0] for a in ask_all_workers(gunicorn, 2) if a["process"] == process}
        assert any(re.search(rf"\b{pid}\b", sessions) for pid in own)
    stop_gunicorn(programs, gunicorn)


def test_among_greenlets_it_shows_who_waits_while_they_wait(programs: Programs) -> None:
    config = programs.folder / "patched_first.py"  # gunicorn patches the workers alone
    config.write_text("from gevent import monkey\n\nmonkey.patch_all()\n")
    gunicorn = start_gunicorn(
        programs, "--worker-class", "gevent", "--preload", "--config", config, MONITOR=1
    )
    with ThreadPoolExecutor(3) as clients:
        sleepers = [clients.submit(gunicorn.get, "/sleep?seconds=2") for _ in range(3)]
        wait_for(lambda: len(programs.sessions("active")) == 3, "three queries")
        page = gunicorn.get("/monitor/")
        assert not any(sleeper.done() for sleeper in sleepers)
        assert page.count("in sleep") == 3
        assert "borrowed" in page
        for sleeper in sleepers:
            assert sleeper.result().isdigit()
    assert "gevent.monkey" not in gunicorn.program.stderr
    assert requests_to("sleep", gunicorn.get("/monitor/requests/")) == 3
    stop_gunicorn(programs, gunicorn)
