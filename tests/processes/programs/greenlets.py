"""Greenlets of a process that gevent has patched, over a pool of three connections."""

from __future__ import annotations

from gevent import monkey  # type: ignore[import-untyped]

monkey.patch_all()

import logging  # noqa: E402
import random  # noqa: E402
import sys  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from contextvars import copy_context  # noqa: E402
from time import monotonic  # noqa: E402

import gevent  # noqa: E402
import psycopg  # noqa: E402
import psycopg.conninfo  # noqa: E402
import pytest  # noqa: E402
from flask import Flask  # noqa: E402

from flask_pgmonkey import PGMonkey  # noqa: E402
from flask_pgmonkey.connections import borrowed_connections  # noqa: E402

scenario, config = sys.argv[1:]

SIZE = 3
logging.disable(logging.WARNING)  # of queries that were interrupted
app = Flask(__name__)
db = PGMonkey(app, config=config)
with app.app_context():
    conninfo = psycopg.conninfo.make_conninfo(**db.get_config().connect_kwargs())


@contextmanager
def others_go_on() -> Iterator[None]:
    """Fail if other greenlets stood still during the block, which takes some tenths of a second."""
    longest = 0.0

    def tick() -> None:
        nonlocal longest
        while True:
            before = monotonic()
            gevent.sleep(0.01)
            longest = max(longest, monotonic() - before)

    start = monotonic()
    ticker = gevent.spawn(tick)
    yield
    ticker.kill()
    assert 0 < longest < 0.7 * (monotonic() - start), longest


def expect_all_capacity() -> None:
    """All connections can be borrowed at once; nobody waits, nothing runs."""
    with app.app_context():
        pool = db.pool
        borrowed = [pool.borrow(1.0) for _ in range(SIZE)]
        busy = (
            borrowed[0]
            .execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND query LIKE '%pg_sleep%' AND state = 'active' AND pid <> pg_backend_pid()"
            )
            .fetchone()
        )
        assert busy == (0,), busy
        for conn in borrowed:
            pool.release(conn)
        assert pool.get_stats()["requests_waiting"] == 0
        assert pool.get_stats()["pool_size"] <= SIZE
        assert not borrowed_connections()


def each_context_has_its_own_connection() -> None:
    def use(number: int) -> int:
        with app.app_context():
            before = db.fetch_value("SELECT pg_backend_pid()")
            db.execute("SELECT set_config('tests.number', %s, false)", [str(number)])
            db.execute("SELECT pg_sleep(0.005)")
            found = db.fetch_one("SELECT current_setting('tests.number'), pg_backend_pid()")
            assert found == (str(number), before)
            return int(before)

    greenlets = [gevent.spawn(use, number) for number in range(100)]
    assert len({greenlet.get() for greenlet in greenlets}) == SIZE


def a_query_and_a_wait_block_nobody() -> None:
    def sleep() -> None:
        with app.app_context():
            db.execute("SELECT pg_sleep(0.5)")

    with others_go_on():
        gevent.joinall([gevent.spawn(sleep) for _ in range(2 * SIZE)], raise_error=True)


def connecting_to_a_deaf_server_blocks_nobody() -> None:
    with others_go_on(), app.app_context(), pytest.raises(psycopg.OperationalError):
        db.fetch_value("SELECT 1")


def a_timeout_while_waiting_leaves_no_waiter() -> None:
    with app.app_context():
        pool = db.pool
    borrowed = [pool.borrow() for _ in range(SIZE)]
    for _ in range(20):
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.01):
            pool.borrow()
    waiting = [gevent.spawn(pool.borrow) for _ in range(20)]
    gevent.sleep(0.05)
    gevent.killall(waiting)
    patient = gevent.spawn(pool.borrow)
    gevent.sleep(0)
    pool.release(borrowed.pop())
    borrowed.append(patient.get(timeout=1))
    for conn in borrowed:
        pool.release(conn)


def a_timeout_while_holding_loses_no_connection() -> None:
    def hold() -> None:
        with app.app_context(), db.transaction():
            db.execute("SELECT pg_sleep(0.4)")

    for _ in range(SIZE):
        with pytest.raises(gevent.Timeout), gevent.Timeout(0.02):
            hold()
    held = [gevent.spawn(hold) for _ in range(SIZE)]
    gevent.sleep(0.05)
    gevent.killall(held)
    gevent.sleep(0.5)  # the server notices at the end of the query


def a_storm_of_timeouts_loses_no_connection() -> None:
    chance = random.Random(20)

    def use(patience: float) -> int:
        try:
            with gevent.Timeout(patience), app.app_context(), db.transaction():
                return int(db.fetch_value("SELECT 1 FROM pg_sleep(0.002)"))
        except gevent.Timeout:
            return 0

    greenlets = [gevent.spawn(use, chance.uniform(0.0, 0.5)) for _ in range(600)]
    finished = sum(greenlet.get() for greenlet in greenlets)
    assert 0 < finished < len(greenlets), finished
    gevent.sleep(0.05)


def a_connection_that_the_server_ended_is_replaced() -> None:
    def use() -> int:
        with app.app_context():
            return int(db.fetch_value("SELECT pg_backend_pid() FROM pg_sleep(0.01)"))

    for _ in range(3):
        pids = {greenlet.get() for greenlet in [gevent.spawn(use) for _ in range(SIZE)]}
        with psycopg.connect(conninfo, autocommit=True) as conn:
            for pid in pids:
                # Waits until the process has ended, and its socket with it.
                conn.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
        assert use() not in pids


def greenlets_of_one_context_take_turns() -> None:
    with app.app_context():
        db.fetch_value("SELECT 1")
        db.release()
        query = "SELECT pg_backend_pid() FROM pg_sleep(0.1)"
        with others_go_on():
            greenlets = [gevent.spawn(copy_context().run, db.fetch_value, query) for _ in range(3)]
            pids = {greenlet.get() for greenlet in greenlets}
        assert len(pids) == 1, pids


scenarios: list[Callable[[], None]] = [
    each_context_has_its_own_connection,
    a_query_and_a_wait_block_nobody,
    a_timeout_while_waiting_leaves_no_waiter,
    a_timeout_while_holding_loses_no_connection,
    a_storm_of_timeouts_loses_no_connection,
    a_connection_that_the_server_ended_is_replaced,
    greenlets_of_one_context_take_turns,
]
if scenario == "deaf server":
    connecting_to_a_deaf_server_blocks_nobody()
else:
    chosen = next(one for one in scenarios if one.__name__ == scenario.replace(" ", "_"))
    chosen()
    expect_all_capacity()
