"""What the four connection types promise alike."""

# ruff: noqa: PT012 (a block that fails has more than one statement)

from __future__ import annotations

import threading
import traceback
from collections.abc import AsyncGenerator, Iterator
from contextlib import (  # noqa: F401 (what the sync bodies use)
    AsyncExitStack,
    ExitStack,
    contextmanager,
    suppress,
)
from contextvars import ContextVar
from time import monotonic
from typing import Any

import psycopg
import psycopg.types.string
import pytest
from psycopg import IsolationLevel
from psycopg.rows import dict_row
from psycopg.transaction import OutOfOrderTransactionNesting

from flask_pgmonkey import PGConnectionManager
from flask_pgmonkey.config import CONNECTION_TYPES
from flask_pgmonkey.errors import ConfigError

from ..ports import reserve_port
from ..round_trips import count_round_trips
from ..servers import PrivateServer
from .every_type import AsyncCase, errors, sync_and_async, within

__all__ = ["CONNECTION_TYPES"]

TABLE = "CREATE TABLE notes (note text)"
of_a_request: ContextVar[str] = ContextVar("of_a_request")
NOTES = "SELECT note FROM notes ORDER BY note"


# Blocks


@sync_and_async
async def test_a_block_commits_at_its_end(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    async with connection as conn:
        await conn.execute("INSERT INTO notes VALUES ('kept')")
        assert case.rows(NOTES) == []
    assert case.rows(NOTES) == [("kept",)]


@sync_and_async
async def test_an_exception_rolls_the_block_back_and_goes_on(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    with pytest.raises(ZeroDivisionError):
        async with connection as conn:
            await conn.execute("INSERT INTO notes VALUES ('lost')")
            raise ZeroDivisionError
    async with connection as conn:
        await conn.execute("INSERT INTO notes VALUES ('kept')")
    assert case.rows(NOTES) == [("kept",)]


@sync_and_async
async def test_an_error_of_the_server_rolls_the_block_back(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with connection as conn:
            await conn.execute("INSERT INTO notes VALUES ('lost')")
            await conn.execute("SELECT 1/0")
    async with connection as conn:
        assert await case.value(conn, "SELECT count(*) FROM notes") == 0


@sync_and_async
async def test_an_error_at_the_commit_reaches_the_caller(case: AsyncCase) -> None:
    case.run_on_server("CREATE TABLE once (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
    connection = await case.open()
    with pytest.raises(psycopg.errors.UniqueViolation):
        async with connection as conn:
            await conn.execute("INSERT INTO once VALUES (1), (1)")
    async with connection as conn:
        assert await case.value(conn, "SELECT count(*) FROM once") == 0


@sync_and_async
async def test_commit_and_rollback_work_inside_a_block(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    async with connection as conn:
        await conn.execute("INSERT INTO notes VALUES ('first')")
        await conn.commit()
        await conn.execute("INSERT INTO notes VALUES ('second')")
        await conn.rollback()
        await conn.execute("INSERT INTO notes VALUES ('third')")
    assert case.rows(NOTES) == [("first",), ("third",)]


@sync_and_async
async def test_the_objects_commit_and_rollback_act_on_the_current_block(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    async with connection as conn:
        await conn.execute("INSERT INTO notes VALUES ('first')")
        await connection.commit()
        assert case.rows(NOTES) == [("first",)]
        await conn.execute("INSERT INTO notes VALUES ('second')")
        await connection.rollback()
    assert case.rows(NOTES) == [("first",)]


@sync_and_async
async def test_the_current_block_is_found_from_a_function_that_it_calls(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()

    async def note_and_commit() -> None:
        async with connection.cursor() as cursor:
            await cursor.execute("INSERT INTO notes VALUES ('noted')")
        await connection.commit()

    with pytest.raises(ZeroDivisionError):
        async with connection:
            await note_and_commit()
            raise ZeroDivisionError
    assert case.rows(NOTES) == [("noted",)]


@sync_and_async
async def test_commit_and_rollback_outside_a_block_do_nothing(case: AsyncCase) -> None:
    connection = await case.open()
    before = case.sessions()
    await connection.commit()
    await connection.rollback()
    assert case.sessions() == before


@sync_and_async
async def test_a_cursor_inside_a_block_is_on_its_connection(case: AsyncCase) -> None:
    connection = await case.open()
    async with connection as conn:
        own = await case.value(conn, "SELECT pg_backend_pid()")
        async with connection.cursor(row_factory=dict_row) as cursor:
            await cursor.execute("SELECT pg_backend_pid() AS pid")
            assert await cursor.fetchone() == {"pid": own}


@sync_and_async
async def test_a_cursor_outside_a_block_is_a_block(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute("INSERT INTO notes VALUES ('kept') RETURNING note")
        assert await cursor.fetchone() == {"note": "kept"}
    with pytest.raises(ZeroDivisionError):
        async with connection.cursor() as cursor:
            await cursor.execute("INSERT INTO notes VALUES ('lost')")
            raise ZeroDivisionError
    assert case.rows(NOTES) == [("kept",)]


@sync_and_async
async def test_a_transaction_inside_a_block_is_a_savepoint_of_it(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    async with connection as conn:
        await conn.execute("INSERT INTO notes VALUES ('outer')")
        with pytest.raises(ZeroDivisionError):
            async with connection.transaction() as same:
                assert same is conn
                await same.execute("INSERT INTO notes VALUES ('undone')")
                raise ZeroDivisionError
        assert case.rows(NOTES) == []
    assert case.rows(NOTES) == [("outer",)]


@sync_and_async
async def test_a_transaction_outside_a_block_is_a_block(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    async with connection.transaction() as conn:
        await conn.execute("INSERT INTO notes VALUES ('kept')")
    with pytest.raises(ZeroDivisionError):
        async with connection.transaction() as conn:
            await conn.execute("INSERT INTO notes VALUES ('lost')")
            raise ZeroDivisionError
    assert case.rows(NOTES) == [("kept",)]


@sync_and_async
async def test_autocommit_leaves_each_statement_to_itself(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open({"autocommit": True})
    with pytest.raises(ZeroDivisionError):
        async with connection as conn:
            assert conn.autocommit
            await conn.execute("INSERT INTO notes VALUES ('kept')")
            assert case.rows(NOTES) == [("kept",)]
            raise ZeroDivisionError
    assert case.rows(NOTES) == [("kept",)]


@sync_and_async
async def test_a_block_costs_the_round_trips_of_its_transaction(case: AsyncCase) -> None:
    connection = await case.open(pool={"max_size": 1})
    async with connection as conn:
        traced = conn
    with count_round_trips(traced) as round_trips:
        async with connection as conn:
            assert conn is traced
            await conn.execute("SELECT 1")
    assert round_trips.count == 3  # BEGIN, the query, COMMIT
    with count_round_trips(traced) as round_trips:
        async with connection as conn:
            assert conn is traced
    assert round_trips.count == 0


# Blocks that could not be committed


@sync_and_async
async def test_a_swallowed_error_is_an_error_at_the_end_of_the_block(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()

    async def swallow(conn: Any) -> None:
        await conn.execute("INSERT INTO notes VALUES ('lost')")
        with suppress(psycopg.errors.DivisionByZero):
            await conn.execute("SELECT 1/0")
        with suppress(psycopg.errors.InFailedSqlTransaction):
            await conn.execute("SELECT 1")

    async def plain() -> None:
        async with connection as conn:
            await swallow(conn)

    async def held() -> None:
        async with connection.connection() as conn:
            await swallow(conn)

    async def transaction() -> None:
        async with connection.transaction() as conn:
            await swallow(conn)

    async def of_psycopg() -> None:
        async with connection as conn, conn.transaction():
            await swallow(conn)

    async def savepoint() -> None:
        async with connection as conn, conn.transaction(), conn.transaction():
            await swallow(conn)

    async def commit() -> None:
        async with connection as conn:
            await swallow(conn)
            await conn.commit()

    for block in (plain, held, transaction, of_psycopg, savepoint, commit):
        with pytest.raises(psycopg.errors.InFailedSqlTransaction) as raised:
            await block()
        assert isinstance(raised.value.__cause__, psycopg.errors.DivisionByZero)
    assert case.rows(NOTES) == []
    async with connection as conn:
        await conn.execute("INSERT INTO notes VALUES ('kept')")
    assert case.rows(NOTES) == [("kept",)]


@sync_and_async
async def test_the_remedy_for_a_swallowed_error_helps(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    async with connection as conn:
        await conn.execute("INSERT INTO notes VALUES ('kept')")
        with suppress(psycopg.errors.DivisionByZero):
            async with conn.transaction():
                await conn.execute("SELECT 1/0")
    assert case.rows(NOTES) == [("kept",)]


@sync_and_async
async def test_rollback_ends_a_block_quietly(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    async with connection as conn:
        await conn.execute("INSERT INTO notes VALUES ('undone')")
        raise psycopg.Rollback
    async with connection.connection() as conn:
        await conn.execute("INSERT INTO notes VALUES ('undone')")
        raise psycopg.Rollback
    async with connection.transaction() as conn:
        await conn.execute("INSERT INTO notes VALUES ('undone')")
        raise psycopg.Rollback
    async with connection as conn, conn.transaction():
        case.terminate(conn.info.backend_pid)
        raise psycopg.Rollback
    assert case.rows(NOTES) == []
    await connection.test_connection()


@sync_and_async
async def test_a_connection_lost_in_a_nested_block_is_an_error_of_the_outer_one(
    case: AsyncCase,
) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    with pytest.raises(psycopg.OperationalError, match="nothing of it is committed"):
        async with connection as conn:
            async with conn.transaction():
                await conn.execute("INSERT INTO notes VALUES ('lost')")
                with suppress(ZeroDivisionError):
                    async with conn.transaction():
                        case.terminate(conn.info.backend_pid)
                        with suppress(psycopg.OperationalError):
                            await conn.execute("SELECT 1")
                        raise ZeroDivisionError
    assert case.rows(NOTES) == []
    await connection.test_connection()


@sync_and_async
async def test_blocks_that_generators_end_out_of_order_are_refused(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()

    async def write(conn: Any, note: str) -> AsyncGenerator[None, None]:
        async with conn.transaction():
            await conn.execute("INSERT INTO notes VALUES (%s)", [note])
            yield

    for is_begun in (False, True):
        for is_swallowed in (False, True):
            with pytest.raises(psycopg.errors.InFailedSqlTransaction) as raised:
                async with connection as conn:
                    if is_begun:
                        await conn.execute("INSERT INTO notes VALUES ('before')")
                    outer, inner = write(conn, "outer"), write(conn, "inner")
                    await outer.__anext__()
                    await inner.__anext__()
                    if is_swallowed:
                        await outer.aclose()
                    else:
                        with pytest.raises(OutOfOrderTransactionNesting, match="both are rolled"):
                            await outer.__anext__()
                    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                        await conn.execute("INSERT INTO notes VALUES ('lost')")
                    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                        async with conn.transaction():
                            await conn.execute("INSERT INTO notes VALUES ('lost')")
                    with pytest.raises(OutOfOrderTransactionNesting):
                        await inner.__anext__()
                    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
                        await conn.execute("INSERT INTO notes VALUES ('lost too')")
            assert isinstance(raised.value.__cause__, OutOfOrderTransactionNesting)
            async with connection as conn, conn.transaction():
                await conn.execute("SELECT 1")
    assert case.rows(NOTES) == []


@sync_and_async
async def test_in_autocommit_the_connection_is_usable_after_blocks_that_were_refused(
    case: AsyncCase,
) -> None:
    case.run_on_server(TABLE)
    connection = await case.open({"autocommit": True})

    async def write(conn: Any, note: str) -> AsyncGenerator[None, None]:
        async with conn.transaction():
            await conn.execute("INSERT INTO notes VALUES (%s)", [note])
            yield

    async with connection as conn:
        outer, inner = write(conn, "outer"), write(conn, "inner")
        await outer.__anext__()
        await inner.__anext__()
        with pytest.raises(OutOfOrderTransactionNesting):
            await outer.__anext__()
        with pytest.raises(psycopg.errors.InFailedSqlTransaction):
            await conn.execute("INSERT INTO notes VALUES ('lost')")
        await inner.aclose()
        await conn.execute("INSERT INTO notes VALUES ('kept')")
        async with conn.transaction(), conn.transaction():
            await conn.execute("INSERT INTO notes VALUES ('kept')")
    assert case.rows(NOTES) == [("kept",), ("kept",)]


@sync_and_async
async def test_the_cause_is_what_made_this_transaction_fail(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    with pytest.raises(psycopg.errors.InFailedSqlTransaction) as raised:
        async with connection as conn:
            with suppress(psycopg.errors.DivisionByZero):
                await conn.execute("SELECT 1/0")
            await conn.rollback()
            with suppress(psycopg.errors.UndefinedTable):
                async with conn.cursor().copy("COPY nowhere FROM STDIN"):
                    pass
    assert isinstance(raised.value.__cause__, psycopg.errors.UndefinedTable)
    with pytest.raises(psycopg.errors.InFailedSqlTransaction) as raised:
        async with connection as conn:
            with suppress(psycopg.errors.UndefinedTable):
                await conn.execute("SELECT %s FROM nowhere", [1], prepare=True)
            with pytest.raises(psycopg.errors.InFailedSqlTransaction) as later:
                await conn.execute("SELECT 1")
            assert isinstance(later.value.__cause__, psycopg.errors.UndefinedTable)
    assert isinstance(raised.value.__cause__, psycopg.errors.UndefinedTable)
    with pytest.raises(psycopg.OperationalError, match="nothing of it is committed") as lost:
        async with connection as conn, conn.transaction():
            case.terminate(conn.info.backend_pid)
            with suppress(psycopg.OperationalError):
                await conn.execute("SELECT 1")
    assert isinstance(lost.value.__cause__, psycopg.OperationalError)


@sync_and_async
async def test_a_failed_transaction_cannot_be_prepared_for_a_second_phase(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    with pytest.raises(psycopg.errors.InFailedSqlTransaction) as raised:
        async with connection as conn:
            await conn.tpc_begin("one")
            with suppress(psycopg.errors.DivisionByZero):
                await conn.execute("SELECT 1/0")
            await conn.tpc_prepare()
    assert isinstance(raised.value.__cause__, psycopg.errors.DivisionByZero)
    await connection.test_connection()


@sync_and_async
async def test_a_body_that_closes_its_connection_in_a_transaction_is_an_error(
    case: AsyncCase,
) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    with pytest.raises(psycopg.OperationalError, match="closed"):
        async with connection as conn:
            await conn.execute("INSERT INTO notes VALUES ('lost')")
            await conn.close()
    async with connection as conn:
        await conn.execute("INSERT INTO notes VALUES ('kept')")
        await conn.commit()
        await conn.close()
    assert case.rows(NOTES) == [("kept",)]


@sync_and_async
async def test_interleaved_blocks_of_the_psycopg_connection_end_each_its_own(
    case: AsyncCase,
) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()

    async def write(conn: Any, note: str) -> AsyncGenerator[None, None]:
        async with conn:
            await conn.execute("INSERT INTO notes VALUES (%s)", [note])
            yield

    with pytest.raises(psycopg.errors.InFailedSqlTransaction):
        async with connection as conn:
            outer, inner = write(conn, "outer"), write(conn, "inner")
            await outer.__anext__()
            await inner.__anext__()
            with pytest.raises(OutOfOrderTransactionNesting):
                await outer.__anext__()
            await inner.aclose()
    async with connection as conn, AsyncExitStack() as stack:
        await stack.enter_async_context(conn)
        async with conn:
            await conn.execute("INSERT INTO notes VALUES ('kept')")
    assert case.rows(NOTES) == [("kept",)]


# What a connection comes with


@sync_and_async
async def test_server_settings_are_applied_to_every_new_connection(case: AsyncCase) -> None:
    connection = await case.open(
        server={"work_mem": "7MB", "application_name": "it's, 100% \\ mine", "statement_timeout": 0}
    )
    for _ in range(2):
        async with connection as conn:
            assert await case.value(conn, "SHOW work_mem") == "7MB"
            assert await case.value(conn, "SHOW application_name") == "it's, 100% \\ mine"
            # They belong to the session: a rollback does not undo them.
            await conn.rollback()
            assert await case.value(conn, "SHOW work_mem") == "7MB"
        case.terminate()


@sync_and_async
async def test_server_settings_cost_one_round_trip(case: AsyncCase) -> None:
    config = case.config(server={"work_mem": "7MB", "lock_timeout": "3s", "jit": "off"})
    connection = await case.open({"autocommit": True})
    async with connection as conn:
        with count_round_trips(conn) as round_trips:
            await conn._apply(config, config.sync_settings)
        assert round_trips.count == 1
        assert await case.value(conn, "SHOW lock_timeout") == "3s"


@sync_and_async
async def test_a_setting_that_the_server_refuses_is_named(case: AsyncCase) -> None:
    with pytest.raises(ConfigError, match=rf"{case.settings_section}\.work_mem.*invalid value"):
        await case.open(server={"jit": "off", "work_mem": "a lot"})
    with pytest.raises(ConfigError, match=rf"{case.settings_section}\.no_such_thing.*unrecognized"):
        await case.open(server={"no_such_thing": "1"})
    await case.wait_for_sessions(0)


@sync_and_async
async def test_a_connection_that_dies_while_settings_are_applied_is_no_refused_setting(
    case: AsyncCase,
) -> None:
    connection = case.make(server={"default_text_search_config": "pg_catalog.simple"})
    waiting = "SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND"
    waiting += " datname = current_database() AND wait_event_type = 'Lock'"
    with case.admin() as admin, admin.transaction():
        admin.execute("LOCK TABLE pg_ts_config IN ACCESS EXCLUSIVE MODE")
        opening = case.start(connection.connect)
        deadline = monotonic() + 10
        while not (pids := case.rows(waiting)):
            assert monotonic() < deadline
            await case.sleep(0.01)
        case.terminate(pids[0][0])
        error = await case.outcome(opening)
    assert isinstance(error, psycopg.OperationalError)
    assert "terminating connection" in str(error)
    await connection.connect()


@sync_and_async
async def test_a_refused_setting_does_not_show_what_a_reference_stands_for(
    case: AsyncCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORK_MEM", "hunter2")
    config = {
        "connection_settings": case.settings,
        case.settings_section: {"work_mem": "${WORK_MEM}"},
    }
    get = PGConnectionManager().get_database_connection_from_dict
    with pytest.raises(ConfigError, match=r"work_mem.*InvalidParameterValue") as refused:
        await get(config, case.connection_type, resolve_env=True)
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))
    assert refused.value.__context__ is None


@sync_and_async
async def test_configure_runs_on_every_new_connection_and_once(case: AsyncCase) -> None:
    configured: list[Any] = []
    connection = await case.open(pool={"max_size": 1}, configure=configured.append)
    for _ in range(3):
        async with connection as conn:
            assert configured == [conn]
    case.terminate()
    async with connection as conn:
        assert configured[1:] == [conn]


@sync_and_async
async def test_configure_sees_no_context_of_whoever_needs_the_connection(case: AsyncCase) -> None:
    def configure(conn: Any) -> Any:
        seen.append(of_a_request.get(None))
        return case.sleep(0)

    seen: list[Any] = []
    reset_token = of_a_request.set("a request")
    connection = await case.open(pool={"min_size": 2}, configure=configure)
    async with connection as conn:
        await conn.execute("SET work_mem = '9MB'")  # so that configure runs again
    of_a_request.reset(reset_token)
    await case.wait_for_sessions(2 if case.is_pool else 1)
    assert seen == [None] * len(seen)


@sync_and_async
async def test_a_configure_that_fails_fails_the_opening(case: AsyncCase) -> None:
    def fail(conn: Any) -> None:
        raise ZeroDivisionError("configure")

    with pytest.raises(ZeroDivisionError, match="configure"):
        await case.open(configure=fail)
    await case.wait_for_sessions(0)


@sync_and_async
async def test_a_configure_must_leave_no_transaction_open(case: AsyncCase) -> None:
    def leave_open(conn: Any) -> None:
        conn.pgconn.exec_(b"BEGIN")

    with pytest.raises(psycopg.ProgrammingError, match=r"leave_open.*INTRANS"):
        await case.open(configure=leave_open)
    await case.wait_for_sessions(0)


@sync_and_async
async def test_rows_are_made_by_the_row_factory_of_the_object(case: AsyncCase) -> None:
    connection = await case.open(row_factory=dict_row)
    async with connection as conn:
        assert await (await conn.execute("SELECT 1 AS n")).fetchone() == {"n": 1}


@sync_and_async
async def test_a_release_puts_back_what_the_borrower_changed(case: AsyncCase) -> None:
    settings = {"prepare_threshold": 7, "prepared_max": 9}
    connection = await case.open(settings, {"max_size": 1})
    async with connection as conn:
        first = conn
        before = _attributes(conn)
        assert conn.prepare_threshold == 7
        assert conn.prepared_max == 9
        await conn.set_autocommit(True)
        await conn.set_isolation_level(IsolationLevel.SERIALIZABLE)
        await conn.set_read_only(True)
        await conn.set_deferrable(True)
        conn.row_factory = dict_row
        conn.cursor_factory = type("Cursor", (conn.cursor_factory,), {})
        conn.server_cursor_factory = type("Cursor", (conn.server_cursor_factory,), {})
        conn.prepare_threshold = None
        conn.prepared_max = None
        assert all(new != old for new, old in zip(_attributes(conn), before, strict=True))
    async with connection as conn:
        assert conn is first
        assert _attributes(conn) == before


def _attributes(conn: Any) -> tuple[Any, ...]:
    return (
        conn.autocommit, conn.isolation_level, conn.read_only, conn.deferrable, conn.row_factory,
        conn.cursor_factory, conn.server_cursor_factory, conn.prepare_threshold,
        conn.prepared_max,
    )  # fmt: skip


# What a block leaves on its session


CLIENT_CURSORS = {
    **dict.fromkeys(("normal", "pool"), psycopg.ClientCursor),
    **dict.fromkeys(("async", "async_pool"), psycopg.AsyncClientCursor),
}

LEAVE_THINGS_BEHIND = """
    SET work_mem = '9MB';
    SET ROLE pg_monitor;
    SELECT pg_advisory_lock(7);
    LISTEN channel;
    CREATE TEMP TABLE leftover (n int);
    DECLARE leftover CURSOR WITH HOLD FOR SELECT 1;
    PREPARE leftover AS SELECT 1;
    SET application_name = 'somebody else'
"""
THINGS_LEFT = """
    SELECT current_setting('work_mem'), current_user = session_user,
        (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()),
        (SELECT count(*) FROM pg_listening_channels()), to_regclass('pg_temp.leftover')::text,
        (SELECT count(*) FROM pg_cursors WHERE name = 'leftover'),
        (SELECT count(*) FROM pg_prepared_statements WHERE name = 'leftover'),
        current_setting('application_name')
"""


@pytest.mark.parametrize("setting", ["auto", True])
@sync_and_async
async def test_what_a_block_leaves_on_the_session_ends_with_it_in_one_round_trip(
    case: AsyncCase, setting: Any
) -> None:
    connection = await case.open(
        {"autocommit": True},
        {"max_size": 1, "reset_on_return": setting},
        {"work_mem": "7MB", "application_name": "ours"},
    )
    async with AsyncExitStack() as stack:
        async with connection as conn:
            for statement in LEAVE_THINGS_BEHIND.split(";"):
                await conn.execute(statement)
            round_trips = stack.enter_context(count_round_trips(conn))
    assert round_trips.count == 1
    async with connection as same:
        assert same is conn
        left = await (await same.execute(THINGS_LEFT)).fetchone()
        assert left == ("7MB", True, 0, 0, None, 0, 0, "ours")


@sync_and_async
async def test_a_block_that_leaves_nothing_costs_no_reset(case: AsyncCase) -> None:
    connection = await case.open({"autocommit": True}, {"max_size": 1})
    async with AsyncExitStack() as stack:
        async with connection as conn:
            await conn.execute("SELECT set_config('work_mem', '9MB', true)")
            round_trips = stack.enter_context(count_round_trips(conn))
    assert round_trips.count == 0


@sync_and_async
async def test_without_reset_on_return_the_session_stays_as_it_was_left(case: AsyncCase) -> None:
    connection = await case.open({"autocommit": True}, {"max_size": 1, "reset_on_return": False})
    async with AsyncExitStack() as stack:
        async with connection as conn:
            await conn.execute("SET work_mem = '9MB'")
            round_trips = stack.enter_context(count_round_trips(conn))
    assert round_trips.count == 0
    async with connection as same:
        assert await case.value(same, "SHOW work_mem") == "9MB"


@sync_and_async
async def test_a_reset_is_seen_to_be_needed_whichever_way_a_statement_takes(
    case: AsyncCase,
) -> None:
    connection = await case.open({"autocommit": True}, {"max_size": 1})
    setting = "SELECT set_config('work_mem', %s, false)"

    async def execute(conn: Any) -> None:
        await conn.execute(setting, ["9MB"])

    async def execute_many(conn: Any) -> None:
        await conn.cursor().executemany(setting, [["8MB"], ["9MB"]])

    async def pipeline(conn: Any) -> None:
        async with conn.pipeline():
            await conn.execute(setting, ["9MB"])

    async def stream(conn: Any) -> None:
        async for _ in conn.cursor().stream(setting, ["9MB"]):
            pass

    async def server_cursor(conn: Any) -> None:
        async with conn.transaction(), conn.cursor("named") as cursor:
            await cursor.execute(setting, ["9MB"])
            await cursor.fetchall()

    async def copy(conn: Any) -> None:
        statement = "COPY (SELECT set_config('work_mem', '9MB', false)) TO STDOUT"
        async with conn.cursor().copy(statement) as copying:
            assert [line async for line in copying]

    async def other_cursors(conn: Any) -> None:
        conn.cursor_factory = CLIENT_CURSORS[case.connection_type]
        await conn.execute(setting, ["9MB"])

    for leave in (execute, execute_many, pipeline, stream, server_cursor, copy, other_cursors):
        async with connection as conn:
            await leave(conn)
            assert await case.value(conn, "SHOW work_mem") == "9MB", leave
        async with connection as same:
            assert same is conn
            assert await case.value(same, "SHOW work_mem") == "4MB", leave


@sync_and_async
async def test_a_reset_leaves_the_session_as_configure_left_it(case: AsyncCase) -> None:
    def configure(conn: Any) -> Any:
        conn.adapters.register_loader("text", psycopg.types.string.TextBinaryLoader)
        conn.add_notice_handler(heard.append)
        return case.run_all(conn, LEAVE_THINGS_BEHIND.split(";"))

    heard: list[Any] = []
    connection = await case.open({"autocommit": True}, {"max_size": 1}, configure=configure)
    for _ in range(2):
        async with connection as conn:
            left = await (await conn.execute(THINGS_LEFT)).fetchone()
            assert left == ("9MB", False, 1, 1, "leftover", 1, 1, "somebody else")
            await conn.execute("DO $$ BEGIN RAISE NOTICE 'a word'; END $$")
            await conn.execute("RESET ROLE")
            for statement in (
                "DISCARD TEMP", "RESET ALL", "UNLISTEN *", "CLOSE ALL", "DEALLOCATE leftover",
                "SELECT pg_advisory_unlock_all()", "SET search_path = nowhere",
            ):  # fmt: skip
                await conn.execute(statement)
    assert len(heard) == 2
    assert len(case.sessions()) == 1


@sync_and_async
async def test_a_configure_that_fails_after_a_reset_costs_only_the_connection(
    case: AsyncCase, caplog: pytest.LogCaptureFixture
) -> None:
    def configure(conn: Any) -> None:
        if is_failing:
            raise ZeroDivisionError("in configure")

    is_failing = False
    connection = await case.open({"autocommit": True}, {"max_size": 1}, configure=configure)
    async with connection as first:
        await first.execute("SET work_mem = '9MB'")
        is_failing = True
    is_failing = False
    assert first.closed
    assert "in configure" in caplog.text
    async with connection as another:
        assert await case.value(another, "SHOW work_mem") == "4MB"


@sync_and_async
async def test_a_reset_leaves_what_psycopg_has_prepared(case: AsyncCase) -> None:
    connection = await case.open({"autocommit": True}, {"max_size": 1})
    async with connection as conn:
        await conn.execute("SELECT 1", prepare=True)
        await conn.execute("SET work_mem = '9MB'")
    counting = "SELECT count(*) FROM pg_prepared_statements WHERE name LIKE '_pg3_%'"
    async with connection as conn:
        assert await case.value(conn, counting) == 1
        await conn.execute("PREPARE own AS SELECT 1")
    async with connection as conn:
        assert await case.value(conn, counting) == 0
        with count_round_trips(conn) as round_trips:
            await conn.execute("SELECT 1", prepare=True)
        assert round_trips.count == 2


@sync_and_async
async def test_nobody_hears_what_another_listened_for(case: AsyncCase) -> None:
    connection = await case.open({"autocommit": True}, {"max_size": 1})
    async with connection as conn:
        await conn.execute("LISTEN channel")
        case.run_on_server("NOTIFY channel, 'received by the next query'")
        await conn.execute("SELECT 1")
        case.run_on_server("NOTIFY channel, 'received by nobody'")
    async with connection as same:
        assert same is conn
        assert [one async for one in same.notifies(timeout=0)] == []


@pytest.mark.parametrize("setting", ["auto", False])
@sync_and_async
async def test_what_is_registered_on_a_connection_ends_with_the_block(
    case: AsyncCase, setting: Any
) -> None:
    class Reversed(psycopg.adapt.Loader):
        def load(self, data: Any) -> Any:
            return bytes(data).decode()[::-1]

    class ShoutingDumper(psycopg.types.string.StrDumper):
        def dump(self, obj: str) -> bytes:
            return obj.upper().encode()

    def configure(conn: Any) -> None:
        conn.adapters.register_loader("varchar", Reversed)
        conn.add_notice_handler(of_configure.append)

    heard: list[Any] = []
    of_configure: list[Any] = []
    connection = await case.open(
        {"autocommit": True}, {"max_size": 1, "reset_on_return": setting}, configure=configure
    )
    async with AsyncExitStack() as stack:
        async with connection as conn:
            conn.add_notice_handler(heard.append)
            conn.add_notify_handler(heard.append)
            conn.adapters.register_loader("text", Reversed)
            conn.adapters.register_dumper(str, ShoutingDumper)
            conn.adapters.types.add(psycopg.types.TypeInfo("own", 7, 8))
            assert await case.value(conn, "SELECT 'abc'::text || %s", "d") == "Dcba"
            round_trips = stack.enter_context(count_round_trips(conn))
    assert round_trips.count == 0
    async with connection as same:
        assert same is conn
        assert await case.value(same, "SELECT 'abc'::text || %s", "d") == "abcd"
        assert await case.value(same, "SELECT 'abc'::varchar") == "cba"
        assert same.adapters.types.get("own") is None
        await same.execute("DO $$ BEGIN RAISE NOTICE 'a word'; END $$")
        await same.execute("LISTEN channel")
        await same.execute("NOTIFY channel")
        assert [one.channel async for one in same.notifies(timeout=0)] == ["channel"]
    assert heard == []
    assert len(of_configure) == 1


# Opening, closing, looking at it


@sync_and_async
async def test_an_object_knows_its_connection_type(case: AsyncCase) -> None:
    assert case.make().connection_type == case.connection_type


@sync_and_async
async def test_connect_opens_once(case: AsyncCase) -> None:
    connection = case.make()

    async def connect(_: int) -> None:
        await connection.connect()

    assert await case.together(connect, range(16)) == [None] * 16
    await connection.connect()
    await case.wait_for_sessions(1)


@sync_and_async
async def test_a_block_opens_an_object_that_was_never_connected(case: AsyncCase) -> None:
    connection = case.make()
    async with connection as conn:
        assert await case.value(conn, "SELECT 1") == 1


@sync_and_async
async def test_disconnect_closes_and_the_next_block_opens_again(case: AsyncCase) -> None:
    connection = await case.open()
    for _ in range(2):
        async with connection as conn:
            assert await case.value(conn, "SELECT 1") == 1
        await connection.disconnect()
        await connection.disconnect()
        await case.wait_for_sessions(0)


@sync_and_async
async def test_a_disconnect_that_races_an_opening_leaves_something_that_can_be_closed(
    case: AsyncCase,
) -> None:
    connection = case.make(pool={"max_size": 2, "timeout": 20})

    async def use(_: int) -> None:
        async with connection as conn:
            assert await case.value(conn, "SELECT 1") == 1

    async def close(_: int) -> None:
        await connection.disconnect()

    for _ in range(20):
        outcomes = await case.together(lambda n: (use, close)[n % 2](n), range(8))
        assert outcomes == [None] * 8
    await connection.disconnect()
    await case.wait_for_sessions(0)


@sync_and_async
async def test_disconnect_inside_a_block_closes_at_its_end(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    async with connection as conn:
        await connection.disconnect()
        await conn.execute("INSERT INTO notes VALUES ('kept')")
    assert case.rows(NOTES) == [("kept",)]
    await case.wait_for_sessions(0)
    async with connection as conn:
        assert await case.value(conn, "SELECT 1") == 1


@sync_and_async
async def test_repr_shows_server_database_and_state(case: AsyncCase) -> None:
    connection = case.make()
    server = f"{case.settings['user']}@{case.settings['host']}:{case.settings['port']}"
    target = f"{server}/{case.settings['dbname']}"
    name = type(connection).__name__
    assert repr(connection) == f"<{name} {target} closed>"
    await connection.connect()
    idle = f"<{name} {target} {'open, 0 of at most 10 borrowed' if case.is_pool else 'idle'}>"
    assert repr(connection) == idle
    async with connection:
        borrowed = "open, 1 of at most 10 borrowed"
        assert repr(connection) == f"<{name} {target} {borrowed if case.is_pool else 'in use'}>"
    assert repr(connection) == idle
    await connection.disconnect()
    assert repr(connection) == f"<{name} {target} closed>"


@sync_and_async
async def test_test_connection_queries(case: AsyncCase) -> None:
    connection = await case.open(pool={"min_size": 2, "max_size": 3})
    await connection.test_connection()
    case.terminate()
    await connection.test_connection()
    # A pool borrows one more than it keeps.
    await case.wait_for_sessions(3 if case.is_pool else 1)


# Connections that die


@sync_and_async
async def test_a_terminated_connection_is_replaced_at_the_next_block(case: AsyncCase) -> None:
    connection = await case.open()
    for _ in range(3):
        async with connection as conn:
            assert await case.value(conn, "SELECT 1") == 1
        case.terminate()


@sync_and_async
async def test_a_connection_that_dies_in_a_block_fails_that_block_only(case: AsyncCase) -> None:
    connection = await case.open()
    with pytest.raises(psycopg.OperationalError, match="terminating connection"):
        async with connection as conn:
            case.terminate()
            await conn.execute("SELECT 1")
    async with connection as conn:
        assert await case.value(conn, "SELECT 1") == 1


@sync_and_async
async def test_work_that_a_dead_connection_took_along_is_no_success(case: AsyncCase) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    with pytest.raises(psycopg.OperationalError):
        async with connection as conn:
            await conn.execute("INSERT INTO notes VALUES ('lost')")
            case.terminate()
    assert case.rows(NOTES) == []


@sync_and_async
async def test_a_borrower_may_close_the_psycopg_connection(case: AsyncCase) -> None:
    connection = await case.open()
    async with connection as conn:
        await conn.close()
    async with connection as conn:
        assert await case.value(conn, "SELECT 1") == 1


# Servers that take no more writes


@contextmanager
def demoted(server: PrivateServer) -> Iterator[None]:
    """Have the server refuse what existing sessions write, as one that is no primary any more; new
    sessions stand for those on its successor."""
    with server.connect() as admin:
        admin.execute("ALTER ROLE app SET default_transaction_read_only = off")
        admin.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        admin.execute("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        with server.connect() as admin:
            admin.execute("SET default_transaction_read_only = off")
            admin.execute("ALTER SYSTEM RESET default_transaction_read_only")
            admin.execute("ALTER ROLE app RESET default_transaction_read_only")
            admin.execute("SELECT pg_reload_conf()")


@sync_and_async
async def test_a_demoted_server_costs_one_error(
    fragile: AsyncCase, private_server: PrivateServer
) -> None:
    connection = await fragile.open(
        {"target_session_attrs": "read-write"}, {"min_size": 4, "max_size": 4}
    )

    async def write() -> None:
        async with connection as conn:
            await conn.execute("CREATE TABLE IF NOT EXISTS written (n int)")

    if fragile.is_pool:
        await fragile.idle_backends(connection, 4)
    before = fragile.sessions()
    with demoted(private_server):
        # Let each of them notice.
        await fragile.sleep(0.3)
        async with AsyncExitStack() as stack:
            held = None
            if fragile.is_pool:
                held = await stack.enter_async_context(connection.connection())
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                await write()
            for _ in range(3 if fragile.is_pool else 1):
                await write()
        if held is not None:
            await fragile.wait_for_sessions(4)
            assert held.closed
        assert not fragile.sessions() & before
        await write()
    with private_server.connect("app") as admin:
        admin.execute("DROP TABLE written")


@sync_and_async
async def test_a_server_that_is_read_only_is_kept_where_no_other_was_demanded(
    fragile: AsyncCase, private_server: PrivateServer
) -> None:
    connection = await fragile.open(pool={"max_size": 1})
    with demoted(private_server):
        await fragile.sleep(0.3)
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            async with connection as first:
                await first.execute("CREATE TABLE refused (n int)")
        async with connection as same:
            assert same is first


@sync_and_async
async def test_a_transaction_that_was_to_be_read_only_says_nothing_about_the_server(
    case: AsyncCase,
) -> None:
    connection = await case.open({"target_session_attrs": "primary"}, {"max_size": 1})

    async def set_attribute(conn: Any) -> None:
        await conn.set_read_only(True)

    async def set_transaction(conn: Any) -> None:
        await conn.execute("SET TRANSACTION READ ONLY")

    async def set_session(conn: Any) -> None:
        await conn.execute("SET default_transaction_read_only = on")
        await conn.commit()

    first = None
    for ask_for_it in (set_attribute, set_transaction, set_session):
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            async with connection as conn:
                first = first or conn
                assert conn is first
                await ask_for_it(conn)
                await conn.execute("CREATE TABLE refused (n int)")
    async with connection as same:
        assert same is first


# Servers that cannot be reached


@sync_and_async
async def test_a_wrong_password_is_the_servers_error_until_it_is_right(
    fragile: AsyncCase, private_server: PrivateServer
) -> None:
    connection = fragile.make({"password": "mended"})
    for _ in range(2):
        with within(1), pytest.raises(psycopg.OperationalError, match="password authentication"):
            await connection.connect()
    with within(1), pytest.raises(psycopg.OperationalError, match="password authentication"):
        async with connection:
            pass
    private_server.set_password("app", "mended")
    await connection.test_connection()


@sync_and_async
async def test_an_unknown_database_is_the_servers_error_until_it_exists(
    fragile: AsyncCase, private_server: PrivateServer
) -> None:
    connection = fragile.make({"dbname": "later"})
    for _ in range(2):
        with within(1), pytest.raises(psycopg.OperationalError, match='"later" does not exist'):
            await connection.connect()
    with private_server.connect() as admin:
        admin.execute("CREATE DATABASE later OWNER app")
    await connection.test_connection()
    await connection.disconnect()
    with private_server.connect() as admin:
        admin.execute("DROP DATABASE later WITH (FORCE)")


@sync_and_async
async def test_a_refused_port_is_an_error_at_once_until_it_accepts(
    fragile: AsyncCase, private_server: PrivateServer, proxy: Any
) -> None:
    gate = proxy(private_server.host, private_server.port)
    connection = fragile.make({"port": gate.port})
    gate.refuse()
    for _ in range(2):
        with within(1), pytest.raises(psycopg.OperationalError, match="refused"):
            await connection.connect()
    gate.accept()
    await connection.test_connection()
    await connection.disconnect()


@sync_and_async
async def test_an_unresolvable_host_is_an_error_at_once(fragile: AsyncCase) -> None:
    connection = fragile.make({"host": "nowhere.invalid"})
    with within(1), pytest.raises(psycopg.OperationalError, match=r"nowhere\.invalid"):
        await connection.connect()


@sync_and_async
async def test_a_deaf_server_is_one_error_for_all_who_race_until_it_hears(
    fragile: AsyncCase, private_server: PrivateServer, proxy: Any
) -> None:
    gate = proxy(private_server.host, private_server.port)
    connection = fragile.make({"port": gate.port, "connect_timeout": 2})
    gate.deaf()

    async def connect(_: int) -> None:
        await connection.connect()

    with within(3):
        outcomes = await fragile.together(connect, range(32))
    assert gate.count == 1
    assert len({id(one) for one in outcomes}) == 32
    for error in outcomes:
        assert isinstance(error, psycopg.OperationalError)
        assert "timeout" in str(error)
    gate.resume()
    await connection.test_connection()
    await connection.disconnect()


@sync_and_async
async def test_a_server_that_restarts_is_waited_for_at_the_next_block(
    fragile: AsyncCase, private_server: PrivateServer
) -> None:
    connection = await fragile.open(pool={"timeout": 20})
    private_server.stop()
    starting = threading.Thread(target=private_server.start)
    starting.start()
    async with connection as conn:
        assert await fragile.value(conn, "SELECT 1") == 1
    starting.join()


@sync_and_async
async def test_a_server_that_is_about_to_start_is_waited_for_at_the_first_block(
    fragile: AsyncCase, private_server: PrivateServer
) -> None:
    connection = fragile.make(pool={"timeout": 20})

    async def enter(n: int) -> Any:
        async with connection as conn:
            return await fragile.value(conn, "SELECT %s::int", n)

    private_server.stop()
    starting = threading.Timer(1, private_server.start)
    starting.start()
    assert await fragile.together(enter, range(20)) == [*range(20)]
    starting.join()


@sync_and_async
async def test_an_outage_that_one_waited_out_holds_up_nobody_else(
    fragile: AsyncCase, private_server: PrivateServer, proxy: Any
) -> None:
    gate = proxy(private_server.host, private_server.port)
    connection = fragile.make({"port": gate.port}, {"timeout": 2})
    gate.refuse()
    with within(5), pytest.raises(psycopg.OperationalError, match="refused"):
        async with connection:
            pass
    with within(1.5), pytest.raises(psycopg.OperationalError, match="refused"):
        async with connection:
            pass
    gate.accept()
    async with connection.connection(timeout=20) as conn:
        assert await fragile.value(conn, "SELECT 1") == 1
    await connection.disconnect()


@sync_and_async
async def test_an_idle_connection_to_a_silent_server_is_given_up(
    fragile: AsyncCase, private_server: PrivateServer, proxy: Any
) -> None:
    gate = proxy(private_server.host, private_server.port)
    connection = await fragile.open(
        {"port": gate.port, "connect_timeout": 2}, {"max_size": 1, "timeout": 1}
    )
    async with connection as conn:
        idle = conn
    idle.record.released_at = monotonic() - 1.1
    gate.stall()
    # Half a second for the ping, then one attempt to connect.
    with within(4), pytest.raises(psycopg.OperationalError):
        async with connection:
            pass
    assert idle.closed
    gate.resume()
    async with connection.connection(timeout=20) as conn:
        assert await fragile.value(conn, "SELECT 1") == 1
    await connection.disconnect()


# Secrets


@sync_and_async
async def test_a_password_shows_in_no_log_error_or_repr(
    fragile: AsyncCase,
    private_server: PrivateServer,
    proxy: Any,
    caplog: pytest.LogCaptureFixture,
) -> None:
    planted = "plant3d-s3cret"
    caplog.set_level("DEBUG")
    gate = proxy(private_server.host, private_server.port)
    free_port = reserve_port()
    seen: list[str] = []
    for settings, server in (
        ({}, {}),
        ({"dbname": "nowhere"}, {}),
        ({"port": free_port}, {}),
        ({"host": "nowhere.invalid"}, {}),
        ({"user": "nobody"}, {}),
        ({"sslmode": "require"}, {}),
        ({"port": gate.port}, {"work_mem": "a lot"}),
    ):
        if server:
            private_server.set_password("app", planted)
        connection = fragile.make({**settings, "password": planted}, server=server)
        try:
            await connection.connect()
        except Exception as error:
            seen += [str(error), repr(error), repr(error.__cause__), repr(error.args)]
        seen.append(repr(connection))
    connection = await fragile.open({"password": planted}, {"leak_threshold": 0.1, "max_size": 1})
    async with connection as conn:
        seen += [repr(connection), repr(conn), repr(conn.record.opener), repr(connection.config)]
        await fragile.sleep(0.3)
        private_server.set_password("app", "another")
        fragile.settings["password"] = "another"
        fragile.terminate()
    outcomes = [None]
    with pytest.raises(psycopg.OperationalError, match="password authentication") as caught:
        async with connection:
            outcomes.clear()
    seen += [str(caught.value), repr(caught.value), *map(str, errors(outcomes))]
    await connection.disconnect()
    shown = "\n".join([*seen, caplog.text, *(repr(record.args) for record in caplog.records)])
    assert "password authentication failed" in shown
    assert planted not in shown


# A COPY that nobody ends


@sync_and_async
async def test_a_copy_that_nobody_ends_leaves_the_connection_usable(case: AsyncCase) -> None:
    case.run_on_server(TABLE + "; CREATE TABLE many AS SELECT generate_series(1, 2000000) AS n")
    connection = await case.open({"autocommit": True})
    async with connection as conn:
        for statement in (
            "COPY notes TO STDOUT",
            "COPY many TO STDOUT",
            "COPY notes FROM STDIN",
            "SELECT 1; COPY many TO STDOUT; COPY notes FROM STDIN; SELECT 2",
        ):
            with within(5), pytest.raises(psycopg.ProgrammingError, match="use copy"):
                await conn.execute(statement)
            assert await (await conn.execute("SELECT 3")).fetchone() == (3,)
            with within(5), pytest.raises(psycopg.Error):
                async for _ in conn.cursor().stream(statement):
                    pass
            assert await (await conn.execute("SELECT 3")).fetchone() == (3,)
        with within(5):
            async with conn.cursor().copy("COPY many TO STDOUT") as copy:
                async for _ in copy:
                    break
        await conn.execute("INSERT INTO notes VALUES ('after a break')")
        with within(5), suppress(ZeroDivisionError):
            async with conn.cursor().copy("COPY many TO STDOUT") as copy:
                raise ZeroDivisionError
        with suppress(ZeroDivisionError):
            async with conn.cursor().copy("COPY notes FROM STDIN") as copy:
                await copy.write_row(["lost"])
                raise ZeroDivisionError
        await conn.execute("INSERT INTO notes VALUES ('after an error')")
        assert not conn.closed
    assert case.rows(NOTES) == [("after a break",), ("after an error",)]


@sync_and_async
async def test_a_copy_that_nobody_ends_fails_its_transaction_with_itself_as_the_cause(
    case: AsyncCase,
) -> None:
    case.run_on_server(TABLE)
    connection = await case.open()
    with pytest.raises(psycopg.errors.InFailedSqlTransaction) as raised:
        async with connection as conn:
            with suppress(psycopg.ProgrammingError):
                await conn.execute("COPY notes FROM STDIN")
    assert isinstance(raised.value.__cause__, psycopg.ProgrammingError)
    async with connection as conn:
        with suppress(psycopg.ProgrammingError):
            async with conn.transaction():
                await conn.execute("COPY notes FROM STDIN")
        await conn.execute("INSERT INTO notes VALUES ('kept')")
    assert case.rows(NOTES) == [("kept",)]
