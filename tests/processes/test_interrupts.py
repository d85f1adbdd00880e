"""KeyboardInterrupt and SystemExit, from a signal handler, lose no connection and no place."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from flask import Flask

from flask_pgmonkey import PGConnectionManager, PGMonkey
from flask_pgmonkey.connections import NormalConnection, PoolConnection

from .running import wait_for

Interrupt = type[BaseException]
EACH = pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])


@pytest.fixture
def manager() -> Iterator[PGConnectionManager]:
    manager = PGConnectionManager()
    yield manager
    manager.clear_cache()


@pytest.fixture
def pool(manager: PGConnectionManager, config_file: Path) -> PoolConnection:
    config_file.write_text(config_file.read_text() + "pool_settings: {max_size: 1}\n")
    return manager.get_database_connection(config_file, "pool")


def interrupt_when(
    condition: Callable[[], object], interrupt: Interrupt, action: Callable[[], object]
) -> None:
    """Run *action*, and raise *interrupt* out of it by a signal as soon as *condition* holds."""

    def raise_it(number: int, frame: FrameType | None) -> None:
        raise interrupt

    def watch() -> None:
        wait_for(condition, "what shall be interrupted", 5)
        os.kill(os.getpid(), signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, raise_it)
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        with pytest.raises(interrupt):
            action()
    finally:
        watcher.join()
        signal.signal(signal.SIGUSR1, before)


@contextmanager
def held_elsewhere(connection: PoolConnection | NormalConnection) -> Iterator[None]:
    """Another thread holds the connection during the block."""
    holding, over = threading.Event(), threading.Event()

    def hold() -> None:
        with connection:
            holding.set()
            over.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait(10)
    try:
        yield
    finally:
        over.set()
        thread.join()


@EACH
def test_an_interrupted_wait_for_the_pool_leaves_no_waiter(
    pool: PoolConnection, interrupt: Interrupt
) -> None:
    with held_elsewhere(pool):
        for _ in range(3):
            interrupt_when(
                lambda: pool.get_stats()["requests_waiting"], interrupt, lambda: pool.borrow(20)
            )
            assert pool.get_stats()["requests_waiting"] == 0
    with pool.connection(0.5) as conn:
        conn.execute("SELECT 1")


@EACH
def test_an_interrupted_wait_for_a_normal_connection_leaves_it_to_the_next(
    manager: PGConnectionManager, config_file: Path, interrupt: Interrupt
) -> None:
    normal = manager.get_database_connection(config_file, "normal")
    served = threading.Event()

    def be_served() -> None:
        with normal:
            served.set()

    def wait_in_vain() -> None:
        with normal:
            pytest.fail("it was held elsewhere")

    waiters = normal._states.here().free._waiters  # type: ignore[attr-defined]
    other = threading.Thread(target=be_served)
    with held_elsewhere(normal):
        interrupt_when(lambda: waiters, interrupt, wait_in_vain)
        other.start()
    assert served.wait(2)
    other.join()


@EACH
def test_a_query_interrupted_in_a_request_loses_no_connection(
    pool: PoolConnection, config_file: Path, interrupt: Interrupt
) -> None:
    app = Flask(__name__)
    db = PGMonkey(app, config=str(config_file))
    active = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE %s AND state = 'active'"
    )

    def is_running() -> bool:
        with pool as conn:
            row = conn.execute(active, ["SELECT pg_sleep(0.6%"]).fetchone()
        assert row is not None
        return bool(row[0])

    def request() -> None:
        with app.test_request_context(), db.transaction():
            db.execute("SELECT pg_sleep(0.6)")

    interrupt_when(is_running, interrupt, request)
    wait_for(lambda: not is_running(), "the end of the query", 5)
    with app.app_context():
        assert db.fetch_value("SELECT 1") == 1
        db.clear_cache()
