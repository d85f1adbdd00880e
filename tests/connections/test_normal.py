"""The ``normal`` type and its twin ``async``: one server connection, one block at a time."""

# ruff: noqa: PT012 (a block that fails has more than one statement)

from __future__ import annotations

import re
from typing import Any

import psycopg
import pytest
from psycopg_pool import PoolTimeout

from .every_type import AsyncCase, errors, sync_and_async, within

CONNECTION_TYPES = ("normal", "async")

TABLE = "CREATE TABLE notes (note text)"
NOTES = "SELECT note FROM notes ORDER BY note"


# One block at a time


@sync_and_async
async def test_blocks_take_turns(case: AsyncCase) -> None:
    connection = await case.open(pool={"timeout": 20})
    inside: list[Any] = []

    async def work(_: int) -> None:
        async with connection as conn:
            inside.append(conn)
            assert await case.value(conn, "SELECT 1") == 1
            assert inside.pop() is conn
            assert not inside

    assert errors(await case.together(work, range(24))) == []
    assert len(case.sessions()) == 1


@sync_and_async
async def test_who_waits_too_long_learns_who_holds_the_connection(case: AsyncCase) -> None:
    connection = await case.open(pool={"timeout": 0.2})
    held, finished = case.event(), case.event()

    async def hold() -> None:
        async with connection:
            held.set()
            await finished.wait()

    async def enter(_: int) -> None:
        async with connection:
            pass

    holding = case.start(hold)
    await held.wait()
    with within(2):
        outcomes = await case.together(enter, range(3))
    finished.set()
    assert await case.outcome(holding) is None
    for error in outcomes:
        assert isinstance(error, PoolTimeout)
        words = r"did not come free within 0\.20 s: (thread|task) '.+' has held it for 0\.\d\d s"
        assert re.search(words, str(error))
    async with connection as conn:
        assert await case.value(conn, "SELECT 1") == 1


@sync_and_async
async def test_a_block_that_fails_to_open_ends_its_turn(case: AsyncCase) -> None:
    failing = True

    def configure(conn: Any) -> None:
        if failing:
            raise ZeroDivisionError

    connection = case.make(pool={"timeout": 2}, configure=configure)
    with pytest.raises(ZeroDivisionError):
        async with connection:
            pass
    failing = False

    async def enter(_: int) -> None:
        async with connection:
            pass

    assert await case.together(enter, range(3)) == [None] * 3


# Nested blocks


@sync_and_async
async def test_a_nested_block_is_the_same_connection(case: AsyncCase) -> None:
    connection = await case.open()
    async with connection as outer:
        async with connection as inner:
            assert inner is outer


@sync_and_async
async def test_a_nested_block_that_fails_undoes_only_its_own(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    async with connection as conn:
        await conn.execute("INSERT INTO notes VALUES ('outer')")
        with pytest.raises(ZeroDivisionError):
            async with connection:
                await conn.execute("INSERT INTO notes VALUES ('inner')")
                raise ZeroDivisionError
        async with connection:
            await conn.execute("INSERT INTO notes VALUES ('second')")
        assert case.rows(NOTES) == []
    assert case.rows(NOTES) == [("outer",), ("second",)]


@sync_and_async
async def test_an_outer_block_that_fails_undoes_the_nested_one(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    with pytest.raises(ZeroDivisionError):
        async with connection as conn:
            # Nothing ran before: the nested block is a savepoint all the same.
            async with connection:
                await conn.execute("INSERT INTO notes VALUES ('lost')")
            raise ZeroDivisionError
    assert case.rows(NOTES) == []


@sync_and_async
async def test_an_error_of_the_server_in_a_nested_block_spares_the_outer(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    async with connection as conn:
        await conn.execute("INSERT INTO notes VALUES ('outer')")
        with pytest.raises(psycopg.errors.DivisionByZero):
            async with connection:
                await conn.execute("SELECT 1/0")
        await conn.execute("INSERT INTO notes VALUES ('after')")
    assert case.rows(NOTES) == [("after",), ("outer",)]


@sync_and_async
async def test_a_nested_block_refuses_commit_and_rollback(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    async with connection as conn:
        async with connection:
            await conn.execute("INSERT INTO notes VALUES ('kept')")
            for refused in (conn.commit, conn.rollback, connection.commit, connection.rollback):
                with pytest.raises(psycopg.ProgrammingError):
                    await refused()
    assert case.rows(NOTES) == [("kept",)]


@sync_and_async
async def test_nested_blocks_in_autocommit_leave_each_statement_to_itself(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open({"autocommit": True})
    with pytest.raises(ZeroDivisionError):
        async with connection as conn:
            async with connection:
                await conn.execute("INSERT INTO notes VALUES ('kept')")
                raise ZeroDivisionError
    assert case.rows(NOTES) == [("kept",)]


@sync_and_async
async def test_blocks_nest_three_deep(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    async with connection as conn:
        async with connection:
            await conn.execute("INSERT INTO notes VALUES ('second')")
            with pytest.raises(ZeroDivisionError):
                async with connection:
                    await conn.execute("INSERT INTO notes VALUES ('third')")
                    raise ZeroDivisionError
    assert case.rows(NOTES) == [("second",)]


# A successor


@sync_and_async
async def test_a_successor_serves_who_waits_and_who_comes_while_a_block_runs_on(
    case: AsyncCase,
) -> None:
    case.run_on_server(TABLE)
    old, new = await case.open(pool={"timeout": 20}), await case.open()

    async def note(n: int) -> int:
        async with old as conn:
            await conn.execute("INSERT INTO notes VALUES (%s)", [f"waiter {n}"])
            await old.commit()
            return int(await case.value(conn, "SELECT pg_backend_pid()"))

    async with old as conn:
        own = await case.value(conn, "SELECT pg_backend_pid()")
        await conn.execute("INSERT INTO notes VALUES ('holder')")
        waiting = case.start(note, 1)
        await case.sleep(0.05)
        await old.retire(new)
        served_by = await case.outcome(waiting)
        assert served_by != own
        assert await case.together(note, [2, 3]) == [served_by, served_by]
        # Their blocks ended while this one is open, and left it alone.
        async with old as nested:
            assert nested is conn
        assert case.rows(NOTES) == [("waiter 1",), ("waiter 2",), ("waiter 3",)]
    assert ("holder",) in case.rows(NOTES)
    await case.wait_for_sessions(1)
    assert case.sessions() == {served_by}
    assert await note(4) == served_by


@sync_and_async
async def test_disconnecting_under_load_fails_no_block(case: AsyncCase) -> None:
    connection = await case.open(pool={"timeout": 20})
    finished = case.event()

    async def work(_: int) -> int:
        done = 0
        while not finished.is_set():
            async with connection as conn:
                done += await case.value(conn, "SELECT 1")
            await case.sleep(0)
        return done

    working = [case.start(work, n) for n in range(4)]
    for _ in range(50):
        await connection.disconnect()
        await case.sleep(0.002)
    finished.set()
    for one in working:
        assert await case.outcome(one) > 0
