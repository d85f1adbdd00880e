"""The ``normal`` type and its twin ``async``: one server connection, one block at a time."""

# ruff: noqa: PT012 (a block that fails has more than one statement)

from __future__ import annotations

import gc
import re
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack  # noqa: F401 (what the sync bodies use)
from pathlib import Path
from time import monotonic
from typing import Any
from weakref import ref

import psycopg
import pytest
from psycopg.transaction import OutOfOrderTransactionNesting
from psycopg_pool import PoolTimeout

from flask_pgmonkey.config import read_config
from flask_pgmonkey.connections import NormalConnection

from ..programs import run_program
from ..servers import PrivateServer
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
async def test_who_waits_for_one_that_cannot_connect_learns_why(
    fragile: AsyncCase, private_server: PrivateServer, proxy: Any
) -> None:
    gate = proxy(private_server.host, private_server.port)
    connection = await fragile.open({"port": gate.port}, {"timeout": 0.5})
    gate.refuse()
    gate.drop_all()
    await fragile.wait_for_sessions(0)

    async def enter(_: int) -> None:
        async with connection:
            pass

    for error in await fragile.together(enter, range(4)):
        assert isinstance(error, psycopg.OperationalError)
        assert not isinstance(error, PoolTimeout)
        assert "refused" in str(error)


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


@sync_and_async
async def test_who_waits_longest_is_next_even_if_the_holder_comes_again_at_once(
    case: AsyncCase,
) -> None:
    connection = await case.open(pool={"timeout": 20})
    served: list[int] = []
    waiting: list[Any] = []

    async def be_served(n: int) -> None:
        async with connection:
            served.append(n)

    line = connection._states.here().line
    deadline = monotonic() + 10
    async with connection:
        for n in range(5):
            waiting.append(case.start(be_served, n))
            while len(line) < n + 2:
                assert monotonic() < deadline
                await case.sleep(0.001)
    async with connection:
        assert served == [0, 1, 2, 3, 4]
    for one in waiting:
        assert await case.outcome(one) is None


@sync_and_async
async def test_who_gives_up_waiting_leaves_the_place_to_who_waits_behind(case: AsyncCase) -> None:
    connection = await case.open()

    async def enter(timeout: float) -> None:
        async with connection.connection(timeout):
            pass

    line = connection._states.here().line
    deadline = monotonic() + 10
    async with connection:
        impatient = case.start(enter, 0.2)
        while len(line) < 2:
            assert monotonic() < deadline
            await case.sleep(0.001)
        patient = case.start(enter, 20)
        assert isinstance(await case.outcome(impatient), PoolTimeout)
    assert await case.outcome(patient) is None


@sync_and_async
async def test_a_transaction_left_prepared_hinders_no_later_block(
    fragile: AsyncCase, private_server: PrivateServer
) -> None:
    with private_server.connect() as admin:
        admin.execute("ALTER SYSTEM SET max_prepared_transactions = 1")
    private_server.restart()
    connection = await fragile.open()
    with pytest.raises(psycopg.ProgrammingError, match="two-phase"):
        async with connection as conn:
            await conn.tpc_begin(conn.xid(1, "transfer", "debit"))
            await conn.tpc_prepare()
    async with connection as conn:
        assert await fragile.value(conn, "SELECT count(*) FROM pg_prepared_xacts") == 1
    await connection.disconnect()
    with psycopg.connect(**fragile.settings) as finishing:
        (xid,) = finishing.tpc_recover()
        finishing.tpc_rollback(xid)


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


# Blocks that end in another order, thread or task


@sync_and_async
async def test_a_block_that_ends_before_one_nested_in_it_takes_that_one_along(
    case: AsyncCase,
) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()

    async def write(note: str) -> AsyncIterator[None]:
        async with connection as conn:
            await conn.execute("INSERT INTO notes VALUES (%s)", [note])
            yield
            if note == "failing":
                raise ZeroDivisionError

    for note, error in (("failing", ZeroDivisionError), ("early", OutOfOrderTransactionNesting)):
        outer, inner = write(note), write("innocent")
        await outer.__anext__()
        await inner.__anext__()
        with pytest.raises(error):
            await outer.__anext__()
        with pytest.raises(OutOfOrderTransactionNesting):
            await inner.__anext__()
    assert case.rows(NOTES) == []
    async with connection as conn:
        await conn.execute("INSERT INTO notes VALUES ('next')")
    assert case.rows(NOTES) == [("next",)]


@sync_and_async
async def test_nested_blocks_that_end_out_of_order_take_the_outermost_along(
    case: AsyncCase,
) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()

    async def write(note: str) -> AsyncIterator[None]:
        async with connection as conn:
            await conn.execute("INSERT INTO notes VALUES (%s)", [note])
            yield

    with pytest.raises(OutOfOrderTransactionNesting):
        async with connection as conn:
            await conn.execute("INSERT INTO notes VALUES ('outermost')")
            outer, inner = write("outer"), write("inner")
            await outer.__anext__()
            await inner.__anext__()
            for one in (outer, inner):
                with pytest.raises(OutOfOrderTransactionNesting):
                    await one.__anext__()
    assert case.rows(NOTES) == []
    await connection.test_connection()


@sync_and_async
async def test_blocks_in_autocommit_may_end_in_any_order(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open({"autocommit": True})

    async def write(note: str) -> AsyncIterator[None]:
        async with connection as conn:
            yield
            await conn.execute("INSERT INTO notes VALUES (%s)", [note])

    outer, inner = write("outer"), write("inner")
    await outer.__anext__()
    await inner.__anext__()
    assert [one async for one in outer] == []
    assert [one async for one in inner] == []
    assert case.rows(NOTES) == [("inner",), ("outer",)]
    assert repr(connection).endswith("idle>")


@sync_and_async
async def test_a_block_is_a_with_statement_and_nothing_else(case: AsyncCase) -> None:
    connection = await case.open()
    async with AsyncExitStack() as stack:
        with pytest.raises(RuntimeError, match=r"use its connection\(\)"):
            await stack.enter_async_context(connection)
    with pytest.raises(RuntimeError, match=r"use its connection\(\)"):
        await connection.__aexit__(None, None, None)
    await connection.test_connection()


@sync_and_async
async def test_connection_may_be_entered_and_left_by_different_functions(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    manager = connection.connection()

    async def enter() -> Any:
        return await manager.__aenter__()

    async def leave() -> None:
        await manager.__aexit__(None, None, None)

    conn = await enter()
    await conn.execute("INSERT INTO notes VALUES ('kept')")
    await connection.rollback()  # of the current block, and there is none
    async with connection as nested:
        assert nested is conn
    await leave()
    assert case.rows(NOTES) == [("kept",)]


def test_a_thread_with_the_ident_of_one_that_ended_waits_for_its_block(config_file: Path) -> None:
    config_file.write_text(config_file.read_text() + "pool_settings: {timeout: 0.1}\n")
    normal = NormalConnection(read_config(config_file))
    idents: list[int] = []
    errors: list[Exception] = []

    def hold() -> Iterator[None]:
        with normal as conn:
            conn.execute("SELECT 1")
            yield

    def begin() -> None:
        idents.append(threading.get_ident())
        next(holding)

    def enter_as_the_other() -> None:
        idents.append(threading.get_ident())
        if idents[-1] == idents[0]:
            try:
                with normal:
                    pass
            except PoolTimeout as error:
                errors.append(error)

    holding = hold()
    deadline = monotonic() + 20
    work = begin
    while idents.count(idents[0] if idents else 0) < 2:
        assert monotonic() < deadline
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        work = enter_as_the_other
    assert len(errors) == 1
    assert list(holding) == []
    normal.test_connection()
    normal.disconnect()


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
async def test_a_stack_may_end_its_block_in_another_thread_or_task(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open(pool={"timeout": 1})
    stack = AsyncExitStack()

    async def begin() -> None:
        conn = await stack.enter_async_context(connection.connection())
        await conn.execute("INSERT INTO notes VALUES ('kept')")

    assert await case.outcome(case.start(begin)) is None
    await stack.aclose()
    assert case.rows(NOTES) == [("kept",)]
    async with connection as conn:
        assert await case.value(conn, "SELECT 1") == 1


def test_a_block_may_end_in_an_exit_handler(database: dict[str, Any]) -> None:
    run = run_program(
        """
        import atexit
        from flask_pgmonkey import PGConnectionManager

        manager = PGConnectionManager()
        connection = manager.get_database_connection_from_dict(config, "normal")
        block = connection.connection()
        block.__enter__().execute("CREATE TABLE kept ()")
        atexit.register(block.__exit__, None, None, None)
        """,
        {"connection_settings": database},
    )
    assert (run.returncode, run.stderr) == (0, "")
    with psycopg.connect(**database) as conn:
        assert conn.execute("SELECT FROM kept").fetchall() == []


@sync_and_async
async def test_a_block_through_a_retired_object_ends_what_the_successor_began(
    case: AsyncCase,
) -> None:
    case.run_on_server(TABLE)
    old, new = await case.open(), await case.open(pool={"timeout": 1})
    held, finished = case.event(), case.event()

    async def hold() -> None:
        async with old as conn:
            await conn.execute("INSERT INTO notes VALUES ('held')")
            held.set()
            await finished.wait()
            await conn.execute("INSERT INTO notes VALUES ('held to the end')")

    async def write() -> AsyncIterator[None]:
        async with old as conn:
            await conn.execute("INSERT INTO notes VALUES ('written')")
            yield

    async def begin() -> None:
        await writing.__anext__()

    holding = case.start(hold)
    await held.wait()
    await old.retire(new)
    writing = write()
    assert await case.outcome(case.start(begin)) is None
    try:
        # It ends in another thread or task than it began in.
        assert [one async for one in writing] == []
        assert case.rows(NOTES) == [("written",)]
        await new.test_connection()
    finally:
        finished.set()
    assert await case.outcome(holding) is None
    assert case.rows(NOTES) == [("held",), ("held to the end",), ("written",)]


@sync_and_async
async def test_waiting_for_a_successor_takes_what_is_left_of_the_timeout(case: AsyncCase) -> None:
    old, new = await case.open(pool={"timeout": 1}), await case.open(pool={"timeout": 9})
    held = [case.event(), case.event()]
    finished = case.event()

    async def hold(n: int) -> None:
        async with (old, new)[n]:
            held[n].set()
            await finished.wait()

    async def enter() -> None:
        async with old:
            pass

    holding = [case.start(hold, n) for n in range(2)]
    for event in held:
        await event.wait()
    with within(7):
        waiting = case.start(enter)
        await case.sleep(0.1)
        await old.retire(new)
        outcome = await case.outcome(waiting)
        finished.set()
        assert isinstance(outcome, PoolTimeout)
    for one in holding:
        assert await case.outcome(one) is None


@sync_and_async
async def test_the_first_of_many_successors_serves_and_keeps_only_the_last(case: AsyncCase) -> None:
    first = old = new = case.make()
    between = []
    for _ in range(sys.getrecursionlimit() + 100):
        new = case.make()
        case.forget(new)
        await old.retire(new)
        between.append(ref(new))
        old = new
    async with first as conn:
        assert await case.value(conn, "SELECT 1") == 1
    gc.collect()
    assert [one() for one in between if one() is not None] == [new]
    await first.connect()
    await case.wait_for_sessions(1)
    await new.disconnect()
    await case.wait_for_sessions(0)


@sync_and_async
async def test_a_nested_block_is_found_through_objects_retired_meanwhile(case: AsyncCase) -> None:
    first, second, third, fourth = [await case.open() for _ in range(4)]
    await first.retire(second)
    async with first as conn:
        await second.retire(third)
        await third.retire(fourth)
        async with first as nested:
            assert nested is conn
    async with first as conn, fourth as nested:
        assert nested is conn


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
