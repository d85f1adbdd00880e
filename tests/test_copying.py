"""``db.stream_json()`` and ``db.csv_response()``: responses of any size, made by COPY."""

# ruff: noqa: PT012 (a block that fails has more than one statement)

from __future__ import annotations

import csv
import gc
import io
import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from flask import Flask, Response
from psycopg import sql
from werkzeug.http import parse_options_header

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.connections import borrowed_connections
from flask_pgmonkey.connections.connect_errors import notes_of
from flask_pgmonkey.copying import BLOCK_SIZE
from flask_pgmonkey.signals import connection_returned, query_executed

MANY = "SELECT n, 'row ' || n AS name FROM generate_series(1, 100000) AS n"
FAILS_LATE = "SELECT 1 / (60000 - n) AS share, n FROM generate_series(1, 100000) AS n"

Respond = Callable[..., Response]


@pytest.fixture
def app(database: dict[str, Any]) -> Iterator[Flask]:
    """An app whose pool has two connections at most."""
    app = Flask("tests")
    app.testing = True
    db = PGMonkey(app, config={"connection_settings": database, "pool_settings": {"max_size": 2}})
    with app.app_context():
        yield app
        db.clear_cache()


@pytest.fixture
def db(app: Flask) -> PGMonkey:
    db: PGMonkey = app.extensions["pgmonkey"]
    return db


def _json(db: PGMonkey, *args: Any) -> Response:
    return db.stream_json(*args)


def _lines(db: PGMonkey, *args: Any) -> Response:
    return db.stream_json(*args, lines=True)


def _csv(db: PGMonkey, *args: Any) -> Response:
    return db.csv_response(*args, filename="rows.csv")


every_format = pytest.mark.parametrize("respond", [_json, _lines, _csv])


def records(response: Response) -> list[dict[str, Any]]:
    """The rows that a client reads from *response*."""
    body = response.get_data(as_text=True)
    if response.mimetype == "text/csv":
        return list(csv.DictReader(io.StringIO(body, newline="")))
    if response.mimetype == "application/x-ndjson":
        assert not body or body.endswith("\n")
        return [json.loads(line) for line in body.splitlines()]
    found: list[dict[str, Any]] = json.loads(body)
    return found


@every_format
@pytest.mark.parametrize("count", [0, 1, 2, 100_000])
def test_a_response_has_every_row_in_order(db: PGMonkey, respond: Respond, count: int) -> None:
    query = "SELECT n, 'ü' || n AS name FROM generate_series(1, %s) AS n"
    found = records(respond(db, query, [count]))
    assert [(int(row["n"]), row["name"]) for row in found] == [
        (n, f"ü{n}") for n in range(1, count + 1)
    ]
    assert borrowed_connections() == []


def test_the_types_of_responses_are_those_of_their_formats(db: PGMonkey) -> None:
    assert _json(db, "SELECT 1").content_type == "application/json"
    assert _lines(db, "SELECT 1").content_type == "application/x-ndjson"
    assert _csv(db, "SELECT 1").content_type == "text/csv; charset=utf-8"
    assert _csv(db, "SELECT 1 AS n WHERE false").get_data() == b"n\n"
    assert _json(db, "SELECT 1 AS n").get_data() == b'[{"n":1}]\n'


def test_streamed_json_is_what_fetch_json_gives(db: PGMonkey) -> None:
    query = r"""
        SELECT 1.10::numeric AS price, 'NaN'::float8 AS nan, now() AS at, '\x00'::bytea AS bytes,
            E'back\\slash "quote" tab\t line\nbreak \x01\x02' AS text, NULL AS missing, 1 AS q,
            E'{\n "a":\r\n 1}'::json AS raw, '\.' AS dot FROM generate_series(1, 3)
    """
    with db.transaction():
        db.execute("SET LOCAL TimeZone = 'UTC'")
    whole = json.loads(db.fetch_json(query))
    for respond in (_json, _lines):
        streamed = records(respond(db, query))
        for one, other in zip(streamed, whole, strict=True):
            assert {**one, "at": 0} == {**other, "at": 0}
    assert whole[0]["text"] == 'back\\slash "quote" tab\t line\nbreak \x01\x02'


@every_format
@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1 AS q;",
        "SELECT 1 AS q -- a comment",
        "SELECT 1 AS q; -- a comment",
        "WITH q AS (SELECT 1 AS q) SELECT q FROM q",
        b"SELECT 1 AS q",
        sql.SQL("SELECT {} AS {}").format(1, sql.Identifier("q")),
    ],
)
def test_any_way_to_write_a_query_will_do(db: PGMonkey, respond: Respond, query: Any) -> None:
    assert [str(row["q"]) for row in records(respond(db, query))] == ["1"]


@every_format
def test_placeholders_and_percent_signs_mean_what_they_mean_elsewhere(
    db: PGMonkey, respond: Respond
) -> None:
    assert records(respond(db, "SELECT '100 %' AS a")) == [{"a": "100 %"}]
    query = "SELECT '100 %%' AS a, %(b)s AS b"
    assert records(respond(db, query, {"b": "it's; -- \\"})) == [{"a": "100 %", "b": "it's; -- \\"}]
    with pytest.raises(TypeError, match=r"for one value write \[value\]"):
        respond(db, "SELECT %s", 5)
    assert borrowed_connections() == []


@every_format
def test_it_is_utf8_whatever_the_client_encoding_is(
    database: dict[str, Any], respond: Respond
) -> None:
    app = Flask("tests")
    latin = {**database, "client_encoding": "LATIN1"}
    db = PGMonkey(app, config={"connection_settings": latin})
    with app.app_context():
        assert records(respond(db, "SELECT U&'\\20ac \\3042' AS text")) == [{"text": "€ あ"}]
        db.clear_cache()


@every_format
def test_blocks_have_64_kib_and_are_read_as_they_are_asked_for(
    db: PGMonkey, respond: Respond
) -> None:
    response = respond(db, "SELECT repeat('x', 100) AS x FROM generate_series(1, 10000)")
    sizes = [len(block) for block in response.iter_encoded()]
    assert len(sizes) > 10
    assert all(BLOCK_SIZE <= size < BLOCK_SIZE + 1000 for size in sizes[1:-2])


@every_format
def test_an_error_before_the_first_block_is_the_view_s(
    app: Flask, db: PGMonkey, respond: Respond
) -> None:
    queries: dict[Any, type[psycopg.Error]] = {
        "SELECT * FROM nowhere": psycopg.errors.UndefinedTable,
        "SELEKT": psycopg.errors.SyntaxError,
        "CREATE TABLE t ()": psycopg.errors.SyntaxError,
        "SELECT 1; SELECT 2": psycopg.errors.SyntaxError,
        "SELECT 1) TO STDOUT; SELECT (2": psycopg.errors.SyntaxError,
        "SELECT 1 / (n - 5) AS n FROM generate_series(1, 9) AS n": psycopg.errors.DivisionByZero,
    }

    for query, error in queries.items():
        with pytest.raises(error):
            respond(db, query)
        assert borrowed_connections() == []
    assert db.fetch_value("SELECT 1") == 1

    @app.get("/")
    def view() -> Response:
        return respond(db, "SELECT * FROM nowhere")

    app.testing = False
    app.config["PROPAGATE_EXCEPTIONS"] = False
    assert app.test_client().get("/").status_code == 500


@every_format
def test_an_error_shows_the_place_in_the_query_and_no_value(db: PGMonkey, respond: Respond) -> None:
    with pytest.raises(psycopg.errors.UndefinedColumn) as caught:
        respond(db, "SELECT 1,\n colour\nFROM pg_class")
    assert str(caught.value) == 'column "colour" does not exist\nLINE 2:  colour\n         ^'
    with pytest.raises(psycopg.errors.UndefinedColumn) as caught:
        respond(db, "SELECT %s, colour FROM pg_class", ["a secret"])
    assert str(caught.value) == 'column "colour" does not exist'
    assert "a secret" not in "".join(notes_of(caught.value))


@every_format
def test_events_and_notes_show_the_query_where_it_was_called(
    db: PGMonkey, respond: Respond
) -> None:
    events: list[Any] = []

    def note(sender: object, event: Any) -> None:
        events.append(event)

    with query_executed.connected_to(note):
        response = respond(db, FAILS_LATE)
        assert [event.sql for event in events] == [FAILS_LATE]
        with pytest.raises(psycopg.errors.DivisionByZero) as caught:
            b"".join(response.iter_encoded())
    (event,) = events  # when its first block is there: the rest takes as long as the client does
    assert event.call_site.file == __file__
    assert (event.kind, event.error) == ("query", None)
    if sys.version_info >= (3, 11):
        notes = notes_of(caught.value)
        assert notes[0] == f"Query: {FAILS_LATE}"
        assert "Called at tests/test_copying.py" in notes[1]


@every_format
def test_a_receiver_of_events_may_query(db: PGMonkey, respond: Respond) -> None:
    heard: list[str] = []

    def ask(sender: object, event: Any) -> None:
        heard.append(f"{event.sql if event is not None else ''}{db.fetch_value('SELECT 1')}")

    def ask_more(sender: object, event: Any) -> None:
        db.release()
        ask(sender, None)

    small = "SELECT 1 AS n"
    with query_executed.connected_to(ask), connection_returned.connected_to(ask_more):
        assert len(records(respond(db, small))) == 1
    assert heard[0] == f"{small}1"
    assert len(heard) == 2
    db.release()
    assert borrowed_connections() == []


@every_format
def test_a_body_that_fails_halfway_is_not_valid(db: PGMonkey, respond: Respond) -> None:
    """Even where nothing but the end of the connection tells that it is over."""
    received = []
    with pytest.raises(psycopg.errors.DivisionByZero):
        for block in respond(db, FAILS_LATE).iter_encoded():
            received.append(block)
    body = b"".join(received).decode()
    assert len(body) > BLOCK_SIZE
    if respond is _csv:
        with pytest.raises(csv.Error, match="unexpected end of data"):
            list(csv.reader(io.StringIO(body), strict=True))
    else:
        with pytest.raises(json.JSONDecodeError):
            json.loads(body if respond is _json else body.splitlines()[-1])
    assert borrowed_connections() == []
    assert db.fetch_value("SELECT 1") == 1


@every_format
def test_it_takes_over_the_connection_and_the_next_query_borrows_anew(
    db: PGMonkey, respond: Respond
) -> None:
    pid = db.fetch_value("SELECT pg_backend_pid()")
    response = respond(db, MANY)
    assert len(borrowed_connections()) == 1
    assert db.fetch_value("SELECT pg_backend_pid()") != pid
    response.close()
    assert len(borrowed_connections()) == 1


@every_format
def test_the_connection_goes_back_usable_when_the_response_is_closed_or_dropped(
    db: PGMonkey, respond: Respond
) -> None:
    pid = db.fetch_value("SELECT pg_backend_pid()")
    response = respond(db, "SELECT generate_series(1, 100000000) AS n")
    next(iter(response.iter_encoded()))
    response.close()
    response.close()
    assert borrowed_connections() == []
    assert db.fetch_value("SELECT pg_backend_pid()") == pid
    db.release()
    response = respond(db, "SELECT generate_series(1, 100000000) AS n")
    del response
    gc.collect()
    assert borrowed_connections() == []
    assert db.fetch_value("SELECT pg_backend_pid()") == pid
    with db.transaction():
        assert db.fetch_value("SELECT 1") == 1


@every_format
def test_any_thread_may_read_it(db: PGMonkey, respond: Respond) -> None:
    """As servers do that hand each block to a pool of threads."""
    response = respond(db, MANY)
    blocks = iter(response.iter_encoded())
    with ThreadPoolExecutor(3) as threads:
        body = b""
        while block := threads.submit(next, blocks, b"").result():
            body += block
    assert len(records(Response(body, mimetype=response.mimetype))) == 100_000
    response = respond(db, "SELECT generate_series(1, 100000000) AS n")
    with ThreadPoolExecutor(1) as threads:
        threads.submit(response.close).result()
    assert borrowed_connections() == []


@every_format
def test_within_a_transaction_it_is_refused(db: PGMonkey, respond: Respond) -> None:
    with db.transaction():
        with pytest.raises(psycopg.ProgrammingError, match=r"\(\) within a transaction"):
            respond(db, "SELECT 1")
        assert db.fetch_value("SELECT 1") == 1
        # The remedy.
        assert db.json_response("SELECT 1 AS n").get_json() == [{"n": 1}]


@every_format
def test_a_client_that_only_asks_for_the_head_costs_no_connection(
    app: Flask, db: PGMonkey, respond: Respond
) -> None:
    @app.get("/")
    def view() -> Response:
        return respond(db, MANY)

    assert app.test_client().head("/").data == b""
    assert borrowed_connections() == []


@every_format
def test_a_server_that_goes_away_halfway_is_an_error_and_no_leak(
    db: PGMonkey, database: dict[str, Any], respond: Respond
) -> None:
    pid = db.fetch_value("SELECT pg_backend_pid()")
    blocks = iter(respond(db, "SELECT generate_series(1, 100000000) AS n").iter_encoded())
    next(blocks)
    with psycopg.connect(**database, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(%s, 10000)", (pid,))
    with pytest.raises(psycopg.OperationalError):
        list(blocks)
    assert borrowed_connections() == []
    assert len(records(respond(db, MANY))) == 100_000


@every_format
def test_a_slow_query_is_cancelled_in_time(db: PGMonkey, respond: Respond) -> None:
    with db.timeout(0.2), pytest.raises(psycopg.errors.QueryCanceled, match=r"db.timeout\(\)"):
        respond(db, "SELECT pg_sleep(60)")
    assert borrowed_connections() == []


@every_format
def test_what_the_query_writes_is_committed_at_the_end(db: PGMonkey, respond: Respond) -> None:
    db.execute("CREATE TABLE notes (n integer)")
    db.release()
    query = "INSERT INTO notes SELECT generate_series(1, 30000) RETURNING n"
    respond(db, query.replace("30000", "3000000")).close()
    assert db.fetch_value("SELECT count(*) FROM notes") == 0
    assert len(records(respond(db, query))) == 30_000
    assert db.fetch_value("SELECT count(*) FROM notes") == 30_000


@pytest.mark.parametrize(
    "filename",
    [
        "orders.csv",
        "two words.csv",
        "Übersicht für Äpfel €.csv",
        "注文.csv",
        'quo"te.csv',
        "semi;colon=1.csv",
        "per%20cent.csv",
        "it's.csv",
        "",
    ],
)
def test_a_file_is_saved_under_its_name(db: PGMonkey, filename: str) -> None:
    response = db.csv_response("SELECT 1", filename=filename)
    header = response.headers["Content-Disposition"]
    assert header.isascii()
    kind, options = parse_options_header(header)
    assert (kind, options["filename"]) == ("attachment", filename)


@pytest.mark.parametrize(
    ("filename", "saved_as"),
    [
        ("a\r\nSet-Cookie: b=c.csv", "a__Set-Cookie: b=c.csv"),
        ("../../etc/passwd", ".._.._etc_passwd"),
        ("a\\b\0c\x7f.csv", "a_b_c_.csv"),
        ("half \ud83d of a character.csv", "half _ of a character.csv"),
    ],
)
def test_what_no_file_can_be_called_is_replaced(db: PGMonkey, filename: str, saved_as: str) -> None:
    response = db.csv_response("SELECT 1", filename=filename)
    _, options = parse_options_header(response.headers["Content-Disposition"])
    assert options["filename"] == saved_as


FORMULAS = """
    SELECT %s::text AS "=name", -5 AS number, '-5'::text AS text, NULL::text AS "+missing",
        '@x'::char(4) AS padded, '{"=1"}'::text[] AS list, current_date AS day -- as it is;
"""


def test_a_spreadsheet_finds_no_formula_where_none_is_wanted(db: PGMonkey) -> None:
    today = str(db.fetch_value("SELECT current_date"))
    value = '=HYPERLINK("http://evil")'
    response = db.csv_response(FORMULAS, [value], filename="x.csv", safe_formulas=True)
    head, row = csv.reader(io.StringIO(response.get_data(as_text=True)))
    assert head == ["'=name", "number", "text", "'+missing", "padded", "list", "day"]
    assert row == [f"'{value}", "-5", "'-5", "", "'@x  ", "{=1}", today]
    response = db.csv_response(FORMULAS, [value], filename="x.csv")
    assert next(csv.reader(io.StringIO(response.get_data(as_text=True))))[0] == "=name"


def test_a_query_that_is_looked_at_first_runs_once_and_errs_as_others_do(db: PGMonkey) -> None:
    db.execute("CREATE TABLE notes (text text)")

    def respond(*args: Any) -> Response:
        return db.csv_response(*args, filename="x.csv", safe_formulas=True)

    insert = "INSERT INTO notes VALUES (%s) RETURNING text;"
    assert respond(insert, ["=1"]).get_data() == b"text\n'=1\n"
    assert db.fetch_value("SELECT count(*) FROM notes") == 1
    with pytest.raises(psycopg.errors.UndefinedColumn) as caught:
        respond("SELECT 1,\n colour\nFROM pg_class")
    assert str(caught.value) == 'column "colour" does not exist\nLINE 2:  colour\n         ^'
    with pytest.raises(psycopg.errors.UndefinedColumn) as caught:
        respond("SELECT %s, colour FROM pg_class", ["a secret"])
    assert str(caught.value) == 'column "colour" does not exist'
    assert "a secret" not in "".join(notes_of(caught.value))
    for statement in ("SELECT 1; SELECT 2", "CREATE TABLE t ()"):
        with pytest.raises(psycopg.errors.SyntaxError):
            respond(statement)
    with pytest.raises(psycopg.errors.DivisionByZero):
        respond("SELECT 1 / n AS x FROM (VALUES (0)) AS numbers (n)")
    assert respond("SELECT FROM notes").status_code == 200
    assert borrowed_connections() == []


def test_it_serves_binds_too(database: dict[str, Any]) -> None:
    app = Flask("tests")
    config = {"connection_settings": database}
    app.config["PGMONKEY_BINDS"] = {"reports": config}
    db = PGMonkey(app, config=config)
    with app.app_context():
        reports = db.bind("reports")
        assert reports.stream_json("SELECT 1 AS n").get_json() == [{"n": 1}]
        assert reports.csv_response("SELECT 1 AS n", filename="n.csv").get_data() == b"n\n1\n"
        db.clear_cache()


def test_the_cursors_that_the_app_has_set_will_do(database: dict[str, Any]) -> None:
    def configure(conn: psycopg.Connection[Any]) -> None:
        conn.cursor_factory = psycopg.ClientCursor

    app = Flask("tests")
    app.config["PGMONKEY_QUERY_TAGS"] = ["application"]
    db = PGMonkey(app, config={"connection_settings": database}, configure=configure)
    with app.app_context():
        assert db.stream_json("SELECT %s AS n;", [5]).get_json() == [{"n": 5}]
        db.clear_cache()
