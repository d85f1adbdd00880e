"""``db.stream()``: rows that the server still holds, beyond the end of a request too."""

# ruff: noqa: PT012 (a block that fails has more than one statement)

from __future__ import annotations

import gc
import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from flask import Flask, Response, stream_with_context
from werkzeug.serving import make_server

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.connections import borrowed_connections

from .round_trips import count_round_trips

MANY = "SELECT n FROM generate_series(1, 100000) AS n"


@pytest.fixture
def app(database: dict[str, Any]) -> Iterator[Flask]:
    """An app whose pool has two connections at most."""
    app = Flask("tests")
    app.testing = True
    db = PGMonkey(app, config={"connection_settings": database, "pool_settings": {"max_size": 2}})
    yield app
    with app.app_context():
        db.clear_cache()


@pytest.fixture
def db(app: Flask) -> PGMonkey:
    db: PGMonkey = app.extensions["pgmonkey"]
    return db


def numbers(rows: Iterator[tuple[int]]) -> Iterator[str]:
    for (n,) in rows:
        yield f"{n}\n"


def test_it_gives_every_row_in_order(app: Flask, db: PGMonkey) -> None:
    with app.app_context():
        rows = db.stream(
            "SELECT n, n * 2 FROM generate_series(1, %s) AS n", (2500,), batch_size=1000
        )
        assert list(rows) == [(n, 2 * n) for n in range(1, 2501)]
        assert list(rows) == []


def test_an_error_of_the_query_is_raised_by_the_call(app: Flask, db: PGMonkey) -> None:
    with app.app_context():
        for query, error in {
            "SELECT * FROM nowhere": psycopg.errors.UndefinedTable,
            "SELEKT": psycopg.errors.SyntaxError,
            "CREATE TABLE t ()": psycopg.errors.SyntaxError,
        }.items():
            with pytest.raises(error):
                db.stream(query)
            assert borrowed_connections() == []
        with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
            db.stream(MANY, batch_size=0)
        assert borrowed_connections() == []
        assert db.fetch_value("SELECT 1") == 1


def test_an_error_at_a_later_row_comes_at_that_row(app: Flask, db: PGMonkey) -> None:
    with app.app_context():
        rows = db.stream("SELECT 1 / (3 - n) FROM generate_series(1, 5) AS n", batch_size=1)
        assert next(rows) == (0,)
        assert next(rows) == (1,)
        with pytest.raises(psycopg.errors.DivisionByZero):
            next(rows)
        assert borrowed_connections() == []
        assert list(rows) == []


@pytest.mark.parametrize(("batch_size", "fetches"), [(100, 11), (1000, 2), (5000, 1)])
def test_rows_are_fetched_a_batch_at_a_time(
    app: Flask, db: PGMonkey, batch_size: int, fetches: int
) -> None:
    with app.app_context():
        conn = db.connection
        db.release()  # so that the stream borrows it anew
        with count_round_trips(conn) as counted:
            rows = db.stream("SELECT generate_series(1, 1000)", batch_size=batch_size)
            assert len(list(rows)) == 1000
        begin_declare_describe_close_commit = 5
        assert fetches <= counted.count <= fetches + begin_declare_describe_close_commit


def test_it_takes_over_the_connection_and_the_next_query_borrows_anew(
    app: Flask, db: PGMonkey
) -> None:
    with app.app_context():
        pid = db.fetch_value("SELECT pg_backend_pid()")
        rows = db.stream("SELECT pg_backend_pid() FROM generate_series(1, 2)", batch_size=1)
        assert len(borrowed_connections()) == 1
        assert next(rows) == (pid,)
        assert db.fetch_value("SELECT pg_backend_pid()") != pid
        assert len(borrowed_connections()) == 2
        assert next(rows) == (pid,)
        assert list(rows) == []
        assert len(borrowed_connections()) == 1


def hold_connection(db: PGMonkey) -> psycopg.Connection[Any]:
    return db.connection


def hold_cursor(db: PGMonkey) -> psycopg.Connection[Any]:
    return db.cursor().execute("SELECT 1").connection


def hold_connection_of_transaction(db: PGMonkey) -> psycopg.Connection[Any]:
    with db.transaction() as tx:
        return tx.connection


def hold_cursor_of_transaction(db: PGMonkey) -> psycopg.Connection[Any]:
    with db.transaction() as tx:
        return tx.cursor().connection


@pytest.mark.parametrize(
    "hold",
    [
        hold_connection,
        hold_cursor,
        hold_connection_of_transaction,
        hold_cursor_of_transaction,
    ],
)
def test_it_does_not_take_over_what_was_handed_out(
    app: Flask, db: PGMonkey, hold: Callable[[PGMonkey], psycopg.Connection[Any]]
) -> None:
    with app.app_context():
        held = hold(db)
        rows = db.stream("SELECT pg_backend_pid() FROM generate_series(1, 2)", batch_size=1)
        (pid,) = next(rows)
        assert pid != held.info.backend_pid
        # What was held is the context's as before, in autocommit.
        assert db.connection is held
        assert held.execute("SELECT 1").fetchall() == [(1,)]
        assert held.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        assert list(rows) == [(pid,)]
        assert db.connection is held
        # What is borrowed next was given to nobody yet.
        db.release()
        pid = db.fetch_value("SELECT pg_backend_pid()")
        assert list(db.stream("SELECT pg_backend_pid()")) == [(pid,)]
    assert borrowed_connections() == []


def test_within_a_copy_or_a_pipeline_it_borrows_its_own(app: Flask, db: PGMonkey) -> None:
    with app.app_context():
        db.execute("CREATE TABLE t (n integer)")
        with db.cursor().copy("COPY t FROM STDIN") as copy:
            for row in db.stream("SELECT generate_series(1, 3)", batch_size=1):
                copy.write_row(row)
        assert db.fetch_value("SELECT sum(n) FROM t") == 6
        with db.connection.pipeline():
            first = db.cursor().execute("SELECT 1")
            assert list(db.stream("SELECT 2")) == [(2,)]
            assert first.fetchall() == [(1,)]
    assert borrowed_connections() == []


def test_what_the_query_writes_is_committed_at_the_end(app: Flask, db: PGMonkey) -> None:
    with app.app_context():
        db.execute("CREATE TABLE calls (n integer)")
        db.execute(
            "CREATE FUNCTION call(n integer) RETURNS integer LANGUAGE sql VOLATILE"
            " AS 'INSERT INTO calls VALUES (n) RETURNING n'"
        )
        assert list(db.stream("SELECT call(n) FROM generate_series(1, 3) AS n")) == [
            (1,),
            (2,),
            (3,),
        ]
        assert db.fetch_value("SELECT count(*) FROM calls") == 3


def finish(rows: Any) -> None:
    list(rows)


def close(rows: Any) -> None:
    next(rows)
    rows.close()
    rows.close()
    assert list(rows) == []


def leave_block(rows: Any) -> None:
    with pytest.raises(LookupError), rows:
        next(rows)
        raise LookupError


@pytest.mark.parametrize("end", [finish, close, leave_block])
def test_the_connection_goes_back_clean_at_the_end(
    app: Flask, db: PGMonkey, end: Callable[[Any], None]
) -> None:
    with app.app_context():
        pid = db.fetch_value("SELECT pg_backend_pid()")
        end(db.stream(MANY))
        assert borrowed_connections() == []
        assert db.fetch_value("SELECT pg_backend_pid()") == pid
        assert db.connection.autocommit


def test_the_connection_goes_back_when_the_stream_is_dropped(app: Flask, db: PGMonkey) -> None:
    with app.app_context():
        rows = db.stream(MANY)
        next(rows)
        assert len(borrowed_connections()) == 1
        del rows
        gc.collect()
        assert borrowed_connections() == []


def test_streams_of_one_request_run_side_by_side(app: Flask, db: PGMonkey) -> None:
    with app.app_context():
        one, two = db.stream(MANY), db.stream(MANY)
        pairs = list(itertools.islice(zip(one, two, strict=True), 2500))
        assert pairs == [((n,), (n,)) for n in range(1, 2501)]
        one.close()
        two.close()


def test_within_a_transaction_it_sees_what_the_transaction_did(app: Flask, db: PGMonkey) -> None:
    with app.app_context(), db.transaction() as tx:
        tx.execute("CREATE TABLE drafts AS SELECT generate_series(1, 10) AS n")
        rows = db.stream("SELECT n FROM drafts ORDER BY n", batch_size=2)
        assert next(rows) == (1,)
        assert tx.fetch_value("SELECT count(*) FROM drafts") == 10
        assert len(borrowed_connections()) == 1
        assert [n for (n,) in rows] == [*range(2, 11)]
        assert tx.fetch_value("SELECT count(*) FROM drafts") == 10


def test_a_stream_of_a_transaction_ends_with_it(app: Flask, db: PGMonkey) -> None:
    with app.app_context():
        with db.transaction():
            rows = db.stream(MANY, batch_size=10)
            next(rows)
        with pytest.raises(RuntimeError, match="transaction that this stream reads in is over"):
            list(rows)
        rows.close()
        assert db.fetch_value("SELECT 1") == 1


def test_a_server_that_goes_away_halfway_is_an_error_and_no_leak(
    app: Flask, db: PGMonkey, database: dict[str, Any]
) -> None:
    with app.app_context():
        pid = db.fetch_value("SELECT pg_backend_pid()")
        rows = db.stream(MANY, batch_size=10)
        next(rows)
        with psycopg.connect(**database, autocommit=True) as admin:
            admin.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))
        with pytest.raises(psycopg.OperationalError):
            list(rows)
        assert borrowed_connections() == []
        assert len(list(db.stream(MANY))) == 100_000


# Responses


def test_a_response_streams_after_the_request_has_ended(app: Flask, db: PGMonkey) -> None:
    @app.get("/")
    def view() -> Response:
        return Response(numbers(db.stream(MANY)))

    assert app.test_client().get("/").text.splitlines() == [str(n) for n in range(1, 100_001)]
    assert borrowed_connections() == []


def test_an_error_of_a_streamed_query_is_the_view_s(app: Flask, db: PGMonkey) -> None:
    @app.get("/")
    def view() -> Response | tuple[str, int]:
        try:
            return Response(numbers(db.stream("SELECT * FROM nowhere")))
        except psycopg.errors.UndefinedTable:
            return "no such report", 404

    assert app.test_client().get("/").status_code == 404


def test_a_generator_under_stream_with_context_borrows_anew_and_gives_back(
    app: Flask, db: PGMonkey
) -> None:
    @app.get("/<int:queries_in_view>")
    def view(queries_in_view: int) -> Response:
        if queries_in_view:
            db.fetch_value("SELECT 1")

        def rows() -> Iterator[str]:
            for n in range(3):
                yield str(db.fetch_value("SELECT %s::int", (n,)))
                assert len(borrowed_connections()) == 1
            yield from numbers(db.stream("SELECT 3"))

        return Response(stream_with_context(rows()))

    for queries_in_view in (0, 1):
        assert app.test_client().get(f"/{queries_in_view}").text == "0123\n"
        assert borrowed_connections() == []


def test_a_transaction_that_such_a_generator_leaves_open_is_rolled_back(
    app: Flask, db: PGMonkey
) -> None:
    with app.app_context():
        db.execute("CREATE TABLE items (n integer)")

    @app.get("/")
    def view() -> Response:
        def rows() -> Iterator[str]:
            db.execute("BEGIN")
            db.execute("INSERT INTO items VALUES (1)")
            yield "one"

        return Response(stream_with_context(rows()))

    assert app.test_client().get("/").text == "one"
    with app.app_context():
        assert db.fetch_value("SELECT count(*) FROM items") == 0


@pytest.mark.parametrize("queries_in_view", [True, False])
def test_a_plain_generator_gets_an_error_instead_of_a_connection(
    app: Flask, db: PGMonkey, queries_in_view: bool
) -> None:
    errors = []

    @app.get("/")
    def view() -> Response:
        if queries_in_view:
            db.fetch_value("SELECT 1")

        def rows() -> Iterator[str]:
            try:
                yield str(db.fetch_value("SELECT 1"))
            except RuntimeError as error:
                errors.append(str(error))

        return Response(rows())

    assert app.test_client().get("/").text == ""
    assert len(errors) == 1
    assert "app context" in errors[0]


@pytest.mark.parametrize("wrap", [stream_with_context, lambda rows: rows])
def test_a_client_that_goes_away_halfway_costs_no_connection(
    app: Flask, db: PGMonkey, wrap: Callable[[Iterator[str]], Iterator[str]]
) -> None:
    @app.get("/")
    def view() -> Response:
        return Response(wrap(numbers(db.stream("SELECT generate_series(1, 100000000)"))))

    with app.app_context():
        db.fetch_value("SELECT 1")
    server = make_server("127.0.0.1", 0, app, threaded=True)
    server.log = lambda *args: None  # type: ignore[method-assign]
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    try:
        for _ in range(4):  # more often than the pool has connections
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                client.sendall(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n")
                assert client.recv(1000).startswith(b"HTTP/1.")
        deadline = time.monotonic() + 10
        while borrowed_connections() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert borrowed_connections() == []
    finally:
        server.shutdown()
        server.server_close()
        serving.join()
    with app.app_context():
        assert db.fetch_value("SELECT 1") == 1
