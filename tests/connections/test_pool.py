"""The ``pool`` type and its twin ``async_pool``: each block borrows a connection."""

# ruff: noqa: PT012 (a block that fails has more than one statement)

from __future__ import annotations

import gc
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator
from contextlib import (  # noqa: F401 (what the sync bodies use)
    AsyncExitStack,
    ExitStack,
    suppress,
)
from time import monotonic
from typing import Any
from weakref import ref

import psutil
import psycopg
import pytest
from psycopg.pq import TransactionStatus
from psycopg_pool import PoolTimeout, TooManyRequests

from flask_pgmonkey.connections import borrowed_connections, connect_errors

from ..processes.forking import in_child
from ..round_trips import count_round_trips
from ..servers import PrivateServer
from .every_type import AsyncCase, errors, sync_and_async, within

CONNECTION_TYPES = ("pool", "async_pool")

TABLE = "CREATE TABLE notes (note text)"
NOTES = "SELECT note FROM notes ORDER BY note"


# Blocks give back what they took


@sync_and_async
async def test_nested_blocks_give_back_what_they_took(case: AsyncCase) -> None:
    pool = await case.open(pool={"max_size": 24, "timeout": 30})

    async def nest(_: int) -> None:
        for _ in range(100):
            async with pool as first:
                async with pool as second:
                    async with pool as third:
                        pids = {conn.info.backend_pid for conn in (first, second, third)}
                        assert len(pids) == 3
                        assert await case.value(third, "SELECT pg_backend_pid()") in pids
                    assert pool.get_stats()["pool_size"] <= 24
                await first.execute("SELECT 1")
                assert first.pgconn.transaction_status == TransactionStatus.INTRANS

    assert await case.together(nest, range(8)) == [None] * 8
    await case.expect_nothing_out(pool)
    assert len(case.sessions()) <= 24


@sync_and_async
async def test_interleaved_generators_give_back_each_its_own(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    pool = await case.open()

    async def borrow(note: str) -> AsyncGenerator[Any, None]:
        async with pool as conn:
            await conn.execute("INSERT INTO notes VALUES (%s)", [note])
            yield conn

    first, second = borrow("first"), borrow("second")
    first_conn, second_conn = await first.__anext__(), await second.__anext__()
    assert first_conn is not second_conn
    await first.aclose()  # rolls back, as psycopg does for every exception
    assert second_conn.pgconn.transaction_status == TransactionStatus.INTRANS
    assert first_conn.pgconn.transaction_status == TransactionStatus.IDLE
    with pytest.raises((StopIteration, StopAsyncIteration)):
        await second.__anext__()
    assert case.rows(NOTES) == [("second",)]
    await case.expect_nothing_out(pool)


@sync_and_async
async def test_a_block_may_end_in_another_thread_or_task(case: AsyncCase) -> None:
    pool = await case.open()

    async def borrow() -> AsyncGenerator[Any, None]:
        async with pool as conn:
            yield conn

    here, there = borrow(), borrow()
    await here.__anext__()

    async def start_another() -> Any:
        return await there.__anext__()

    async def end() -> None:
        await here.aclose()

    other = await case.outcome(case.start(start_another))
    assert await case.outcome(case.start(end)) is None
    assert len(borrowed_connections()) == 1
    assert other.pgconn.transaction_status == TransactionStatus.IDLE
    await there.aclose()
    await case.expect_nothing_out(pool)


@sync_and_async
async def test_connection_is_a_block_for_an_exit_stack(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    pool = await case.open()
    async with AsyncExitStack() as stack:
        conns = [await stack.enter_async_context(pool.connection()) for _ in range(3)]
        assert len({conn.info.backend_pid for conn in conns}) == 3
        for conn in conns:
            await conn.execute("INSERT INTO notes VALUES ('kept')")
    assert case.rows(NOTES) == [("kept",)] * 3
    with pytest.raises(ZeroDivisionError):
        async with pool.connection() as conn:
            await conn.execute("INSERT INTO notes VALUES ('lost')")
            raise ZeroDivisionError
    assert case.rows(NOTES) == [("kept",)] * 3
    await case.expect_nothing_out(pool)


@sync_and_async
async def test_connection_outlives_the_block_that_it_was_opened_in(case: AsyncCase) -> None:
    pool = await case.open()
    async with AsyncExitStack() as stack:
        async with pool as inside:
            longer = await stack.enter_async_context(pool.connection())
            await longer.execute("SELECT 1")
            await inside.execute("SELECT 1")
        assert inside.pgconn.transaction_status == TransactionStatus.IDLE
        assert longer.pgconn.transaction_status == TransactionStatus.INTRANS
        assert len(borrowed_connections()) == 1
    await case.expect_nothing_out(pool)


@sync_and_async
async def test_what_connection_gives_is_the_callers_alone(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    pool = await case.open()
    async with pool.connection() as held:
        await held.execute("INSERT INTO notes VALUES ('kept')")
        await pool.rollback()
        async with pool.cursor() as cursor:
            assert cursor.connection is not held
        async with pool.transaction() as other:
            assert other is not held
            async with pool.cursor() as cursor:
                assert cursor.connection is other
    assert case.rows(NOTES) == [("kept",)]
    await case.expect_nothing_out(pool)


@sync_and_async
async def test_each_call_of_a_decorated_function_is_a_block_of_its_own(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    pool = await case.open()
    written, may_end = case.event(), case.event()

    async def write_note(note: str, fails: bool) -> Any:
        async with pool.cursor() as cursor:
            await cursor.execute("INSERT INTO notes VALUES (%s)", [note])
        if fails:
            written.set()
            await may_end.wait()
            raise ZeroDivisionError
        return cursor.connection

    write = pool.transaction()(write_note)
    failing = case.start(write, "lost", True)
    await written.wait()
    assert len(borrowed_connections()) == 1
    async with pool.cursor() as cursor:
        assert len(borrowed_connections()) == 2
        await cursor.execute("INSERT INTO notes VALUES ('of the maker')")
    await case.together(lambda n: write(f"{n}", False), range(8))
    may_end.set()
    assert isinstance(await case.outcome(failing), ZeroDivisionError)
    assert case.rows(NOTES) == [*((f"{n}",) for n in range(8)), ("of the maker",)]
    async with pool as conn:
        await conn.execute("SELECT 1")
        assert await write("in a block", False) is conn
        await conn.rollback()
    assert len(case.rows(NOTES)) == 9
    await case.expect_nothing_out(pool)


@sync_and_async
async def test_a_block_dropped_without_its_end_gives_its_connection_back(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    pool = await case.open(pool={"max_size": 1})

    async def fail_before_the_end() -> None:
        stack = AsyncExitStack()
        conn = await stack.enter_async_context(pool.connection())
        await conn.execute("INSERT INTO notes VALUES ('lost')")
        raise ZeroDivisionError

    async def forget_the_end() -> None:
        block = pool.transaction()
        conn = await block.__aenter__()
        await conn.execute("INSERT INTO notes VALUES ('lost')")

    for drop in (fail_before_the_end, forget_the_end):
        for _ in range(3):
            with suppress(ZeroDivisionError):
                await drop()
            gc.collect()
            await case.expect_nothing_out(pool)
    assert case.rows(NOTES) == []


@sync_and_async
async def test_a_block_is_a_with_statement_and_nothing_else(case: AsyncCase) -> None:
    pool = await case.open()
    async with AsyncExitStack() as stack:
        with pytest.raises(RuntimeError, match=r"use its connection\(\)"):
            await stack.enter_async_context(pool)
        await stack.enter_async_context(pool.connection())
    with pytest.raises(RuntimeError, match=r"use its connection\(\)"):
        await pool.__aexit__(None, None, None)
    await case.expect_nothing_out(pool)


@sync_and_async
async def test_release_takes_what_borrow_gave_once(case: AsyncCase) -> None:
    pool, other = await case.open(), case.make()
    conn = await pool.borrow()
    await pool.release(conn)
    with pytest.raises(ValueError, match="was given back already"):
        await pool.release(conn)
    with case.admin() as foreign, pytest.raises(ValueError, match="was not borrowed"):
        await pool.release(foreign)
    # Whichever object releases it, it goes back to the pool that it came from.
    conn = await pool.borrow()
    await other.release(conn)
    await case.expect_nothing_out(pool)


@sync_and_async
async def test_a_release_rolls_back_what_is_open_and_closes_what_is_busy(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    pool = await case.open(pool={"max_size": 1})
    conn = await pool.borrow()
    await conn.execute("INSERT INTO notes VALUES ('lost')")
    await pool.release(conn)
    assert case.rows(NOTES) == []
    busy = await pool.borrow()
    assert busy is conn
    busy.pgconn.send_query(b"SELECT pg_sleep(0.2)")
    await pool.release(busy)
    assert busy.closed
    async with pool as conn:
        assert await case.value(conn, "SELECT 1") == 1


@sync_and_async
async def test_a_connection_with_a_transaction_left_prepared_is_lent_no_more(
    fragile: AsyncCase, private_server: PrivateServer
) -> None:
    with private_server.connect() as admin:
        admin.execute("ALTER SYSTEM SET max_prepared_transactions = 1")
    private_server.restart()
    pool = await fragile.open(pool={"max_size": 1})
    conn = await pool.borrow()
    await conn.tpc_begin(conn.xid(1, "transfer", "debit"))
    await conn.tpc_prepare()
    await pool.release(conn)
    async with pool as another:
        assert another is not conn
        assert await fragile.value(another, "SELECT count(*) FROM pg_prepared_xacts") == 1
    await pool.disconnect()
    with psycopg.connect(**fragile.settings) as finishing:
        (xid,) = finishing.tpc_recover()
        finishing.tpc_rollback(xid)


# Size and patience


@sync_and_async
async def test_a_pool_opens_what_it_needs_between_min_size_and_max_size(case: AsyncCase) -> None:
    pool = await case.open(pool={"min_size": 2, "max_size": 4})
    await case.wait_for_sessions(2)
    async with AsyncExitStack() as stack:
        for _ in range(4):
            await stack.enter_async_context(pool.connection())
        assert len(case.sessions()) == 4
        with pytest.raises(PoolTimeout):
            await stack.enter_async_context(pool.connection(timeout=0.1))
    assert len(case.sessions()) == 4


@sync_and_async
async def test_one_user_of_a_fresh_pool_needs_one_connection(case: AsyncCase) -> None:
    for min_size in (0, 1):
        pool = await case.open(pool={"min_size": min_size})
        for _ in range(3):
            async with pool as conn:
                assert await case.value(conn, "SELECT 1") == 1
        await case.sleep(0.05)
        assert len(case.sessions()) == 1
        await pool.disconnect()
        await case.wait_for_sessions(0)


@pytest.mark.parametrize("min_size", [0, 2])
@sync_and_async
async def test_a_pool_shrinks_to_min_size_after_max_idle(case: AsyncCase, min_size: int) -> None:
    pool = await case.open(pool={"min_size": min_size, "max_size": 4, "max_idle": 0.2})
    await case.idle_backends(pool, 4)
    assert len(case.sessions()) == 4
    await case.wait_for_sessions(min_size)
    async with pool as conn:
        assert await case.value(conn, "SELECT 1") == 1


@sync_and_async
async def test_all_that_were_unused_for_max_idle_close_together(case: AsyncCase) -> None:
    pool = await case.open(pool={"max_size": 12, "max_idle": 0.5})
    await case.idle_backends(pool, 12)
    deadline = monotonic() + 10
    while (size := pool.get_stats()["pool_size"]) == 12:
        assert monotonic() < deadline
        await case.sleep(0.001)
    assert size == 1
    await case.wait_for_sessions(1)


@sync_and_async
async def test_a_connection_past_max_lifetime_is_replaced_when_it_comes_back(
    case: AsyncCase,
) -> None:
    pool = await case.open(pool={"max_size": 1, "max_lifetime": 0.1})
    async with pool as conn:
        old = await case.value(conn, "SELECT pg_backend_pid()")
        await case.sleep(0.15)
    async with pool as conn:
        assert await case.value(conn, "SELECT pg_backend_pid()") != old


@sync_and_async
async def test_an_exhausted_pool_says_how_it_stands(case: AsyncCase) -> None:
    pool = await case.open(pool={"max_size": 2, "timeout": 0.3}, describe_borrower=lambda: "view")
    async with pool, pool:
        with (
            within(2),
            pytest.raises(
                PoolTimeout,
                match=r"came free within 0\.30 s: 2 of at most 2 are borrowed, 0 others wait;"
                r" the longest has been out for 0\.[3-9]\d s",
            ),
        ):
            async with pool:
                pass
    await case.expect_nothing_out(pool)


@sync_and_async
async def test_the_timeout_of_connection_overrules_that_of_the_config(case: AsyncCase) -> None:
    pool = await case.open(pool={"max_size": 1, "timeout": 60})
    async with pool:
        with within(2), pytest.raises(PoolTimeout, match=r"within 0\.10 s"):
            async with pool.connection(timeout=0.1):
                pass


@sync_and_async
async def test_max_waiting_turns_away_who_comes_when_the_line_is_full(case: AsyncCase) -> None:
    pool = await case.open(pool={"max_size": 1, "timeout": 20, "max_waiting": 1})

    async def enter() -> None:
        async with pool:
            pass

    async with pool:
        # Who gave up does not count.
        for _ in range(2):
            with pytest.raises(PoolTimeout):
                await pool.borrow(timeout=0.05)
        waiting = case.start(enter)
        deadline = monotonic() + 5
        while pool.get_stats()["requests_waiting"] < 1:
            assert monotonic() < deadline
            await case.sleep(0.01)
        with pytest.raises(TooManyRequests):
            await enter()
    assert await case.outcome(waiting) is None


@sync_and_async
async def test_waiters_are_served_in_their_order(case: AsyncCase) -> None:
    pool = await case.open(pool={"max_size": 1, "timeout": 20})
    served: list[int] = []

    async def enter(n: int) -> None:
        async with pool:
            served.append(n)

    waiting = []
    async with pool:
        for n in range(5):
            waiting.append(case.start(enter, n))
            deadline = monotonic() + 5
            while pool.get_stats()["requests_waiting"] < n + 1:
                assert monotonic() < deadline
                await case.sleep(0.005)
    assert [await case.outcome(one) for one in waiting] == [None] * 5
    assert served == [0, 1, 2, 3, 4]


@sync_and_async
async def test_a_waiter_gets_a_new_connection_for_one_that_came_back_dead(case: AsyncCase) -> None:
    pool = await case.open(pool={"max_size": 1, "timeout": 20})

    async def query() -> Any:
        async with pool as conn:
            return await case.value(conn, "SELECT 7")

    conn = await pool.borrow()
    waiting = case.start(query)
    await case.sleep(0.05)
    await conn.close()
    await pool.release(conn)
    with within(3):
        assert await case.outcome(waiting) == 7


@sync_and_async
async def test_a_retired_pool_lends_no_more(case: AsyncCase) -> None:
    old, new = await case.open(pool={"max_size": 1, "timeout": 20}), await case.open()

    async def pid() -> Any:
        async with old as conn:
            return await case.value(conn, "SELECT pg_backend_pid()")

    async with old as conn:
        own = await case.value(conn, "SELECT pg_backend_pid()")
        waiting = case.start(pid)
        await case.sleep(0.05)
        await old.retire(new)
        served_by = await case.outcome(waiting)
        assert await pid() == served_by != own
        assert await case.value(conn, "SELECT pg_backend_pid()") == own
    await case.wait_for_sessions(1)
    assert case.sessions() == {served_by}


@sync_and_async
async def test_however_many_successors_the_newest_serves(case: AsyncCase) -> None:
    oldest = await case.open()
    newest = oldest
    forgotten = []
    for _ in range(2 * sys.getrecursionlimit()):
        successor = type(oldest)(oldest.config)
        await newest.retire(successor)
        forgotten.append(ref(newest))
        newest = successor
    async with oldest as conn:
        assert conn.record.source is newest
    assert not any(one() for one in forgotten[1:])
    await newest.disconnect()
    await oldest.connect()
    assert "open" in repr(newest)
    await newest.disconnect()


# Dead connections


@pytest.mark.parametrize("size", [4, 10, 50])
@sync_and_async
async def test_no_borrower_meets_a_terminated_connection(case: AsyncCase, size: int) -> None:
    pool = await case.open(pool={"min_size": size, "max_size": size, "num_workers": 8})
    await case.wait_for_sessions(size)
    case.terminate()
    with within(1):
        async with pool as conn:
            assert await case.value(conn, "SELECT 1") == 1
    case.terminate()

    async def query(n: int) -> Any:
        async with pool as conn:
            return await case.value(conn, "SELECT %s::int", n)

    assert await case.together(query, range(20)) == [*range(20)]
    await case.expect_nothing_out(pool)


@sync_and_async
async def test_one_dead_connection_says_nothing_about_the_rest(case: AsyncCase) -> None:
    pool = await case.open(pool={"min_size": 5, "max_size": 5})
    before = await case.idle_backends(pool, 5)
    case.terminate(before[0])
    async with pool as conn:
        assert conn.info.backend_pid == before[1]
    assert set(before[1:]) <= case.sessions()


@sync_and_async
async def test_two_dead_connections_drain_the_older_rest(case: AsyncCase) -> None:
    pool = await case.open(pool={"min_size": 5, "max_size": 5})
    before = await case.idle_backends(pool, 5)
    case.terminate(*before[:2])
    async with pool as conn:
        assert conn.info.backend_pid not in before
    await case.wait_for_sessions(5)
    assert not set(before) & case.sessions()
    await case.expect_nothing_out(pool)


@sync_and_async
async def test_a_crash_of_the_server_drains_the_rest(fragile: AsyncCase) -> None:
    pool = await fragile.open(pool={"min_size": 4, "max_size": 4, "timeout": 20})
    before = await fragile.idle_backends(pool, 4)
    os.kill(before[3], signal.SIGKILL)
    deadline = monotonic() + 5
    while any(map(psutil.pid_exists, before)):
        assert monotonic() < deadline, "the other backends go on"
        await fragile.sleep(0.01)
    async with pool as conn:
        assert await fragile.value(conn, "SELECT pg_backend_pid()") not in before
    await fragile.expect_nothing_out(pool)


@sync_and_async
async def test_a_ping_that_runs_out_discards_all_idle_ones(
    fragile: AsyncCase, private_server: PrivateServer, proxy: Any
) -> None:
    gate = proxy(private_server.host, private_server.port)
    pool = await fragile.open(
        {"port": gate.port}, {"min_size": 5, "timeout": 20, "check_on_checkout": True}
    )
    await fragile.wait_for_sessions(5)
    await fragile.expect_nothing_out(pool)  # the pool has them all, not the server alone
    before = fragile.sessions()
    gate.stall()
    # Were all five asked in turn, the last ones would answer after this.
    resuming = threading.Timer(1.2, gate.resume)
    resuming.start()
    async with pool as conn:
        assert await fragile.value(conn, "SELECT pg_backend_pid()") not in before
    resuming.join()
    await pool.disconnect()


def shut_down(conn: Any) -> None:
    """End a query that hears nothing more, as a bound on it does."""
    with socket.socket(fileno=os.dup(conn.pgconn.socket)) as duplicate:
        duplicate.shutdown(socket.SHUT_RDWR)


@sync_and_async
async def test_after_a_query_that_heard_nothing_no_other_one_waits_in_vain(
    fragile: AsyncCase, private_server: PrivateServer, proxy: Any
) -> None:
    gate = proxy(private_server.host, private_server.port)
    pool = await fragile.open({"port": gate.port}, {"max_size": 6, "timeout": 20})
    await fragile.idle_backends(pool, 6)
    gate.lose_flows()
    conn = await pool.borrow()
    shutting_down = threading.Timer(0.2, shut_down, [conn])
    shutting_down.start()
    with pytest.raises(psycopg.OperationalError):
        await conn.execute("SELECT 1")
    shutting_down.join()
    await pool.release(conn)

    async def query(n: int) -> Any:
        async with pool as conn:
            return await fragile.value(conn, "SELECT %s::int", n)

    with within(5):
        assert await fragile.together(query, range(20)) == [*range(20)]
    await fragile.expect_nothing_out(pool)
    await pool.disconnect()


@sync_and_async
async def test_a_ping_that_was_cut_short_has_the_others_asked_too(
    fragile: AsyncCase, private_server: PrivateServer, proxy: Any
) -> None:
    gate = proxy(private_server.host, private_server.port)
    pool = await fragile.open({"port": gate.port}, {"max_size": 6, "timeout": 20})
    await fragile.idle_backends(pool, 6)
    conn = await pool.borrow()
    await pool.release(conn)
    pool._states.here().pool._pool.rotate(1)  # lent next
    conn.record.released_at = monotonic() - 1.1
    gate.lose_flows()
    with pytest.raises(PoolTimeout, match="has not answered a ping"):
        await pool.borrow(timeout=0.1)
    with within(5):
        async with pool as conn:
            assert await fragile.value(conn, "SELECT 1") == 1
    await pool.disconnect()


@sync_and_async
async def test_check_on_checkout_costs_a_round_trip(case: AsyncCase) -> None:
    for check, cost in ((False, 0), (True, 1)):
        pool = await case.open(pool={"max_size": 1, "check_on_checkout": check})
        async with pool as conn:
            traced = conn
        with count_round_trips(traced) as round_trips:
            async with pool as conn:
                assert conn is traced
        assert round_trips.count == cost


@sync_and_async
async def test_a_connection_is_pinged_after_a_second_of_idleness(case: AsyncCase) -> None:
    pool = await case.open(pool={"max_size": 1})
    async with pool as conn:
        traced = conn
    traced.record.released_at = monotonic() - 1.1
    with count_round_trips(traced) as round_trips:
        async with pool as conn:
            assert conn is traced
    assert round_trips.count == 1


# What a borrower leaves behind


@sync_and_async
async def test_a_release_puts_back_how_many_statements_may_be_prepared(case: AsyncCase) -> None:
    pool = await case.open(pool={"max_size": 1}, configure=limit_prepared_statements)
    for _ in range(2):
        async with pool as conn:
            assert conn.prepared_max == 7
            conn.prepared_max = None


def limit_prepared_statements(conn: Any) -> None:
    conn.prepared_max = 7


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@sync_and_async
async def test_a_forked_child_has_borrowed_nothing(case: AsyncCase) -> None:
    pool = await case.open()
    async with pool:
        assert in_child(borrowed_connections) == []
        assert len(borrowed_connections()) == 1


@sync_and_async
async def test_a_leak_is_logged_once_with_its_stack_and_when_it_comes_back(
    case: AsyncCase, caplog: pytest.LogCaptureFixture
) -> None:
    pool = await case.open(
        pool={"leak_threshold": 0.2}, describe_borrower=lambda: "endpoint orders.checkout"
    )

    async def forget_to_give_back() -> Any:
        return await pool.borrow()

    async with pool:
        pass
    conn = await forget_to_give_back()
    assert borrowed_connections()[0].endswith("by endpoint orders.checkout")
    deadline = monotonic() + 5
    while not caplog.messages:
        assert monotonic() < deadline
        await case.sleep(0.01)
    await case.sleep(0.3)
    (logged,) = caplog.messages
    assert "by endpoint orders.checkout, longer than leak_threshold (0.20 s)" in logged
    assert "in forget_to_give_back" in logged
    assert "flask_pgmonkey/connections" not in logged
    await pool.release(conn)
    assert re.search(r"came back after 0\.\d\d s by endpoint orders\.checkout", caplog.messages[1])
    async with pool:
        pass
    assert len(caplog.messages) == 2


# A server that cannot be reached while the pool is open


@sync_and_async
async def test_a_configure_that_exits_fails_who_waits_and_no_worker(case: AsyncCase) -> None:
    def configure(conn: Any) -> None:
        if exits:
            raise SystemExit("no such extension")

    exits = False
    pool = await case.open(pool={"num_workers": 1, "timeout": 20}, configure=configure)
    async with pool:
        exits = True
        with within(10), pytest.raises(RuntimeError, match=r"SystemExit\('no such extension'\)"):
            await pool.borrow()
        exits = False
        async with pool as conn:
            assert await case.value(conn, "SELECT 1") == 1
    await case.expect_nothing_out(pool)


@sync_and_async
async def test_a_password_changed_on_the_server_fails_all_who_wait_at_once(
    fragile: AsyncCase, private_server: PrivateServer
) -> None:
    pool = await fragile.open(pool={"max_size": 4, "timeout": 20})

    async def enter(_: int) -> None:
        async with pool:
            pass

    async with pool as conn:
        private_server.set_password("app", "another")
        with within(2):
            outcomes = await fragile.together(enter, range(6))
        assert len({id(error) for error in outcomes}) == 6
        for error in outcomes:
            assert isinstance(error, psycopg.OperationalError)
            assert not isinstance(error, PoolTimeout)
            assert "password authentication failed" in str(error)
        assert await fragile.value(conn, "SELECT 1") == 1
    # What is open goes on.
    await enter(0)
    private_server.set_password("app", private_server.password)
    assert await fragile.together(enter, range(6)) == [None] * 6


@sync_and_async
async def test_a_refusing_server_is_psycopgs_error_when_the_timeout_is_over(
    fragile: AsyncCase, private_server: PrivateServer, proxy: Any
) -> None:
    gate = proxy(private_server.host, private_server.port)
    pool = await fragile.open({"port": gate.port}, {"max_size": 2, "timeout": 0.4})
    gate.refuse()
    async with pool:
        with within(2), pytest.raises(psycopg.OperationalError, match="refused") as failed:
            await pool.borrow()
        assert not isinstance(failed.value, PoolTimeout)
    gate.drop_all()
    await fragile.wait_for_sessions(0)
    with within(2), pytest.raises(psycopg.OperationalError, match="refused") as failed:
        await pool.borrow()
    assert not isinstance(failed.value, PoolTimeout)
    gate.accept()
    async with pool.connection(timeout=20) as conn:
        assert await fragile.value(conn, "SELECT 1") == 1
    await pool.disconnect()


@sync_and_async
async def test_too_many_connections_are_waited_for(
    fragile: AsyncCase, private_server: PrivateServer
) -> None:
    with private_server.connect() as admin:
        admin.execute("ALTER ROLE app CONNECTION LIMIT 2")
    pool = await fragile.open(pool={"max_size": 2, "timeout": 20})
    async with pool:
        with psycopg.connect(**fragile.settings):
            with pytest.raises(psycopg.OperationalError, match="too many connections") as failed:
                await pool.borrow(timeout=0.5)
            assert "max_size" not in str(failed.value)
        async with pool as conn:
            assert await fragile.value(conn, "SELECT 1") == 1
    with private_server.connect() as admin:
        admin.execute("ALTER ROLE app CONNECTION LIMIT -1")


@sync_and_async
async def test_a_line_that_is_full_while_the_server_refuses_hears_why(
    fragile: AsyncCase, private_server: PrivateServer, proxy: Any
) -> None:
    gate = proxy(private_server.host, private_server.port)
    pool = await fragile.open({"port": gate.port}, {"max_size": 2, "timeout": 20, "max_waiting": 1})

    async def enter() -> None:
        async with pool:
            pass

    async with pool:
        gate.refuse()
        waiting = fragile.start(enter)
        deadline = monotonic() + 10
        while pool._states.here().pool.connector.failures.error is None:
            assert monotonic() < deadline
            await fragile.sleep(0.01)
        with within(2), pytest.raises(psycopg.OperationalError, match="refused"):
            await enter()
    assert await fragile.outcome(waiting) is None
    await pool.disconnect()


@sync_and_async
async def test_a_server_that_closes_what_it_accepts_is_not_said_to_be_silent(
    case: AsyncCase,
) -> None:
    def configure(conn: Any) -> None:
        if is_closing:
            case.terminate(conn.info.backend_pid)

    is_closing = False
    pool = await case.open(pool={"max_size": 2, "timeout": 1}, configure=configure)
    async with pool:
        is_closing = True
        with within(10), pytest.raises(PoolTimeout, match="closed by the server") as caught:
            await pool.borrow()
    assert "max_size" not in str(caught.value)
    assert "answered" not in str(caught.value)
    is_closing = False
    await case.expect_nothing_out(pool)


@sync_and_async
async def test_who_waits_in_vain_for_a_slow_configure_hears_what_it_waited_for(
    case: AsyncCase,
) -> None:
    def configure(conn: Any) -> Any:
        return case.sleep(1) if is_slow else None

    is_slow = False
    pool = await case.open(pool={"max_size": 2, "timeout": 0.2}, configure=configure)
    async with pool:
        is_slow = True
        with pytest.raises(PoolTimeout, match=r"1 of at most 2 are borrowed.*'configure' take"):
            await pool.borrow()
        is_slow = False
    await case.expect_nothing_out(pool)


@sync_and_async
async def test_an_outage_that_one_waited_out_is_an_error_at_once_for_the_others(
    fragile: AsyncCase, private_server: PrivateServer, proxy: Any
) -> None:
    gate = proxy(private_server.host, private_server.port)
    pool = await fragile.open({"port": gate.port}, {"min_size": 3, "max_size": 4, "timeout": 2})

    async def enter(delay: float, timeout: float | None = None) -> float:
        """How long it took to get an error; 0 without one."""
        await fragile.sleep(delay)
        start = monotonic()
        try:
            async with pool.connection(timeout):
                return 0
        except psycopg.OperationalError:
            return monotonic() - start

    gate.refuse()
    gate.drop_all()
    await fragile.wait_for_sessions(0)
    patient = fragile.start(enter, 0, 30)
    first, _, last = await fragile.together(enter, [0, 0.5, 1.5])
    assert first >= 2
    assert 0 < last < 2  # in the line when the first one gave up
    waits = await fragile.together(enter, [0] * 20)
    assert 0 < min(waits) < max(waits) < 1.5
    gate.accept()
    deadline = monotonic() + 5
    while await enter(0):
        assert monotonic() < deadline
        await fragile.sleep(0.01)
    assert await fragile.outcome(patient) == 0
    await fragile.wait_for_sessions(3)
    await pool.disconnect()


@sync_and_async
async def test_while_borrowers_give_back_there_is_something_to_wait_for(
    fragile: AsyncCase, private_server: PrivateServer
) -> None:
    with private_server.connect() as admin:
        admin.execute("ALTER ROLE app CONNECTION LIMIT 1")
    pool = await fragile.open(pool={"max_size": 2, "timeout": 0.5})
    conn = await pool.borrow()
    for _ in range(2):
        with within(2), pytest.raises(psycopg.OperationalError, match="too many"):
            await pool.borrow()
    await pool.release(conn)

    async def hold_in_turn(_: int) -> None:
        async with pool:
            await fragile.sleep(0.05)

    assert await fragile.together(hold_in_turn, range(4)) == [None] * 4
    with private_server.connect() as admin:
        admin.execute("ALTER ROLE app CONNECTION LIMIT -1")
    await fragile.expect_nothing_out(pool)


@sync_and_async
async def test_an_outage_that_nobody_asks_about_is_forgotten(
    fragile: AsyncCase,
    private_server: PrivateServer,
    proxy: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connect_errors, "_FORGOTTEN_AFTER", 0.5)
    gate = proxy(private_server.host, private_server.port)
    pool = await fragile.open(
        {"port": gate.port}, {"timeout": 0.5, "reconnect_timeout": 0.1, "min_size": 0}
    )
    gate.refuse()
    gate.drop_all()
    with pytest.raises(psycopg.OperationalError, match="refused"):
        await pool.borrow()
    deadline = monotonic() + 5
    while pool._states.here().pool.connector.is_trying_again:
        assert monotonic() < deadline
        await fragile.sleep(0.01)
    gate.accept()
    async with pool.connection(timeout=20) as conn:
        assert await fragile.value(conn, "SELECT 1") == 1
    await pool.disconnect()


@sync_and_async
async def test_an_outage_of_three_seconds_under_load_is_waited_out(
    fragile: AsyncCase, private_server: PrivateServer
) -> None:
    pool = await fragile.open(pool={"max_size": 5, "timeout": 5})

    async def request(n: int) -> Any:
        async with pool as conn:
            return await fragile.value(conn, "SELECT %s::int", n)

    def outage() -> None:
        private_server.stop()
        time.sleep(3)
        private_server.start()

    breaking = threading.Timer(0.5, outage)
    breaking.start()
    requests = []
    began = monotonic()
    for n in range(90):
        requests.append(fragile.start(request, n))
        await fragile.sleep(max(0.0, began + (n + 1) * 0.05 - monotonic()))
    outcomes = [await fragile.outcome(one) for one in requests]
    breaking.join()
    failed = errors(outcomes)
    assert all(one == n for n, one in enumerate(outcomes) if one not in failed)
    # Only what was on its way when the server stopped.
    assert len(failed) <= 5
    assert all(isinstance(error, psycopg.Error) for error in failed)
    assert not any(isinstance(error, PoolTimeout) for error in failed)
    await fragile.expect_nothing_out(pool)


@sync_and_async
async def test_a_restart_under_load_fails_only_what_was_running(
    fragile: AsyncCase, private_server: PrivateServer
) -> None:
    pool = await fragile.open(pool={"max_size": 6, "timeout": 20})
    finished = fragile.event()

    async def work(_: int) -> list[BaseException]:
        failed: list[BaseException] = []
        while not finished.is_set():
            try:
                async with pool as conn:
                    await conn.execute("SELECT pg_sleep(0.002)")
            except psycopg.Error as error:
                failed.append(error)
        return failed

    working = [fragile.start(work, n) for n in range(8)]
    await fragile.sleep(0.2)
    for _ in range(2):
        restarting = threading.Thread(target=private_server.restart)
        restarting.start()
        while restarting.is_alive():
            await fragile.sleep(0.01)
        await fragile.sleep(0.3)
    finished.set()
    failed = [error for one in working for error in await fragile.outcome(one)]
    # At most what was borrowed or about to be, in each of two restarts.
    assert len(failed) <= 12
    assert not any(isinstance(error, PoolTimeout) for error in failed)
    await fragile.expect_nothing_out(pool)
