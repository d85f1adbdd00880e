"""``fetch_json()``: rows as JSON that PostgreSQL makes, the same from everything that queries."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, cast

import psycopg
import pytest
from flask import Flask
from psycopg import sql
from psycopg.rows import dict_row

from flask_pgmonkey import AsyncDatabase, Database, PGMonkey
from flask_pgmonkey.connections.connect_errors import notes_of
from flask_pgmonkey.signals import query_executed

from .round_trips import count_round_trips

FetchJSON = Callable[..., bytes]

HAS_NOTES = sys.version_info >= (3, 11)


@pytest.fixture
def app(database: dict[str, Any]) -> Iterator[Flask]:
    app = Flask("tests")
    config = {"connection_settings": database}
    app.config["PGMONKEY_BINDS"] = {"other": config}
    db = PGMonkey(app, config=config, row_factory=dict_row)
    with app.app_context():
        yield app
        db.clear_cache()
        asyncio.run(db.aio.disconnect())


@pytest.fixture
def db(app: Flask) -> PGMonkey[dict[str, Any]]:
    return cast("PGMonkey[dict[str, Any]]", app.extensions["pgmonkey"])


@pytest.fixture
def plain(database: dict[str, Any]) -> Iterator[Database[tuple[Any, ...]]]:
    """A database without an app."""
    plain = Database({"connection_settings": database})
    yield plain
    plain.close()


@pytest.fixture(params=["db", "bind", "tx", "aio", "aio.tx", "Database", "AsyncDatabase"])
def fetch_json(
    request: pytest.FixtureRequest,
    db: PGMonkey[dict[str, Any]],
    plain: Database[tuple[Any, ...]],
    database: dict[str, Any],
) -> FetchJSON:
    """The method of each object that queries, called as sync code calls it."""

    def in_transaction(*args: Any) -> bytes:
        with db.transaction() as tx:
            return tx.fetch_json(*args)

    async def in_aio_transaction(*args: Any) -> bytes:
        async with db.aio.transaction() as tx:
            return await tx.fetch_json(*args)

    async def of_async_database(*args: Any) -> bytes:
        there = AsyncDatabase({"connection_settings": database})
        try:
            return await there.fetch_json(*args)
        finally:
            await there.disconnect()

    ways: dict[str, FetchJSON] = {
        "db": db.fetch_json,
        "bind": db.bind("other").fetch_json,
        "tx": in_transaction,
        "aio": lambda *args: asyncio.run(db.aio.fetch_json(*args)),
        "aio.tx": lambda *args: asyncio.run(in_aio_transaction(*args)),
        "Database": plain.fetch_json,
        "AsyncDatabase": lambda *args: asyncio.run(of_async_database(*args)),
    }
    return ways[request.param]


def test_rows_are_objects_in_their_order(fetch_json: FetchJSON) -> None:
    query = "SELECT n, 'row ' || n AS name FROM generate_series(1, %s) AS n ORDER BY n DESC"
    made = fetch_json(query, [3])
    assert isinstance(made, bytes)
    assert json.loads(made) == [{"n": n, "name": f"row {n}"} for n in (3, 2, 1)]


def test_no_rows_are_an_empty_array(fetch_json: FetchJSON) -> None:
    assert fetch_json("SELECT 1 AS n WHERE false") == b"[]"


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1 AS q",
        "SELECT q FROM (VALUES (1)) AS q (q)",
        "SELECT 1 AS q;",
        "SELECT 1 AS q ; ;\n",
        "SELECT 1 AS q -- a comment",
        "SELECT 1 AS q; -- a comment; with another",
        "SELECT 1 AS q /* a comment; */ ; /* and; one */",
        "-- first; a comment\nSELECT 1 AS q",
        "WITH q AS (SELECT 1 AS q) SELECT q FROM q",
        "WITH RECURSIVE n AS (SELECT 1 AS q UNION SELECT q FROM n) SELECT * FROM n",
        "(SELECT 1 AS q) UNION (SELECT 1) ORDER BY 1",
        b"SELECT 1 AS q",
        sql.SQL("SELECT 1 AS {};").format(sql.Identifier("q")),
        sql.SQL("SELECT {} AS q").format(1),
    ],
)
def test_any_way_to_write_a_query_will_do(db: PGMonkey[Any], query: Any) -> None:
    assert json.loads(db.fetch_json(query)) == [{"q": 1}]


@pytest.mark.parametrize(
    "literal",
    [
        "';'",
        "'; -- no comment'",
        "E'it\\'s; -- none'",
        "$$; -- none$$",
        "$a$;$$;$a$",
        "'it''s; --'",
    ],
)
def test_a_semicolon_within_a_literal_stays(db: PGMonkey[Any], literal: str) -> None:
    expected = db.fetch_value(f"SELECT {literal}".encode())
    for end in ("", ";", "; -- end", "-- end;"):
        (row,) = json.loads(db.fetch_json(f"SELECT {literal} AS text {end}".encode()))
        assert row == {"text": expected}


def test_placeholders_and_percent_signs_mean_what_they_mean_elsewhere(db: PGMonkey[Any]) -> None:
    assert json.loads(db.fetch_json("SELECT '100 %' AS a")) == [{"a": "100 %"}]
    assert json.loads(db.fetch_json("SELECT '100 %%' AS a, %s AS b", ["%s"])) == [
        {"a": "100 %", "b": "%s"}
    ]
    assert json.loads(db.fetch_json("SELECT %(n)s + %(n)s AS sum", {"n": 2})) == [{"sum": 4}]
    with pytest.raises(TypeError, match=r"for one value write \[value\]"):
        db.fetch_json("SELECT %s", 5)  # type: ignore[arg-type]
    with pytest.raises(psycopg.ProgrammingError, match="1 placeholders but 2 parameters"):
        db.fetch_json("SELECT %s", [1, 2])


def test_values_are_written_as_the_docs_say(db: PGMonkey[Any]) -> None:
    with db.transaction():
        db.execute("SET LOCAL TimeZone = 'Europe/Berlin'")
        made = db.fetch_json(
            """
            SELECT 1.10::numeric(10, 2) AS price, 12345678901234567890123::numeric AS large,
                9007199254740993::bigint AS id, 'NaN'::float8 AS nan, '-Infinity'::float8 AS lowest,
                '2026-03-01 12:00+00'::timestamptz AS at, '2026-03-01'::date AS day,
                'infinity'::date AS never, '90 minutes'::interval AS duration,
                '00000000-0000-0000-0000-000000000001'::uuid AS key, '\\x00ff'::bytea AS bytes,
                ARRAY[1, NULL, 3] AS numbers, '{"a":  1}'::json AS raw, '{"a":  1}'::jsonb AS doc,
                ROW(1, 'x') AS pair, NULL::int AS missing, true AS yes, 'é"\\' AS text,
                int4range(1, 3) AS range
            """
        )
    assert made.decode() == (
        '[{"price":1.10,"large":12345678901234567890123,"id":9007199254740993,"nan":"NaN",'
        '"lowest":"-Infinity","at":"2026-03-01T13:00:00+01:00","day":"2026-03-01",'
        '"never":"infinity","duration":"01:30:00",'
        '"key":"00000000-0000-0000-0000-000000000001","bytes":"\\\\x00ff",'
        '"numbers":[1,null,3],"raw":{"a":  1},"doc":{"a": 1},"pair":{"f1":1,"f2":"x"},'
        '"missing":null,"yes":true,"text":"é\\"\\\\","range":"[1,3)"}]'
    )


def test_columns_of_the_same_name_all_come(db: PGMonkey[Any]) -> None:
    assert db.fetch_json("SELECT 1 AS a, 2 AS a") == b'[{"a":1,"a":2}]'


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII", "EUC_JP"])
@pytest.mark.parametrize("output", ["hex", "escape"])
def test_it_is_utf8_whatever_the_client_encoding_is(
    database: dict[str, Any], encoding: str, output: str
) -> None:
    other = Database(
        {
            "connection_settings": {**database, "client_encoding": encoding},
            "sync_settings": {"bytea_output": output},
        }
    )
    query = "SELECT U&'\\00e9 \\20ac \\3042 \\+01F600' AS text, '\\\\' AS backslash"
    try:
        made = other.fetch_json(query)
        assert other.fetch_json("SELECT 1 AS n WHERE false") == b"[]"
    finally:
        other.close()
    assert json.loads(made) == [{"text": "é € あ 😀", "backslash": "\\\\"}]


def test_a_statement_that_writes_gives_what_it_returns(db: PGMonkey[Any]) -> None:
    db.execute("CREATE TABLE notes (id int GENERATED ALWAYS AS IDENTITY, text text)")
    made = db.fetch_json("INSERT INTO notes (text) VALUES (%s), (%s) RETURNING *;", ["a", "b"])
    assert json.loads(made) == [{"id": 1, "text": "a"}, {"id": 2, "text": "b"}]
    assert db.fetch_json("UPDATE notes SET text = 'c' WHERE id = 2 RETURNING text") == (
        b'[{"text":"c"}]'
    )
    assert db.fetch_json("DELETE FROM notes RETURNING id") == b'[{"id":1}, \n {"id":2}]'
    assert db.fetch_value("SELECT count(*) FROM notes") == 0


def test_a_response_has_the_json_and_its_type(app: Flask, db: PGMonkey[Any]) -> None:
    for one in (db, db.bind("other")):
        response = one.json_response("SELECT %s AS text", ["ü"])
        assert isinstance(response, app.response_class)
        assert response.mimetype == "application/json"
        assert response.get_data() == '[{"text":"ü"}]'.encode()
        assert response.get_json() == [{"text": "ü"}]
        assert response.content_length == 15


def test_it_joins_the_open_transaction(db: PGMonkey[Any]) -> None:
    db.execute("CREATE TABLE notes (id int)")
    with db.transaction():
        db.execute("INSERT INTO notes VALUES (1)")
        assert db.fetch_json("SELECT id FROM notes") == b'[{"id":1}]'
        raise psycopg.Rollback
    assert db.fetch_json("SELECT id FROM notes") == b"[]"


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("CREATE TABLE notes ()", 'at or near "CREATE"'),
        ("SHOW TimeZone", 'at or near "SHOW"'),
        ("SELECT 1; SELECT 2", 'at or near ";"'),
        ("SELECT (1", "syntax error at the end of the query"),
        ("", "syntax error at the end of the query"),
        ("INSERT INTO items VALUES (1)", "RETURNING"),
        ("WITH new AS (INSERT INTO items VALUES (1) RETURNING *) SELECT * FROM new", "top level"),
    ],
)
def test_what_is_no_query_is_an_error_that_says_what_can_stand_there(
    db: PGMonkey[Any], statement: Any, words: str
) -> None:
    db.execute("CREATE TABLE items (n int)")
    with pytest.raises((psycopg.errors.SyntaxError, psycopg.errors.FeatureNotSupported)) as caught:
        db.fetch_json(statement)
    assert caught.match(words)
    assert "json_agg" not in str(caught.value)
    if HAS_NOTES:
        notes = "\n".join(notes_of(caught.value))
        assert f"Query: {statement}" in notes
        assert "it can be one SELECT, VALUES or TABLE" in notes
    assert db.fetch_value("SELECT count(*) FROM items") == 0


@pytest.mark.parametrize("tags", [[], ["application"]])
def test_an_error_shows_the_line_of_the_query_as_it_was_written(
    app: Flask, database: dict[str, Any], tags: list[str]
) -> None:
    tagged = Flask("tagged")
    tagged.config["PGMONKEY_QUERY_TAGS"] = tags
    db = PGMonkey(tagged, config={"connection_settings": database})
    with tagged.app_context():
        places: dict[Any, str] = {
            "SELECT colour FROM pg_class": "LINE 1: SELECT colour FROM pg_class\n               ^",
            "SELECT 1,\n  colour\nFROM pg_class;": "LINE 2:   colour\n          ^",
        }
        for query, line in places.items():
            with pytest.raises(psycopg.errors.UndefinedColumn) as caught:
                db.fetch_json(query)
            assert str(caught.value) == f'column "colour" does not exist\n{line}'
        db.clear_cache()


def test_events_and_notes_show_the_query_where_it_was_called(db: PGMonkey[Any]) -> None:
    events: list[Any] = []

    def note(sender: object, event: Any) -> None:
        events.append(event)

    query = "SELECT %s::int AS n"
    with query_executed.connected_to(note):
        db.fetch_json(query, [1])
        asyncio.run(db.aio.fetch_json(query, [1]))
        with pytest.raises(psycopg.errors.DivisionByZero) as caught:
            db.fetch_json("SELECT 1 / 0 AS n")
    for event in events[:2]:
        assert (event.sql, event.kind, event.error) == (query, "query", None)
        assert event.call_site.file == __file__
    assert (events[2].sql, events[2].error) == ("SELECT 1 / 0 AS n", "DivisionByZero")
    if HAS_NOTES:
        assert notes_of(caught.value)[0] == "Query: SELECT 1 / 0 AS n"
        assert "Called at tests/test_json_rows.py" in notes_of(caught.value)[1]


def test_it_costs_one_round_trip_and_is_prepared(db: PGMonkey[Any]) -> None:
    db.fetch_value("SELECT 1")
    conn = db.connection
    with count_round_trips(conn) as counted:
        db.fetch_json("SELECT %s::int AS n", [1])
    assert counted.count == 1
    for n in range(10):
        db.fetch_json("SELECT %s::int AS n", [n])
    statements = db.fetch_all("SELECT statement FROM pg_prepared_statements")
    assert any("SELECT $1::int AS n" in row["statement"] for row in statements)


@pytest.mark.parametrize("cursor_class", [psycopg.ClientCursor, psycopg.RawCursor])
def test_it_takes_the_cursors_that_the_app_has_set(
    database: dict[str, Any], cursor_class: Any
) -> None:
    def configure(conn: psycopg.Connection[Any]) -> None:
        conn.cursor_factory = cursor_class

    other = Database({"connection_settings": database}, configure=configure)
    placeholder = "$1" if cursor_class is psycopg.RawCursor else "%s"
    try:
        assert other.fetch_json(f"SELECT {placeholder} AS n;", [5]) in (
            b'[{"n":5}]',
            b'[{"n":"5"}]',
        )
    finally:
        other.close()


def test_it_comes_out_of_a_pipeline_too(db: PGMonkey[Any], database: dict[str, Any]) -> None:
    with db.connection.pipeline():
        assert db.fetch_json("SELECT %s::int AS n", [1]) == b'[{"n":1}]'

    async def ask() -> bytes:
        there = AsyncDatabase({"connection_settings": database})
        try:
            async with there.transaction() as tx, tx.connection.pipeline():
                return await tx.fetch_json("SELECT %s::int AS n", [1])
        finally:
            await there.disconnect()

    assert asyncio.run(ask()) == b'[{"n":1}]'


def test_the_comment_of_a_query_stands_at_the_end(database: dict[str, Any]) -> None:
    app = Flask("tagged")
    app.config["PGMONKEY_QUERY_TAGS"] = ["application"]
    db = PGMonkey(app, config={"connection_settings": database})
    asked = "SELECT query FROM pg_stat_activity WHERE pid = pg_backend_pid();"
    with app.app_context():
        for response in (db.json_response(asked), db.stream_json(asked)):
            ((sent,),) = [row.values() for row in response.get_json()]
            assert sent.endswith(" /*application='tagged'*/")
            assert sent.count("/*") == 1
        db.clear_cache()


def test_a_stale_plan_is_made_anew_unseen(db: PGMonkey[Any]) -> None:
    db.execute("CREATE TABLE notes (a int)")
    for _ in range(10):
        db.fetch_json("SELECT * FROM notes")
    db.execute("ALTER TABLE notes ADD COLUMN b int")
    db.execute("INSERT INTO notes VALUES (1, 2)")
    assert db.fetch_json("SELECT * FROM notes") == b'[{"a":1,"b":2}]'
