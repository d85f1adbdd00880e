"""``@db.session_settings``: settings that begin and end with each transaction."""

# ruff: noqa: PT012 (a block that fails has more than one statement)

from __future__ import annotations

import asyncio
import enum
import io
import signal
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import date
from decimal import Decimal
from typing import Any

import psycopg
import pytest
from flask import Flask, g, has_request_context, request
from psycopg.pq import TransactionStatus
from werkzeug.local import LocalProxy

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.connections import borrowed_connections
from flask_pgmonkey.errors import ServerSilentError
from flask_pgmonkey.signals import query_executed, transaction_ended

from ..round_trips import count_round_trips
from ..servers import PrivateServer
from .conftest import MakeSite, Site

SHOW = "SELECT current_setting('app.user_id', true)"


class Kind(str, enum.Enum):
    BIG = "big"


class Level(enum.IntEnum):
    HIGH = 3


@pytest.fixture
def given() -> dict[str, Any]:
    """What the function of ``db`` gives; a test may change it."""
    return {"app.user_id": 7}


@pytest.fixture
def calls() -> list[object]:
    """An entry for each call of that function."""
    return []


@pytest.fixture
def db(site: Site, given: dict[str, Any], calls: list[object]) -> Iterator[PGMonkey[Any]]:
    """With settings, in an app context."""

    @site.db.session_settings
    def settings() -> dict[str, Any]:
        calls.append(None)
        return given

    with site.app.app_context():
        yield site.db


def test_every_way_to_query_has_them(db: PGMonkey, admin: psycopg.Connection[Any]) -> None:
    insert = "INSERT INTO items VALUES (%s + current_setting('app.user_id')::int)"
    assert db.fetch_one(SHOW) == ("7",)
    assert db.fetch_all(SHOW) == [("7",)]
    assert db.fetch_value(SHOW) == "7"
    assert db.fetch_exactly_one(SHOW, into=str) == "7"
    assert db.fetch_one_or_404(f"{SHOW}, %s", [1]) == ("7", 1)
    assert db.execute(insert, [0]) == 1
    assert db.execute_many(insert, [[1], [2]]) == 2
    assert admin.execute("SELECT array_agg(n) FROM items").fetchone() == ([7, 8, 9],)
    assert db.cursor().execute(SHOW).fetchone() == ("7",)
    assert db.cursor(binary=True).execute(SHOW, binary=True).fetchone() == ("7",)
    assert db.connection.execute(SHOW, prepare=True).fetchone() == ("7",)
    with db.connection as conn:
        assert conn.execute(SHOW).fetchone() == ("7",)
    with db.connection.transaction():
        assert db.fetch_value(SHOW) == "7"
    assert db.bind("default").fetch_value(SHOW) == "7"
    assert db.run_transaction(lambda tx: tx.fetch_value(SHOW)) == "7"
    with db.transaction("serializable", read_only=True) as tx:
        assert tx.fetch_value(SHOW) == "7"
        assert tx.fetch_value("SHOW transaction_isolation") == "serializable"
        with tx.transaction() as nested:
            assert nested.fetch_value(SHOW) == "7"
        assert list(db.stream(SHOW)) == [("7",)]
        assert next(tx.cursor().stream(SHOW)) == ("7",)
        with tx.cursor().copy(f"COPY ({SHOW}) TO STDOUT") as copy:
            assert next(copy.rows()) == ("7",)


def test_responses_of_any_size_and_uploads_have_them_in_a_transaction_of_their_own(
    db: PGMonkey, admin: psycopg.Connection[Any]
) -> None:
    shown = f"{SHOW} AS id"
    assert db.fetch_json(shown) == b'[{"id":"7"}]'
    assert b"".join(db.stream_json(shown).iter_encoded()) == b'[{"id":"7"}]\n'
    assert b"".join(db.csv_response(shown, filename="a.csv").iter_encoded()) == b"id\n7\n"
    admin.execute("CREATE TABLE notes (id int DEFAULT current_setting('app.user_id')::int, n int)")
    write = "INSERT INTO notes (n) VALUES (1) RETURNING id"
    assert b"".join(db.stream_json(write, lines=True).iter_encoded()) == b'{"id":7}\n'
    assert db.copy_from("notes", io.BytesIO(b"n\n2\n"), columns=["n"]) == 1
    assert admin.execute("SELECT id, n FROM notes ORDER BY n").fetchall() == [(7, 1), (7, 2)]
    with db.batch() as b:
        values = [b.fetch_value(SHOW), b.fetch_value(SHOW)]
    assert [value.result() for value in values] == ["7", "7"]
    db.release()
    assert borrowed_connections() == []


def test_what_a_response_without_rows_wrote_is_committed_too(
    db: PGMonkey, items: Callable[[], list[int]], admin: psycopg.Connection[Any]
) -> None:
    admin.execute(
        "CREATE FUNCTION keep(n int) RETURNS boolean LANGUAGE sql VOLATILE"
        " AS 'INSERT INTO items VALUES (n) RETURNING false'"
    )
    assert db.stream_json("SELECT 1 AS n WHERE keep(5)").get_json() == []
    assert db.csv_response("SELECT 1 AS n WHERE keep(6)", filename="a.csv").get_data() == b"n\n"
    assert items() == [5, 6]


def test_a_response_that_nobody_reads_to_its_end_leaves_nothing(
    db: PGMonkey, items: Callable[[], list[int]]
) -> None:
    write = "INSERT INTO items SELECT generate_series(1, 100000) RETURNING n"
    response = db.stream_json(write)
    next(iter(response.iter_encoded()))
    response.close()
    assert items() == []
    with pytest.raises(psycopg.errors.DivisionByZero):
        b"".join(
            db.stream_json(
                "SELECT 1 / (50000 - i) AS n FROM generate_series(1, 60000) i"
            ).iter_encoded()
        )
    assert borrowed_connections() == []
    assert db.connection.info.transaction_status == TransactionStatus.IDLE
    assert db.fetch_value(SHOW) == "7"


def test_plans_are_those_with_the_settings(
    db: PGMonkey, admin: psycopg.Connection[Any], given: dict[str, Any]
) -> None:
    admin.execute("INSERT INTO items SELECT generate_series(1, 10000)")
    admin.execute("ANALYZE items")
    assert "Index" in str(db.explain("SELECT FROM items WHERE n = 1"))
    given |= {"enable_indexscan": False, "enable_bitmapscan": False, "enable_indexonlyscan": "off"}
    for analyze in (True, False):
        assert "Seq Scan" in str(db.explain("SELECT FROM items WHERE n = 1", analyze=analyze))


def test_nothing_of_them_is_left_when_the_transaction_is_over(
    db: PGMonkey, given: dict[str, Any]
) -> None:
    given["statement_timeout"] = "777ms"
    assert db.fetch_value("SHOW statement_timeout") == "777ms"
    with suppress(psycopg.errors.DivisionByZero):
        db.execute("SELECT 1 / 0")
    with suppress(LookupError), db.transaction():
        raise LookupError
    given.clear()
    assert db.fetch_one(f"{SHOW}, current_setting('statement_timeout')") == ("", "0")
    db.release()
    with db.pool as conn:
        assert conn.execute(f"{SHOW}, current_setting('statement_timeout')").fetchone() == ("", "0")
        # Whoever borrows it without the app's queries has none.
        given["app.user_id"] = 8
        assert conn.execute(SHOW).fetchone() == ("",)
        assert type(conn.cursor()).__module__ == "flask_pgmonkey.connections.cursor"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("o'clock; DROP TABLE items --", "o'clock; DROP TABLE items --"),
        ("Grüße %s", "Grüße %s"),
        ("", ""),
        (7, "7"),
        (True, "true"),
        (False, "false"),
        (None, ""),
        (2.5, "2.5"),
        (Decimal("1.10"), "1.10"),
        (date(2026, 1, 2), "2026-01-02"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (Kind.BIG, "big"),
        (Level.HIGH, "3"),
        (LocalProxy(lambda: "ada"), "ada"),
        (LocalProxy(lambda: 7), "7"),
    ],
)
def test_values_arrive_as_texts(
    db: PGMonkey, given: dict[str, Any], value: object, shown: str
) -> None:
    given["app.user_id"] = value
    assert db.fetch_value(SHOW) == shown
    with db.transaction():
        assert db.fetch_value(SHOW) == shown


@pytest.mark.parametrize("value", [["s3cret"], {"a": "s3cret"}, b"s3cret", object(), "s3cret\0"])
def test_other_values_are_refused_without_being_shown(
    db: PGMonkey, given: dict[str, Any], value: object
) -> None:
    given["app.user_id"] = value
    with pytest.raises((TypeError, ValueError), match=r"value of 'app\.user_id'") as caught:
        db.execute("SELECT 1")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("name", ["app user", "", "1a", "a.", ".a", "a'b", "x;y", "a.b\n", 3, None])
def test_names_that_no_setting_has_are_refused(
    db: PGMonkey, given: dict[str, Any], name: Any
) -> None:
    given[name] = 1
    for begin in (lambda: db.execute("SELECT 1"), db.transaction().__enter__):
        with pytest.raises(ValueError, match=r"is no name of a setting.*'app\.user_id'"):
            begin()
    assert db.connection.info.transaction_status == TransactionStatus.IDLE


def test_what_the_server_refuses_is_its_error_and_nothing_is_queried(
    db: PGMonkey, given: dict[str, Any], items: Callable[[], list[int]]
) -> None:
    given["statement_timeout"] = "a while"
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="statement_timeout") as caught:
        db.execute("INSERT INTO items VALUES (1)")
    assert "session_settings" in str(caught.value)
    with pytest.raises(psycopg.errors.InvalidParameterValue), db.transaction():
        raise AssertionError
    given.clear()
    assert db.fetch_value("SELECT 1") == 1
    with db.transaction() as tx:
        assert tx.fetch_value("SELECT 1") == 1
    assert items() == []


@pytest.mark.parametrize("none", [None, {}])
def test_without_any_a_query_is_as_it_is_without_the_function(
    site: Site, none: Any, admin: psycopg.Connection[Any]
) -> None:
    db = site.db
    db.session_settings(lambda: none)
    with site.app.app_context():
        assert [n for (n,) in db.stream("SELECT 1; SELECT 2".partition(";")[0])] == [1]
        assert db.cursor().execute("SELECT 1; SELECT 2").fetchone() == (1,)
        with db.cursor().copy("COPY items FROM STDIN") as copy:
            copy.write_row([1])
        db.execute("BEGIN")
        db.execute("DELETE FROM items")
        db.execute("ROLLBACK")
        db.connection.autocommit = False
        db.execute("INSERT INTO items VALUES (2)")
        db.connection.commit()
        with count_round_trips(db.connection) as counted:
            assert db.fetch_value("SELECT count(*) FROM items") == 2
    assert counted.count == 2  # by its own BEGIN, without autocommit


def test_a_function_that_raises_keeps_everything_from_being_queried(
    site: Site, items: Callable[[], list[int]]
) -> None:
    db = site.db

    @db.session_settings
    def fail() -> None:
        raise LookupError("who is it?")

    insert = "INSERT INTO items VALUES (1)"
    with site.app.app_context():
        for query in (
            lambda: db.execute(insert),
            lambda: db.execute_many("INSERT INTO items VALUES (%s)", [[1]]),
            lambda: db.explain(insert, analyze=True),
            lambda: db.stream(f"{insert} RETURNING n"),
            lambda: db.run_transaction(lambda tx: tx.execute(insert)),
            lambda: db.cursor().execute(insert),
            lambda: db.cursor().executemany(insert, [[]]),
            lambda: next(db.cursor().stream(f"{insert} RETURNING n")),
            lambda: db.cursor().copy("COPY items FROM STDIN").__enter__(),
            lambda: asyncio.run(db.aio.execute(insert)),
            lambda: asyncio.run(db.aio.run_transaction(lambda tx: tx.execute(insert))),
        ):
            with pytest.raises(LookupError, match="who is it"):
                query()
            db.release()
    assert items() == []
    assert borrowed_connections() == []


def test_copy_and_streams_need_a_transaction_and_say_so(
    db: PGMonkey, items: Callable[[], list[int]]
) -> None:
    def named() -> None:
        with db.cursor("named") as cursor:
            cursor.execute("SELECT 1")

    for what, query in (
        ("a stream or a named cursor", lambda: db.stream("SELECT 1")),
        ("a stream or a named cursor", named),
        (r"stream\(\)", lambda: db.cursor().stream("SELECT 1")),
        ("COPY", lambda: db.cursor().copy("COPY items FROM STDIN")),
        ("COPY", lambda: db.execute(" -- all\n /* rows */ copy items TO STDOUT")),
        ("BEGIN", lambda: db.execute("begin")),
        ("START TRANSACTION", lambda: db.execute(";START  TRANSACTION READ ONLY")),
        (r"executemany\(\)", lambda: db.cursor().executemany("SELECT %s", [[1]])),
    ):
        refused = rf"^{what} outside of a transaction .*'with db\.transaction\(\):'"
        with pytest.raises(psycopg.ProgrammingError, match=refused):
            query()
        assert db.connection.info.transaction_status == TransactionStatus.IDLE
        db.release()
    with pytest.raises(psycopg.ProgrammingError, match="a pipeline outside"):
        with db.connection.pipeline():
            db.execute("SELECT 1")
    with pytest.raises(psycopg.ProgrammingError, match="a pipeline outside"):
        with db.connection.pipeline(), db.transaction():
            raise AssertionError
    db.connection.autocommit = False
    with pytest.raises(psycopg.ProgrammingError, match="a query without autocommit outside"):
        db.execute("SELECT 1")
    db.connection.autocommit = True
    # The remedy
    with db.transaction() as tx:
        assert [*db.stream("SELECT current_setting('app.user_id')")] == [("7",)]
        with tx.cursor().copy("COPY items FROM STDIN") as copy:
            copy.write_row([1])
    with db.transaction() as tx, tx.connection.pipeline():
        assert tx.fetch_value(SHOW) == "7"
    assert items() == [1]


def test_a_query_and_its_settings_take_one_round_trip(
    db: PGMonkey, admin: psycopg.Connection[Any], calls: list[object]
) -> None:
    conn = db.connection
    for n in range(8):  # beyond the fifth time, when psycopg prepares it
        with count_round_trips(conn) as counted:
            assert db.fetch_value(f"{SHOW} || %s", ["!"]) == "7!"
        assert counted.count == 1, n
    with count_round_trips(conn) as counted, db.transaction() as tx:
        tx.execute("INSERT INTO items VALUES (1)")
        tx.fetch_value("SELECT 1")
    assert counted.count == 4  # BEGIN with them, two queries, COMMIT
    calls.clear()
    db.fetch_value(SHOW)
    with db.transaction() as tx:
        tx.fetch_value(SHOW)
        with tx.transaction():
            tx.fetch_value(SHOW)
    assert len(calls) == 2, "once for each transaction"


def test_errors_are_those_of_the_query_as_it_is_alone(
    db: PGMonkey, admin: psycopg.Connection[Any], items: Callable[[], list[int]]
) -> None:
    admin.execute("ALTER TABLE items ADD UNIQUE (n) DEFERRABLE INITIALLY DEFERRED")
    admin.execute("ALTER TABLE items DROP CONSTRAINT items_pkey")
    db.execute("INSERT INTO items VALUES (1)")
    for _ in range(7):
        with pytest.raises(psycopg.errors.UniqueViolation):
            db.execute("INSERT INTO items VALUES (%s)", [1])  # at COMMIT
        with pytest.raises(psycopg.errors.DivisionByZero):
            db.execute("SELECT 1 / %s", [0])
        assert db.connection.info.transaction_status == TransactionStatus.IDLE
        assert db.fetch_value("SELECT 1 / %s", [1]) == 1
    with pytest.raises(psycopg.ProgrammingError, match="cannot adapt"):
        db.execute("SELECT %s", [object()])
    with pytest.raises(TypeError, match="write \\[value\\]"):
        db.execute("SELECT %s", 1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no rows"):
        db.fetch_all("SELECT 1", row_factory=int)  # type: ignore[arg-type]

    def fail(cursor: Any) -> Any:
        raise LookupError

    with pytest.raises(LookupError):
        db.fetch_all("SELECT 1", row_factory=fail)
    assert db.fetch_value("SELECT 1") == 1
    assert items() == [1]


def test_a_stale_plan_is_not_seen(db: PGMonkey, admin: psycopg.Connection[Any]) -> None:
    admin.execute("INSERT INTO items VALUES (1)")
    for _ in range(8):
        assert db.fetch_all("SELECT * FROM items WHERE n = %s", [1]) == [(1,)]
    admin.execute("ALTER TABLE items ADD COLUMN m int DEFAULT 2")
    assert db.fetch_all("SELECT * FROM items WHERE n = %s", [1]) == [(1, 2)]


def test_a_connection_that_died_is_replaced(db: PGMonkey, admin: psycopg.Connection[Any]) -> None:
    pid = db.fetch_value("SELECT pg_backend_pid()")
    admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    assert db.fetch_value(SHOW) == "7"
    admin.execute("SELECT pg_terminate_backend(%s, 5000)", [db.connection.info.backend_pid])
    with db.transaction() as tx:
        assert tx.fetch_value(SHOW) == "7"


def test_a_server_that_ends_the_connection_says_why(
    db: PGMonkey, admin: psycopg.Connection[Any], site: Site
) -> None:
    """In the moment between the look at the connection and the BEGIN."""
    for begin in WAYS_TO_BEGIN:
        pid = db.fetch_value("SELECT pg_backend_pid()")
        record: Any = db.connection.record  # type: ignore[attr-defined]
        find_settings = record.find_settings

        def end_and_find(pid: int = pid, find: Any = find_settings) -> Any:
            admin.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            return find()

        record.find_settings = end_and_find
        with pytest.raises(psycopg.errors.AdminShutdown):
            begin(db)
        assert db.fetch_value(SHOW) == "7"


def test_the_time_of_a_query_is_bounded(db: PGMonkey) -> None:
    with db.timeout(0.2), pytest.raises(psycopg.errors.QueryCanceled):
        db.execute("SELECT pg_sleep(60)")
    assert db.fetch_value(SHOW) == "7"
    assert db.connection.info.transaction_status == TransactionStatus.IDLE


def test_what_the_function_queries_has_none(site: Site) -> None:
    """So that it may ask the database who is logged in."""
    db = site.db
    seen: list[object] = []

    @db.session_settings
    def settings() -> dict[str, Any]:
        seen.append(db.fetch_value(SHOW))
        with db.transaction() as tx:
            return {"app.user_id": tx.fetch_value("SELECT 5")}

    def view() -> str:
        with db.transaction() as tx:
            assert tx.fetch_value(SHOW) == "5"
        return str(db.fetch_value(SHOW))

    assert site.visit(view).text == "5"
    assert set(seen) <= {None, ""}


def test_each_request_has_its_own(site: Site) -> None:
    db = site.db

    @db.session_settings
    def settings() -> dict[str, Any] | None:
        return {"app.user_id": request.args["user"]} if has_request_context() else None

    client = site.app.test_client()
    site._view = lambda: str(db.fetch_value(SHOW))
    assert [client.get(f"/?user={n}").text for n in range(5)] == ["0", "1", "2", "3", "4"]
    with site.app.app_context():
        assert db.fetch_value(SHOW) == ""


def test_one_function_is_registered_and_a_plain_one(db: PGMonkey) -> None:
    with pytest.raises(RuntimeError, match="already: give all settings in one mapping"):
        db.session_settings(dict)
    with pytest.raises(TypeError, match="a plain function"):

        @PGMonkey().session_settings  # type: ignore[type-var]
        async def settings() -> dict[str, Any]:
            return {}


@pytest.mark.parametrize("wrong", [[("app.user_id", 1)], "app.user_id", 5])
def test_what_is_no_mapping_is_refused(site: Site, wrong: Any) -> None:
    site.db.session_settings(lambda: wrong)
    with site.app.app_context(), pytest.raises(TypeError, match=f"type {type(wrong).__name__}"):
        site.db.execute("SELECT 1")


def test_cursors_of_ones_own_have_them_too(make_site: MakeSite) -> None:
    def configure(conn: Any) -> None:
        conn.cursor_factory = psycopg.ClientCursor

    site = make_site(PGMonkey(configure=configure))
    site.db.session_settings(lambda: {"app.user_id": "it's me"})
    with site.app.app_context():
        assert site.db.fetch_value(f"{SHOW} || %s", ["!"]) == "it's me!"
        assert "Result" in str(site.db.explain(SHOW))


def test_events_tell_of_the_query_and_not_of_the_settings(
    db: PGMonkey, site: Site, given: dict[str, Any]
) -> None:
    given["app.token"] = "s3cret"
    heard: list[Any] = []

    def hear(sender: Any, event: Any) -> None:
        heard.append(event)

    with query_executed.connected_to(hear), transaction_ended.connected_to(hear):
        db.fetch_value(f"{SHOW} || %s", ["!"])
        alone, heard[:] = heard[:], []
        with db.transaction() as tx:
            tx.fetch_value(SHOW)
    told = [(event.sql, event.rows) for event in alone if hasattr(event, "sql")]
    assert told == [(f"{SHOW} || %s", 1)]
    queries = [event.sql for event in heard if hasattr(event, "sql")]
    assert queries == ["BEGIN", SHOW, "COMMIT"]
    assert [event.committed for event in heard if hasattr(event, "committed")] == [True]
    assert "s3cret" not in repr(alone + heard)


def test_query_tags_go_along(make_site: MakeSite, admin: psycopg.Connection[Any]) -> None:
    db = PGMonkey()
    db.session_settings(lambda: {"app.user_id": 7})
    app = Flask("tagged")
    app.config["PGMONKEY_QUERY_TAGS"] = ("application",)
    app.config["PGMONKEY_CONFIG"] = {
        "connection_settings": {
            key: value for key, value in _settings_of(admin).items() if value is not None
        }
    }
    db.init_app(app)
    with app.app_context():
        query = "SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid()"
        assert "application='tagged'" in db.fetch_value(query)
        assert db.fetch_value(SHOW) == "7"
        db.clear_cache()


def _settings_of(conn: psycopg.Connection[Any]) -> dict[str, Any]:
    return {**conn.info.get_parameters(), "password": conn.info.password or None}


def test_a_batch_takes_them_along_in_its_round_trip(
    db: PGMonkey, admin: psycopg.Connection[Any], calls: list[object], given: dict[str, Any]
) -> None:
    for count in (1, 2, 3):
        calls.clear()
        with count_round_trips(db.connection) as counted:
            with db.batch() as b:
                shown = [b.fetch_value(SHOW) for _ in range(count)]
        assert [each.result() for each in shown] == ["7"] * count
        assert (counted.count, len(calls)) == (1, 1)
    with db.transaction() as tx:
        given["app.user_id"] = 8
        with tx.batch() as b:
            first, second = b.fetch_value(SHOW), b.fetch_value(SHOW)
        assert (first.result(), second.result()) == ("7", "7")
    with pytest.raises(psycopg.errors.DivisionByZero, match="query 2 of 2"):
        with db.batch() as b:
            b.execute("INSERT INTO items VALUES (1)")
            b.execute("SELECT 1 / 0")
    given["statement_timeout"] = "a while"
    with pytest.raises(psycopg.errors.InvalidParameterValue, match="session_settings"):
        with db.batch() as b:
            b.execute("INSERT INTO items VALUES (1)")
    del given["statement_timeout"]
    assert db.fetch_value("SELECT count(*) FROM items") == 0


def test_a_batch_of_aio_takes_them_along(db: PGMonkey) -> None:
    async def main() -> None:
        async with db.aio.batch() as b:
            first, second = b.fetch_value(SHOW), b.fetch_value(SHOW)
        assert (first.result(), second.result()) == ("7", "7")

    asyncio.run(main())


@pytest.fixture
def apart(private_server: PrivateServer) -> Iterator[PGMonkey[Any]]:
    """With settings, in an app context, on a server that may be paused."""
    app = Flask("apart")
    db = PGMonkey(app, config={"connection_settings": private_server.settings()})
    db.session_settings(lambda: {"app.user_id": 7})
    with app.app_context():
        yield db
        db.clear_cache()


WAYS_TO_BEGIN: list[Callable[[PGMonkey[Any]], object]] = [
    lambda db: db.execute("SELECT 1"),
    lambda db: db.run_transaction(lambda tx: tx.execute("SELECT 1")),
]


@pytest.mark.parametrize("begin", WAYS_TO_BEGIN)
def test_a_server_that_falls_silent_costs_no_more_than_the_connection(
    begin: Callable[[PGMonkey[Any]], object], apart: PGMonkey[Any], private_server: PrivateServer
) -> None:
    assert apart.fetch_value(SHOW) == "7"
    private_server.pause()
    try:
        with apart.timeout(0.3), pytest.raises(ServerSilentError):
            begin(apart)
    finally:
        private_server.resume()
    assert apart.fetch_value(SHOW) == "7"
    begin(apart)


@pytest.mark.parametrize("begin", WAYS_TO_BEGIN)
def test_an_interrupt_leaves_no_transaction_and_no_pipeline(
    begin: Callable[[PGMonkey[Any]], object], apart: PGMonkey[Any], private_server: PrivateServer
) -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    assert apart.fetch_value(SHOW) == "7"
    before = signal.signal(signal.SIGALRM, interrupt)
    private_server.pause()
    resuming = threading.Timer(0.5, private_server.resume)
    resuming.start()
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            begin(apart)
    finally:
        signal.signal(signal.SIGALRM, before)
        resuming.join()
    assert apart.connection.info.transaction_status == TransactionStatus.IDLE
    assert apart.fetch_value(SHOW) == "7"
    begin(apart)


# Async


def test_aio_takes_those_of_the_caller_along(
    db: PGMonkey, given: dict[str, Any], calls: list[object], items: Callable[[], list[int]]
) -> None:
    async def main() -> None:
        aio = db.aio
        assert await aio.fetch_value(SHOW) == "7"
        assert await aio.fetch_all(f"{SHOW} || %s", ["!"]) == [("7!",)]
        await aio.execute_many(
            "INSERT INTO items VALUES (%s + current_setting('app.user_id')::int)", [[1], [2]]
        )
        assert "Result" in str(await aio.explain(SHOW))
        calls.clear()
        async with aio.transaction() as tx:
            given["app.user_id"] = 8
            assert await tx.fetch_value(SHOW) == "7"
            async with tx.transaction() as nested:
                assert await nested.fetch_value(SHOW) == "7"
        assert len(calls) == 1
        assert await aio.fetch_value(SHOW) == "8"
        with pytest.raises(psycopg.errors.DivisionByZero):
            await aio.execute("SELECT 1 / 0")
        given["app user"] = 1
        with pytest.raises(ValueError, match="no name of a setting"):
            await aio.execute("SELECT 1")
        with pytest.raises(ValueError, match="no name of a setting"):
            async with aio.transaction():
                raise AssertionError
        given.clear()
        assert await aio.fetch_value(SHOW) == ""

    asyncio.run(main())
    assert items() == [8, 9]


def test_background_jobs_have_what_the_function_gives_there(site: Site) -> None:
    db = site.db

    @db.session_settings
    def settings() -> dict[str, Any] | None:
        return {"app.user_id": g.user_id} if "user_id" in g else None

    async def job(user_id: int | None) -> object:
        if user_id is not None:
            g.user_id = user_id
        async with db.aio.transaction() as tx:
            assert await tx.fetch_value(SHOW) == await db.aio.fetch_value(SHOW)
        return await db.aio.fetch_value(SHOW)

    def view() -> str:
        g.user_id = 1  # which no job sees
        return str([db.background.run(job(user_id)) or "" for user_id in (5, None)])

    assert site.visit(view).text == "['5', '']"


def test_async_copies_and_streams_need_a_transaction(db: PGMonkey) -> None:
    """Where a job asks for the connection itself."""

    async def main() -> None:
        async def refused(conn: Any) -> None:
            async with conn.cursor("named") as named:
                with pytest.raises(psycopg.ProgrammingError, match="outside of a transaction"):
                    await named.execute("SELECT 1")
            with pytest.raises(psycopg.ProgrammingError, match="outside of a transaction"):
                await conn.cursor().executemany("SELECT %s", [[1]])
            for call in (conn.cursor().stream, conn.cursor().copy):
                with pytest.raises(psycopg.ProgrammingError, match="outside of a transaction"):
                    call("SELECT 1")
            with count_round_trips(conn) as counted:
                await conn.execute(SHOW)
            assert counted.count == 1

        await db.aio._there._run(refused)

    db.background.run(main())
