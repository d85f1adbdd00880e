"""What is told of queries, transactions and connections, for every type."""

from __future__ import annotations

import logging
from typing import Any

import psycopg
import pytest
from psycopg import errors, sql
from psycopg_pool import PoolTimeout

from flask_pgmonkey.config import CONNECTION_TYPES as ALL_TYPES
from flask_pgmonkey.signals import (
    connection_borrowed,
    connection_opened,
    connection_returned,
    pool_exhausted,
    query_executed,
    transaction_ended,
)

from ..listening import listening
from .every_type import AsyncCase, sync_and_async

CONNECTION_TYPES = ALL_TYPES


async def asynchronous(sender: object, event: object) -> None:
    raise AssertionError


@sync_and_async
async def test_a_query_tells_its_text_rows_duration_and_call_site(case: AsyncCase) -> None:
    connection = await case.open({"autocommit": True})
    async with connection as conn:
        with listening() as heard:
            await conn.execute("SELECT generate_series(1, %s), pg_sleep(0.05)", (3,))
    event = heard.only()
    assert heard.senders == [connection]
    assert event.sql == "SELECT generate_series(1, %s), pg_sleep(0.05)"
    assert event.kind == "query"
    assert event.rows == 3
    assert 0.05 <= event.duration < 60
    assert event.error is event.sqlstate is event.bind is event.tally is event.endpoint is None
    assert not event.in_transaction
    assert event.parameters is None
    assert event.call_site.file == __file__
    assert event.call_site.function == ("test_a_query_tells_its_text_rows_duration_and_call_site")


@sync_and_async
async def test_a_query_that_fails_tells_the_error_and_none_of_its_words(case: AsyncCase) -> None:
    connection = await case.open({"autocommit": True})
    async with connection as conn:
        with listening() as heard:
            with pytest.raises(errors.InvalidTextRepresentation):
                await conn.execute("SELECT %s::int", ("a secret",))
            with pytest.raises(psycopg.ProgrammingError):
                await conn.execute("SELECT %s", ())
    refused, wrong = heard
    assert (refused.error, refused.sqlstate, refused.rows) == (
        "InvalidTextRepresentation", "22P02", None,
    )  # fmt: skip
    assert (wrong.error, wrong.sqlstate) == ("ProgrammingError", None)
    assert "a secret" not in repr(refused)


@sync_and_async
async def test_a_transaction_tells_its_begin_and_its_end(case: AsyncCase) -> None:
    connection = await case.open()
    with listening() as heard, listening(transaction_ended) as ended:
        async with connection as conn:
            await conn.execute("SELECT 1")
            await conn.execute("SELECT 2")
        async with connection as conn:
            await conn.execute("SELECT 3")
            raise psycopg.Rollback
    assert heard.texts == [
        "BEGIN", "SELECT 1", "SELECT 2", "COMMIT", "BEGIN", "SELECT 3", "ROLLBACK",
    ]  # fmt: skip
    assert [event.kind for event in heard[:4]] == ["command", "query", "query", "command"]
    assert all(event.in_transaction for event in heard)
    assert [event.committed for event in ended] == [True, False]
    assert all(event.duration > 0 for event in ended)


@sync_and_async
async def test_a_transaction_ends_however_its_end_is_said(case: AsyncCase) -> None:
    connection = await case.open({"autocommit": True})
    with listening() as heard, listening(transaction_ended) as ended:
        async with connection as conn:
            async with conn.transaction():
                async with conn.transaction():
                    pass
            await conn.execute("BEGIN")
            await conn.execute("COMMIT")
            await conn.execute("BEGIN")
            with pytest.raises(errors.DivisionByZero):
                await conn.execute("SELECT 1/0")
            await conn.execute("COMMIT")  # which the server answers with a rollback
    assert heard.texts[:4] == ["BEGIN", 'SAVEPOINT "_pg3_2"', 'RELEASE "_pg3_2"', "COMMIT"]
    assert [event.committed for event in ended] == [True, True, False]


@sync_and_async
async def test_streams_and_their_fetches_are_told_as_they_run(case: AsyncCase) -> None:
    connection = await case.open()
    told = []
    with listening() as heard:
        async with connection as conn:
            async with conn.cursor("numbers") as cursor:
                cursor.itersize = 2
                await cursor.execute("SELECT generate_series(1, %s)", (3,))
                async for _ in cursor:
                    told.append(len(heard))
    assert told == [3, 3, 4]
    assert heard.texts == [
        "BEGIN",
        "SELECT generate_series(1, %s)",
        'FETCH FORWARD 2 FROM "numbers"',
        'FETCH FORWARD 2 FROM "numbers"',
        'CLOSE "numbers"',
        "COMMIT",
    ]
    assert [event.rows for event in heard[2:4]] == [2, 1]


@sync_and_async
async def test_row_by_row_streams_copies_and_many_are_told_as_one(case: AsyncCase) -> None:
    case.run_on_server("CREATE TABLE items (id int)")
    connection = await case.open({"autocommit": True})
    async with connection as conn:
        with listening() as heard:
            cursor = conn.cursor()
            async for _ in cursor.stream("SELECT generate_series(1, 3)"):
                assert not heard
            await cursor.executemany("INSERT INTO items VALUES (%s)", [(1,), (2,), (3,)])
            async with cursor.copy("COPY items FROM STDIN") as copy:
                await copy.write_row((4,))
                assert len(heard) == 2
            async with cursor.copy("COPY items TO STDOUT") as copy:
                async for _ in copy:
                    pass
    assert [(event.kind, event.statements, event.rows) for event in heard] == [
        ("stream", 1, None), ("many", 3, 3), ("copy", 1, 1), ("copy", 1, 4),
    ]  # fmt: skip


@sync_and_async
async def test_a_pipeline_is_told_as_one(case: AsyncCase) -> None:
    connection = await case.open({"autocommit": True})
    async with connection as conn:
        with listening() as heard:
            async with conn.pipeline():
                await conn.execute("SELECT 1")
                async with conn.pipeline():
                    await conn.execute("SELECT 2")
            async with conn.pipeline():
                pass
            await conn.execute("SELECT 3")
    assert [(event.kind, event.sql, event.statements) for event in heard] == [
        ("pipeline", "SELECT 1;\nSELECT 2", 2),
        ("query", "SELECT 3", 1),
    ]


@sync_and_async
async def test_what_is_composed_is_told_without_its_literals(case: AsyncCase) -> None:
    query = sql.SQL("SELECT {} AS {}").format(sql.Literal("hidden"), sql.Identifier("shown"))
    connection = await case.open({"autocommit": True})
    async with connection as conn:
        with listening() as heard:
            await conn.execute(query)
            await conn.execute(b"SELECT 'bytes'")
    assert heard.texts == ['SELECT %s AS "shown"', "SELECT 'bytes'"]


@sync_and_async
async def test_what_makes_a_session_ready_is_not_told(case: AsyncCase) -> None:
    async def configure(conn: Any) -> None:
        await conn.execute("SELECT 'configure'")

    with listening(query_executed, transaction_ended) as heard:
        connection = await case.open(
            {"autocommit": True}, None, {"work_mem": "8MB"}, configure=configure
        )
        async with connection as conn:
            await conn.execute("SET work_mem = '4MB'")
        async with connection as conn:
            assert await case.value(conn, "SHOW work_mem") == "8MB"
    assert heard.texts == ["SET work_mem = '4MB'", "SHOW work_mem"]


@sync_and_async
async def test_a_receiver_that_raises_is_logged_and_hurts_nobody(
    case: AsyncCase, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(sender: object, event: object) -> None:
        raise ZeroDivisionError("in a receiver")

    connection = await case.open({"autocommit": True})
    with query_executed.connected_to(fail), query_executed.connected_to(asynchronous):
        with listening() as heard:
            async with connection as conn:
                assert await case.value(conn, "SELECT 1") == 1
    assert heard.texts == ["SELECT 1"]
    said = [record for record in caplog.records if record.name == "flask_pgmonkey"]
    assert len(said) == 2
    assert {record.levelno for record in said} == {logging.ERROR}
    assert "in a receiver" in caplog.text
    assert "it is a coroutine function" in caplog.text


@sync_and_async
async def test_no_lock_is_held_while_a_receiver_runs(case: AsyncCase) -> None:
    locked = []

    def look(sender: object, event: Any) -> None:
        locked.append((event.sql, current.lock.locked()))

    connection = await case.open()
    with query_executed.connected_to(look):
        async with connection as current:
            cursor = current.cursor()
            await cursor.execute("SELECT 1")
            await cursor.executemany("SELECT %s::int", [(1,)])
            async with cursor.copy("COPY (SELECT 1) TO STDOUT") as copy:
                async for _ in copy:
                    pass
            async with current.transaction():
                pass
            async with current.pipeline():
                await current.execute("SELECT 2")
            async with current.cursor("numbers") as numbers:
                await numbers.execute("SELECT 3")
                await numbers.fetchall()
            await current.rollback()
            async for _ in cursor.stream("SELECT 4"):
                pass
            await current.commit()
    assert len(locked) > 12
    assert not [text for text, is_locked in locked if is_locked]


@sync_and_async
async def test_a_query_that_nobody_hears_of_is_told_nobody_later(case: AsyncCase) -> None:
    connection = await case.open()
    async with connection as conn:
        await conn.execute("SELECT 1")
        with listening() as heard:
            await conn.execute("SELECT 2")
        await conn.execute("SELECT 3")
    assert heard.texts == ["SELECT 2"]


@sync_and_async
async def test_a_pool_tells_who_borrows_and_gives_back(case: AsyncCase) -> None:
    if not case.is_pool:
        return
    connection = await case.open({"autocommit": True})
    with listening(connection_borrowed, connection_returned, query_executed) as heard:
        async with connection as conn:
            assert [type(event).__name__ for event in heard] == ["ConnectionEvent"]
            await conn.execute("SELECT pg_sleep(0.05)")
    borrowed, _, returned = heard
    assert borrowed.duration < 60
    assert 0.05 <= returned.duration < 60
    assert heard.senders == [connection] * 3
    assert {borrowed.call_site.file, returned.call_site.file} == {__file__}


@sync_and_async
async def test_a_pool_tells_of_each_connection_that_it_opens(case: AsyncCase) -> None:
    if not case.is_pool:
        return
    with listening(connection_opened) as heard:
        connection = await case.open(pool={"min_size": 1, "max_size": 2})
        async with connection, connection:
            pass
    assert len(heard) == 2
    assert heard.senders == [connection] * 2
    assert all(0 < event.duration < 60 for event in heard)
    assert {event.pool.partition(" (async)")[0] for event in heard} == {connection.config.target}


@sync_and_async
async def test_a_receiver_that_hears_of_an_opened_connection_may_query(case: AsyncCase) -> None:
    """Were it told within the opening, a sync one would wait for itself."""
    if not case.is_pool:
        return
    measured: list[Any] = []

    def receive(sender: Any, event: object) -> None:
        measured.append(sender.measure())
        if case.connection_type == "pool":
            with sender as conn:
                conn.execute("SELECT 1")

    with connection_opened.connected_to(receive):
        connection = await case.open(pool={"min_size": 1, "max_size": 2})
        async with connection, connection:
            pass
    assert len(measured) == 2
    assert all(one.max_size == 2 for one in measured)


@sync_and_async
async def test_a_pool_is_measured_without_being_opened(case: AsyncCase) -> None:
    if not case.is_pool:
        return
    connection = await case.open(pool={"min_size": 0, "max_size": 2, "timeout": 0.1})
    async with connection:
        assert connection.measure()[:4] == (0, 1, 0, 0)
        async with connection:
            with pytest.raises(PoolTimeout):
                async with connection:
                    pass
    assert connection.measure() == (2, 0, 0, 1, 0, 2)
    await connection.disconnect()
    assert connection.measure() == (0, 0, 0, 1, 0, 2)
    assert not connection.get_stats()


@sync_and_async
async def test_a_pool_tells_that_it_is_exhausted(case: AsyncCase) -> None:
    if not case.is_pool:
        return
    connection = await case.open(None, {"max_size": 1})
    with listening(pool_exhausted) as heard:
        async with connection:
            with pytest.raises(PoolTimeout) as raised:
                await connection.borrow(timeout=0.05)
    event = heard.only()
    assert event.message == str(raised.value)
    assert event.counters["pool_max"] == 1
    assert event.duration >= 0.05
    assert event.call_site.file == __file__
