"""What only tasks can do to an ``async_pool``; the rest is in test_pool.py."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import Any
from weakref import ref

import pytest
from psycopg.pq import TransactionStatus

from .every_type import AsyncCase, sync_and_async, within

CONNECTION_TYPES = ("async_pool",)


@sync_and_async
async def test_a_cancelled_waiter_leaves_the_line(case: AsyncCase) -> None:
    pool = await case.open(pool={"max_size": 1, "timeout": 20})
    async with pool:
        waiting = [asyncio.ensure_future(pool.borrow()) for _ in range(3)]
        while pool.get_stats()["requests_waiting"] < 3:
            await asyncio.sleep(0.01)
        for one in waiting:
            one.cancel()
        await asyncio.wait(waiting)
        assert all(one.cancelled() for one in waiting)
        assert pool.get_stats()["requests_waiting"] == 0
    with within(1):
        async with pool:
            pass
    await case.expect_nothing_out(pool)


@sync_and_async
async def test_a_waiter_cancelled_as_it_is_served_hands_the_connection_on(case: AsyncCase) -> None:
    pool = await case.open(pool={"max_size": 1, "timeout": 20})
    for _ in range(20):
        conn = await pool.borrow()
        first, second = (asyncio.ensure_future(pool.borrow()) for _ in range(2))
        while pool.get_stats()["requests_waiting"] < 2:
            await asyncio.sleep(0)
        release = asyncio.ensure_future(pool.release(conn))
        while pool.get_stats()["requests_waiting"] == 2:
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first, release])
        if not first.cancelled():
            await pool.release(first.result())
        await pool.release(await asyncio.wait_for(second, 5))
    await case.expect_nothing_out(pool)


@sync_and_async
async def test_a_block_cancelled_in_its_query_gives_a_clean_connection_back(
    case: AsyncCase,
) -> None:
    pool = await case.open(pool={"max_size": 1})

    async def work() -> None:
        async with pool as conn:
            await conn.execute("SELECT pg_sleep(60)")

    for _ in range(3):
        working = asyncio.ensure_future(work())
        while not pool.get_stats().get("pool_size") or "1 of" not in repr(pool):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.02)
        working.cancel()
        with within(5), pytest.raises(asyncio.CancelledError):
            await working
        async with pool as conn:
            assert conn.pgconn.transaction_status == TransactionStatus.IDLE
            assert await case.value(conn, "SELECT 1") == 1
    await case.expect_nothing_out(pool)


@pytest.mark.parametrize("options", [{}, {"check_on_checkout": True, "reset_on_return": True}])
@sync_and_async
async def test_storms_of_cancellations_lose_no_capacity(
    case: AsyncCase, options: dict[str, Any]
) -> None:
    pool = await case.open(pool={"max_size": 4, "timeout": 20, **options})
    chance = random.Random(7)

    async def work() -> None:
        async with pool as conn:
            await conn.execute("SELECT 1")
            await asyncio.sleep(0)

    for _ in range(12):
        working = [asyncio.ensure_future(work()) for _ in range(40)]
        await asyncio.sleep(chance.random() * 0.02)
        for one in chance.sample(working, 25):
            one.cancel()
            if chance.random() < 0.3:
                await asyncio.sleep(0)
        done, _ = await asyncio.wait(working)
        assert not [one for one in done if not one.cancelled() and one.exception()]
    await case.expect_nothing_out(pool)
    borrowed = [await pool.borrow() for _ in range(4)]
    for conn in borrowed:
        await pool.release(conn)
    await case.wait_for_sessions(4)


@sync_and_async
async def test_a_timeout_around_a_block_gives_its_connection_back(case: AsyncCase) -> None:
    pool = await case.open(pool={"max_size": 2})

    async def sleep_long() -> None:
        async with pool as conn:
            await conn.execute("SELECT pg_sleep(60)")

    for _ in range(3):
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(sleep_long(), 0.05)
    await case.expect_nothing_out(pool)


@sync_and_async
async def test_configure_may_be_awaitable(case: AsyncCase) -> None:
    async def configure(conn: Any) -> None:
        await conn.execute("SET application_name = 'configured'")

    pool = await case.open(configure=configure)
    async with pool as conn:
        assert await case.value(conn, "SHOW application_name") == "configured"


@sync_and_async
async def test_an_open_pool_keeps_nothing_of_the_context_that_opened_it(case: AsyncCase) -> None:
    class Request:
        pass

    current: ContextVar[Request] = ContextVar("current")
    pool = case.make(pool={"leak_threshold": 60})

    async def handle_request() -> ref[Request]:
        request = Request()
        current.set(request)
        async with pool as conn:
            await conn.execute("SELECT 1")
        return ref(request)

    request = await asyncio.create_task(handle_request())
    await asyncio.sleep(0)  # the loop lets go of the task
    gc.collect()
    assert request() is None
    await pool.disconnect()


@sync_and_async
async def test_a_pool_left_open_does_not_hang_the_end_of_its_loop(case: AsyncCase) -> None:
    left: list[Awaitable[Any]] = []

    def open_and_leave() -> None:
        async def main() -> None:
            pool = case.make(pool={"min_size": 3})
            case.forget(pool)
            await pool.connect()
            left.append(pool)

        asyncio.run(main())

    with within(5):
        await asyncio.to_thread(open_and_leave)
    await case.wait_for_sessions(0)
    assert "closed" in repr(left[0])
