"""Which query an error was of, as its notes say, for every type."""

from __future__ import annotations

import pickle
import traceback
from typing import Any

import pytest
from psycopg import errors

from flask_pgmonkey.config import CONNECTION_TYPES as ALL_TYPES
from flask_pgmonkey.connections.connect_errors import notes_of
from flask_pgmonkey.errors import QueryTimeoutError

from .every_type import AsyncCase, sync_and_async

CONNECTION_TYPES = ALL_TYPES

HERE = f"Called at {'/'.join(__file__.split('/')[-3:])}:"


def query_of(error: BaseException) -> str:
    """The query that the notes of *error* name, which have the call site too."""
    query, site = notes_of(error)
    assert site.startswith(HERE)
    return query.removeprefix("Query: ")


@sync_and_async
async def test_an_error_says_which_query_and_where_but_no_parameter(case: AsyncCase) -> None:
    connection = await case.open({"autocommit": True})
    async with connection as conn:
        with pytest.raises(errors.InvalidTextRepresentation) as raised:
            await conn.execute("SELECT %s::int", ("a parameter",))
    error = raised.value
    assert query_of(error) == "SELECT %s::int"
    assert "test_an_error_says_which_query" in notes_of(error)[1]
    assert "Query: SELECT %s::int\nCalled at" in "".join(traceback.format_exception(error))
    assert "Query" not in str(error)
    copied = pickle.loads(pickle.dumps(error))  # noqa: S301
    assert notes_of(copied) == notes_of(error)
    assert (str(copied), copied.sqlstate) == (str(error), error.sqlstate)


@sync_and_async
async def test_every_way_to_run_a_query_notes_it(case: AsyncCase) -> None:
    raised: Any
    connection = await case.open()
    failing = "SELECT 1 / (2 - generate_series(1, 3))"
    async with connection.connection() as conn:
        cursor = conn.cursor()
        with pytest.raises(errors.DivisionByZero) as raised:
            await cursor.executemany("SELECT 1 / %s", [(1,), (0,)])
        assert query_of(raised.value) == "SELECT 1 / %s"
        await conn.rollback()
        with pytest.raises(errors.DivisionByZero) as raised:
            async for _ in cursor.stream(failing):
                pass
        assert query_of(raised.value) == failing
        await conn.rollback()
        with pytest.raises(errors.DivisionByZero) as raised:  # noqa: PT012
            async with cursor.copy(f"COPY ({failing}) TO STDOUT") as copy:
                async for _ in copy:
                    pass
        assert query_of(raised.value) == f"COPY ({failing}) TO STDOUT"
        await conn.rollback()
        with pytest.raises(errors.UndefinedTable) as raised:
            async with cursor.copy("COPY nowhere FROM STDIN"):
                pass
        assert query_of(raised.value) == "COPY nowhere FROM STDIN"
        await conn.rollback()
        async with conn.cursor("named") as named:
            with pytest.raises(errors.UndefinedTable) as raised:
                await named.execute("SELECT 1 FROM nowhere")
            assert query_of(raised.value) == "SELECT 1 FROM nowhere"
            await conn.rollback()
            named.itersize = 1
            await named.execute(failing)
            with pytest.raises(errors.DivisionByZero) as raised:
                async for _ in named:
                    pass
            assert query_of(raised.value).endswith(failing)
            await conn.rollback()
        with pytest.raises(errors.DivisionByZero) as raised:  # noqa: PT012
            async with conn.pipeline():
                await conn.execute("SELECT 1")
                await conn.execute("SELECT 1/0")
                await conn.execute("SELECT 2")
        assert query_of(raised.value) == "SELECT 1/0"
        await conn.rollback()


@sync_and_async
async def test_a_commit_that_fails_says_so(case: AsyncCase) -> None:
    case.run_on_server("CREATE TABLE items (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    connection = await case.open()
    async with connection.connection() as conn:
        await conn.execute("INSERT INTO items VALUES (1), (1)")
        with pytest.raises(errors.UniqueViolation) as raised:
            await conn.commit()
        assert query_of(raised.value) == "COMMIT"
        with pytest.raises(errors.UniqueViolation) as raised:
            async with conn.transaction():
                await conn.execute("INSERT INTO items VALUES (1), (1)")
        assert query_of(raised.value) == "COMMIT"


@sync_and_async
async def test_the_end_of_a_failed_transaction_names_the_query_that_failed(
    case: AsyncCase,
) -> None:
    connection = await case.open({"autocommit": True})
    async with connection as conn:
        with pytest.raises(errors.InFailedSqlTransaction) as raised:  # noqa: PT012
            async with conn.transaction():
                with pytest.raises(errors.DivisionByZero):
                    await conn.execute("SELECT 1/0")
    cause: Any = raised.value.__cause__
    assert query_of(cause) == "SELECT 1/0"


@sync_and_async
async def test_a_query_that_ran_too_long_is_named(case: AsyncCase) -> None:
    connection = await case.open({"autocommit": True}, {"query_timeout": 0.1})
    async with connection as conn:
        with pytest.raises(QueryTimeoutError) as raised:
            await conn.execute("SELECT pg_sleep(60)")
    assert query_of(raised.value) == "SELECT pg_sleep(60)"


@sync_and_async
async def test_a_note_holds_nothing_that_drives_a_terminal_and_no_end(case: AsyncCase) -> None:
    connection = await case.open({"autocommit": True})
    async with connection as conn:
        with pytest.raises(errors.SyntaxError) as raised:
            await conn.execute("SELEC\x1b[31mT\nERROR forged " + "x" * 3000)
    note = notes_of(raised.value)[0]
    assert note.startswith("Query: \n    SELEC\\x1b[31mT\n    ERROR forged xxx")
    assert note.endswith("x… (3025 characters in all)")
    assert len(note) < 2100


@sync_and_async
async def test_the_error_of_another_query_keeps_its_own_note(case: AsyncCase) -> None:
    connection = await case.open({"autocommit": True})
    other = await case.open({"autocommit": True})
    async with connection as conn, other as elsewhere:
        with pytest.raises(errors.DivisionByZero) as raised:  # noqa: PT012
            async with conn.cursor().copy("COPY (SELECT 1) TO STDOUT") as copy:
                async for _ in copy:
                    pass
                await elsewhere.execute("SELECT 1/0")
    assert query_of(raised.value) == "SELECT 1/0"
