"""gunicorn: preload, threads, gevent, and workers that come and go."""

from __future__ import annotations

import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from .running import Programs, WebServer, wait_for

# What a worker that ends badly would say. gunicorn itself leaves sockets open.
COMPLAINTS = ("Traceback", "psycopg", "couldn't stop thread", "Exception ignored")


def start_gunicorn(programs: Programs, *options: object, **environment: object) -> WebServer:
    pools = {"pool_settings": {"min_size": 1, "max_size": 3}}
    program = programs.start(
        *(sys.executable, "-X", "dev", "-m", "gunicorn", "--bind", "127.0.0.1:0"),
        *("--graceful-timeout", 20, *options, "tests.processes.app:app"),
        FLASK_PGMONKEY_CONFIG=programs.config(**pools),
        HOME=programs.folder,  # where it puts its control socket
        **environment,
    )
    return WebServer(program)


def stop_gunicorn(programs: Programs, gunicorn: WebServer) -> None:
    gunicorn.program.signal(signal.SIGTERM)
    ended = gunicorn.program.wait()
    assert ended.returncode == 0, ended
    assert not [one for one in COMPLAINTS if one in ended.stderr], ended.stderr
    programs.expect_no_sessions()


def ask_all_workers(gunicorn: WebServer, workers: int) -> list[dict[str, Any]]:
    """Answers of every worker."""
    answers: list[dict[str, Any]] = []

    def ask() -> bool:
        answers.extend(json.loads(body) for body in gunicorn.get_all(["/pids"] * 16))
        return len({answer["process"] for answer in answers}) == workers

    wait_for(ask, f"an answer from each of {workers} workers")
    return answers


@pytest.mark.parametrize("worker_class", ["sync", "gthread"])
def test_preload_with_warm_pools_gives_each_worker_its_own(
    programs: Programs, worker_class: str
) -> None:
    gunicorn = start_gunicorn(
        *(programs, "--preload", "--workers", 4, "--worker-class", worker_class, "--threads", 2),
        QUERY_AT_IMPORT=1,
    )
    answers = ask_all_workers(gunicorn, 4)
    of_master = set(answers[0]["queried_at_import"])
    assert len(of_master) == 2

    # A worker goes, another comes.
    victim = answers[0]["process"]
    os.kill(victim, signal.SIGTERM)
    wait_for(lambda: f"Worker exiting (pid: {victim})" in gunicorn.program.stderr, "its end")
    again = wait_for(
        lambda: [a for a in ask_all_workers(gunicorn, 4) if a["process"] != victim],
        "an answer of the others",
    )

    worker_of: dict[int, int] = {}
    for answer in [*answers, *again]:
        for pid in answer["server"]:
            assert worker_of.setdefault(pid, answer["process"]) == answer["process"]
    assert not of_master & set(worker_of)
    assert of_master <= programs.sessions()
    stop_gunicorn(programs, gunicorn)


@pytest.mark.parametrize("worker_class", ["gthread", "gevent"])
def test_requests_at_the_same_time_have_connections_of_their_own(
    programs: Programs, worker_class: str
) -> None:
    gunicorn = start_gunicorn(programs, "--worker-class", worker_class, "--threads", 12)
    answers = [
        json.loads(body)
        for body in gunicorn.get_all([f"/own/token{number}" for number in range(60)], 20)
    ]
    assert all(answer["own"] for answer in answers)
    assert len({answer["server"] for answer in answers}) <= 3
    assert len(programs.sessions()) <= 3
    stop_gunicorn(programs, gunicorn)


def test_a_gevent_worker_has_no_background_loop(programs: Programs) -> None:
    gunicorn = start_gunicorn(programs, "--worker-class", "gevent", "--preload", QUERY_AT_IMPORT=1)
    assert "use the sync calls" in gunicorn.get("/background")
    assert len(json.loads(gunicorn.get("/own/one"))) == 3
    # The app was there before gevent, whose greenlets wait for each other then.
    assert "gevent.monkey.patch_all() run first" in gunicorn.program.stderr
    stop_gunicorn(programs, gunicorn)


@pytest.mark.parametrize("worker_class", ["sync", "gthread", "gevent"])
def test_sigterm_lets_the_running_request_finish(programs: Programs, worker_class: str) -> None:
    gunicorn = start_gunicorn(programs, "--worker-class", worker_class)
    gunicorn.get("/pids")
    with ThreadPoolExecutor(1) as client:
        running = client.submit(gunicorn.get, "/sleep?seconds=1")
        wait_for(lambda: programs.sessions("active"), "the request's query")
        stop_gunicorn(programs, gunicorn)
        assert running.result().isdigit()
