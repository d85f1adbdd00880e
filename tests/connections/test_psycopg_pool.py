"""psycopg_pool's pools as this package bends them."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import signal
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from psycopg_pool import AsyncConnectionPool, ConnectionPool

from flask_pgmonkey.connections.psycopg_pool import Pool
from flask_pgmonkey.connections.psycopg_pool_async import AsyncPool

from .every_type import SyncCase, within

CONNECTION_TYPES = ("pool",)


NAMES_OF_PSYCOPG_POOL = {
    "_CONNECTIONS_LOST", "_REQUESTS_ERRORS", "_REQUESTS_NUM", "_REQUESTS_QUEUED",
    "_REQUESTS_WAIT_MS", "_add_to_pool", "_check_open_getconn", "_close_connection", "_closed",
    "_connect", "_get_ready_connection", "_jitter", "_lock", "_max_size", "_maybe_grow_pool",
    "_min_size", "_nconns", "_nconns_min", "_pool", "_sched_runner",
    "_set_connection_expiry_date", "_shrink_pool", "_signal_stop_worker",
    "_start_initial_tasks", "_start_workers", "_stats", "_tasks", "_waiting", "_workers",
}  # fmt: skip


def test_the_underscored_names_that_are_used_exist_in_psycopg_pool() -> None:
    async def open_async() -> AsyncConnectionPool:
        async with AsyncConnectionPool("", min_size=0, max_size=1, open=False) as pool:
            return pool

    with ConnectionPool("", min_size=0, max_size=1, open=False) as pool:
        pass
    for theirs in (pool, asyncio.run(open_async())):
        assert not {name for name in NAMES_OF_PSYCOPG_POOL if not hasattr(theirs, name)}
        connection: Any = SimpleNamespace()
        theirs._set_connection_expiry_date(connection)
        assert connection._expire_at > 0


@pytest.mark.parametrize("defined", [Pool, AsyncPool])
def test_no_other_underscored_names_are_used(defined: type[Any]) -> None:
    used = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(defined)))
        if isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr)
    }
    own = {
        *vars(defined),
        "_attempts",
        "_counted",
        "_expire_at",
        "_given_back_at",
        "_grows",
        "_is_owned",  # of threading.RLock
        "_pid",
    }
    assert used - own <= NAMES_OF_PSYCOPG_POOL


def test_a_lock_tells_whether_this_thread_has_it() -> None:
    lock: Any = threading.RLock()
    assert not lock._is_owned()
    with lock:
        assert lock._is_owned()


def test_an_interrupted_waiter_leaves_the_line(case: SyncCase) -> None:
    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    main = threading.main_thread().ident
    assert main is not None

    def body() -> None:
        pool = case.open(None, {"max_size": 1, "timeout": 20})
        with pool:
            for _ in range(3):
                interrupting = threading.Timer(0.1, signal.pthread_kill, (main, signal.SIGUSR1))
                interrupting.start()
                with within(10), pytest.raises(KeyboardInterrupt):
                    pool.borrow()
                interrupting.join()
            assert pool.get_stats()["requests_waiting"] == 0
        with within(1), pool:
            pass
        case.expect_nothing_out(pool)

    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        case.run(body)
    finally:
        signal.signal(signal.SIGUSR1, before)
