"""``db.timeout()``: a tighter bound for the queries of a block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from math import inf
from time import monotonic
from typing import Any

import psycopg
import pytest
from flask import Flask

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.connections import borrowed_connections
from flask_pgmonkey.connections.query_timeout import end_of_block
from flask_pgmonkey.errors import QueryTimeoutError, ServerSilentError

from ..connections.every_type import within
from ..servers import PrivateServer
from .conftest import MakeSite, Site

SLEEP = "SELECT pg_sleep(60)"


@pytest.fixture
def db(site: Site) -> Iterator[PGMonkey[Any]]:
    """The site's database, in an app context."""
    with site.app.app_context():
        yield site.db


def test_a_query_of_the_block_that_runs_longer_is_cancelled(db: PGMonkey[Any]) -> None:
    pid = db.fetch_value("SELECT pg_backend_pid()")
    with within(10), db.timeout(0.3):
        with pytest.raises(QueryTimeoutError, match=r"than db.timeout\(\) allows \(0.30 s\)"):
            db.execute(SLEEP)
        with pytest.raises(QueryTimeoutError), db.transaction() as tx:
            tx.execute(SLEEP)
        with pytest.raises(QueryTimeoutError):
            list(db.stream(SLEEP))
        with pytest.raises(QueryTimeoutError):
            db.connection.execute(SLEEP)
        assert db.fetch_value("SELECT pg_backend_pid()") == pid
    assert db.fetch_value("SELECT 1 FROM pg_sleep(0.5)") == 1
    assert len(borrowed_connections()) == 1


def test_each_query_has_its_own_time(db: PGMonkey[Any]) -> None:
    with db.timeout(2):
        for _ in range(5):
            db.execute("SELECT pg_sleep(0.5)")


@pytest.mark.parametrize(("outer", "inner"), [(0.3, 60), (60, 0.3)])
def test_of_nested_blocks_the_smaller_holds(db: PGMonkey[Any], outer: float, inner: float) -> None:
    with within(10), db.timeout(outer):
        with pytest.raises(QueryTimeoutError, match=r"0\.30 s"), db.timeout(inner):
            db.execute(SLEEP)
        if outer == 60:
            assert db.fetch_value("SELECT 1 FROM pg_sleep(0.5)") == 1


@pytest.mark.parametrize(("of_config", "of_block"), [(0.3, 60), (60, 0.3)])
def test_of_config_and_block_the_smaller_holds(
    make_site: MakeSite, of_config: float, of_block: float
) -> None:
    site = make_site(pool_settings={"query_timeout": of_config})
    name = "query_timeout" if of_config < 1 else "db.timeout"
    with site.app.app_context(), within(10), site.db.timeout(of_block):
        with pytest.raises(QueryTimeoutError, match=name):
            site.db.execute(SLEEP)


def test_other_threads_are_not_concerned(db: PGMonkey[Any], site: Site) -> None:
    found: list[Any] = []

    def query() -> None:
        with site.app.app_context():
            found.append(db.fetch_value("SELECT 1 FROM pg_sleep(1)"))

    with db.timeout(0.2):
        thread = threading.Thread(target=query)
        thread.start()
        thread.join()
    assert found == [1]


def test_it_may_end_in_another_thread(db: PGMonkey[Any]) -> None:
    def rows() -> Iterator[int]:
        with db.timeout(0.2):
            yield from range(2)

    generator = rows()
    next(generator)
    closing = threading.Thread(target=generator.close)  # type: ignore[attr-defined]
    closing.start()
    closing.join()
    # Here it would hold for ever, for the thread's next requests too.
    with within(10):
        assert db.fetch_value("SELECT 1 FROM pg_sleep(0.4)") == 1
    with db.timeout(60):
        assert end_of_block() > monotonic() + 50
    assert end_of_block() == inf


def test_async_queries_of_the_block_too(db: PGMonkey[Any]) -> None:
    async def run() -> None:
        with within(10), db.timeout(0.3):
            with pytest.raises(QueryTimeoutError, match=r"db\.timeout"):
                await db.aio.execute(SLEEP)
            with pytest.raises(QueryTimeoutError):
                async with db.aio.transaction() as tx:
                    await tx.execute(SLEEP)
        async with db.aio.transaction() as tx:
            with pytest.raises(QueryTimeoutError), db.timeout(0.3):
                async with tx.transaction() as nested:
                    await nested.execute(SLEEP)
            assert await tx.fetch_value("SELECT 1 FROM pg_sleep(0.5)") == 1
        # Two tasks, each with its own.
        both = await asyncio.gather(*[bounded(60), bounded(0.3)], return_exceptions=True)
        assert both[0] == 1
        assert isinstance(both[1], QueryTimeoutError)

    async def bounded(seconds: float) -> Any:
        with db.timeout(seconds):
            return await db.aio.fetch_value("SELECT 1 FROM pg_sleep(1)")

    asyncio.run(run())


def test_a_background_job_is_not_bounded_by_whoever_submits_it(db: PGMonkey[Any]) -> None:
    async def job() -> Any:
        return await db.aio.fetch_value("SELECT 1 FROM pg_sleep(0.5)")

    with db.timeout(0.2):
        submitted = db.background.submit(job())
    assert submitted.result(30) == 1


@pytest.mark.parametrize("seconds", [0, -1, float("nan")])
def test_it_takes_seconds_above_0(db: PGMonkey[Any], seconds: float) -> None:
    with pytest.raises(ValueError, match="a number of seconds above 0"):
        db.timeout(seconds)


def test_a_slow_query_is_500_and_a_silent_server_503(private_server: PrivateServer) -> None:
    app = Flask("tests")
    db = PGMonkey(app, config={"connection_settings": private_server.settings()})

    @app.get("/<query>")
    def view(query: str) -> str:
        db.fetch_value("SELECT 1")
        if query == "stopped":
            private_server.pause()
        with db.timeout(0.3):
            db.execute(SLEEP)
        return "done"

    client = app.test_client()
    assert client.get("/slow").status_code == 500
    with within(10):
        assert client.get("/stopped").status_code == 503
    private_server.resume()
    with app.app_context():
        assert db.fetch_value("SELECT 1") == 1
        db.clear_cache()


def test_what_the_errors_are_caught_by() -> None:
    assert issubclass(QueryTimeoutError, psycopg.errors.QueryCanceled)
    assert issubclass(ServerSilentError, psycopg.OperationalError)
    assert not issubclass(ServerSilentError, psycopg.errors.QueryCanceled)
