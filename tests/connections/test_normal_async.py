"""What only tasks can do to an ``async`` connection; the rest is in test_normal.py."""

# ruff: noqa: PT012 (a block that fails has more than one statement)

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from time import monotonic

import psycopg
import pytest

from .every_type import AsyncCase, sync_and_async, within

CONNECTION_TYPES = ("async",)


@sync_and_async
async def test_a_block_cancelled_in_its_query_leaves_a_connection_for_the_next(
    case: AsyncCase,
) -> None:
    connection = await case.open()
    inside = asyncio.Event()

    async def work() -> None:
        async with connection as conn:
            inside.set()
            await conn.execute("SELECT pg_sleep(60)")

    for _ in range(3):
        inside.clear()
        working = asyncio.ensure_future(work())
        await inside.wait()
        await asyncio.sleep(0.02)
        working.cancel()
        with within(5), pytest.raises(asyncio.CancelledError):
            await working
        async with connection as conn:
            assert await case.value(conn, "SELECT 1") == 1


@sync_and_async
async def test_a_task_cancelled_in_the_ping_leaves_a_connection_for_the_next(
    case: AsyncCase,
) -> None:
    connection = await case.open()

    async def enter() -> None:
        async with connection:
            pass

    for _ in range(10):
        async with connection as conn:
            assert await case.value(conn, "SELECT 1") == 1
        conn.record.released_at = monotonic() - 2
        entering = asyncio.ensure_future(enter())
        await asyncio.sleep(0)
        entering.cancel()
        await asyncio.wait([entering])
    async with connection as conn:
        assert await case.value(conn, "SELECT 1") == 1
    await case.wait_for_sessions(1)


@sync_and_async
async def test_storms_of_cancellations_leave_the_turn_free(case: AsyncCase) -> None:
    connection = await case.open(pool={"timeout": 20})
    chance = random.Random(7)

    async def work() -> None:
        async with connection as conn:
            await conn.execute("SELECT 1")
            async with connection:
                await asyncio.sleep(0)

    for _ in range(10):
        working = [asyncio.ensure_future(work()) for _ in range(20)]
        await asyncio.sleep(chance.random() * 0.02)
        for one in chance.sample(working, 12):
            one.cancel()
        done, _ = await asyncio.wait(working)
        assert not [one for one in done if not one.cancelled() and one.exception()]
    with within(2):
        await work()
    await case.wait_for_sessions(1)


@sync_and_async
async def test_a_task_cancelled_as_its_turn_comes_passes_it_on(case: AsyncCase) -> None:
    connection = await case.open(pool={"timeout": 20})

    async def enter() -> None:
        async with connection:
            pass

    async with connection:
        first, second = asyncio.ensure_future(enter()), asyncio.ensure_future(enter())
        while len(connection._states.here().line) < 3:
            await asyncio.sleep(0)
    first.cancel()
    with within(10):
        await second
    assert first.cancelled()


@sync_and_async
async def test_a_block_after_a_break_out_of_a_generator_is_one_of_its_own(case: AsyncCase) -> None:
    case.run_on_server("CREATE TABLE notes (note text)")
    connection = await case.open(pool={"timeout": 20})

    async def numbers() -> AsyncIterator[int]:
        async with connection as conn:
            await conn.execute("INSERT INTO notes VALUES ('lost')")
            for n in range(3):
                yield n

    for block in (lambda: connection, connection.transaction):
        async for _ in numbers():
            break  # asyncio ends the generator's block in a task of its own
        async with block() as conn:
            await conn.execute("INSERT INTO notes VALUES ('kept')")
    assert case.rows("SELECT note FROM notes") == [("kept",), ("kept",)]


@sync_and_async
async def test_nothing_joins_the_block_of_a_generator_that_was_dropped(case: AsyncCase) -> None:
    case.run_on_server("CREATE TABLE notes (note text)")
    connection = await case.open(pool={"timeout": 20})

    async def of_cursor() -> AsyncIterator[None]:
        async with connection.cursor() as cursor:
            await cursor.execute("INSERT INTO notes VALUES ('lost')")
            yield

    async def of_transaction() -> AsyncIterator[None]:
        async with connection.transaction() as conn:
            await conn.execute("INSERT INTO notes VALUES ('lost')")
            yield

    async def of_connection() -> AsyncIterator[None]:
        async with connection.connection() as conn:
            await conn.execute("INSERT INTO notes VALUES ('lost')")
            yield

    for dropped in (of_cursor, of_transaction, of_connection):
        for block in (connection.cursor, connection.transaction, connection.connection):
            async for _ in dropped():
                break
            await connection.commit()
            async with block() as conn:
                await conn.execute("INSERT INTO notes VALUES ('kept')")
            async for _ in dropped():
                break
            await connection.rollback()
            async with connection as conn:
                await conn.execute("INSERT INTO notes VALUES ('kept')")
    assert case.rows("SELECT note FROM notes") == [("kept",)] * 18


@sync_and_async
async def test_a_generator_dropped_in_an_outer_block_undoes_nothing_in_silence(
    case: AsyncCase,
) -> None:
    case.run_on_server("CREATE TABLE notes (note text)")
    connection = await case.open(pool={"timeout": 20})

    async def nested() -> AsyncGenerator[None, None]:
        async with connection.transaction():
            yield

    with pytest.raises(psycopg.errors.InFailedSqlTransaction) as raised:
        async with connection as conn:
            await conn.execute("INSERT INTO notes VALUES ('before')")
            async for _ in nested():
                break
            await conn.execute("INSERT INTO notes VALUES ('next')")
            for _ in range(3):
                await asyncio.sleep(0)  # meanwhile asyncio ends the generator
    assert "aclosing" in str(raised.value.__cause__)
    async with connection as conn:
        await conn.execute("INSERT INTO notes VALUES ('before')")
        async with aclosing(nested()) as remedy:
            async for _ in remedy:
                break
        await conn.execute("INSERT INTO notes VALUES ('next')")
    assert case.rows("SELECT note FROM notes") == [("before",), ("next",)]


@sync_and_async
async def test_a_block_inside_an_async_for_over_one_is_nested(case: AsyncCase) -> None:
    connection = await case.open(pool={"timeout": 1})

    async def connections() -> AsyncIterator[object]:
        async with connection as conn:
            yield conn

    async for outer in connections():
        async with connection as inner:
            assert inner is outer


@sync_and_async
async def test_connections_that_are_opened_again_end_with_their_loop(case: AsyncCase) -> None:
    def die_and_leave() -> None:
        async def main() -> None:
            connection = case.make()
            case.forget(connection)
            for _ in range(3):
                await connection.test_connection()
                await asyncio.to_thread(case.terminate)
            await connection.test_connection()

        asyncio.run(main())

    with within(10):
        await asyncio.to_thread(die_and_leave)
    await case.wait_for_sessions(0)
