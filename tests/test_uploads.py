"""``db.copy_from()``: what a client sends into a table, all of it or nothing."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from flask import Flask, request
from psycopg.rows import dict_row
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import RequestEntityTooLarge

import flask_pgmonkey
from flask_pgmonkey import PGMonkey
from flask_pgmonkey.connections import borrowed_connections
from flask_pgmonkey.csv_transfer import CSVTransferError
from flask_pgmonkey.signals import query_executed

Row = tuple[Any, ...]


@pytest.fixture
def app(database: dict[str, Any]) -> Iterator[Flask]:
    """An app with a table ``products``, whose rows are dictionaries."""
    app = Flask("tests")
    app.testing = True
    db = PGMonkey(app, config={"connection_settings": database}, row_factory=dict_row)
    with app.app_context():
        db.execute(
            "CREATE TABLE products"
            " (sku text PRIMARY KEY, price numeric CHECK (price >= 0), note text)"
        )
        yield app
        db.clear_cache()


@pytest.fixture
def db(app: Flask) -> PGMonkey[dict[str, Any]]:
    db: PGMonkey[dict[str, Any]] = app.extensions["pgmonkey"]
    return db


def products(db: PGMonkey[Any]) -> list[Row]:
    return [tuple(row.values()) for row in db.fetch_all("SELECT * FROM products ORDER BY sku")]


def stream(text: str | bytes) -> io.BytesIO:
    return io.BytesIO(text.encode() if isinstance(text, str) else text)


def test_a_file_with_a_header_fills_the_columns_that_it_names(db: PGMonkey[Any]) -> None:
    assert db.copy_from("products", stream("note,sku\nnew,a1\n,a2\n")) == 2
    assert products(db) == [("a1", None, "new"), ("a2", None, None)]
    assert borrowed_connections() != []  # it stays the context's


def test_the_separator_and_the_encoding_are_found_as_the_command_finds_them(
    db: PGMonkey[Any],
) -> None:
    german = "sku;note\na1;Größe für Äpfel\nb1;Schöne Grüße aus Köln\nc1;Straße über die Brücke\n"
    db.copy_from("products", stream(german.encode("cp1252")))
    db.copy_from("products", stream("\ufeffsku\tnote\na2\tÄpfel\n".encode("utf-16-le")))
    db.copy_from("products", stream("sku,note\na3,Äpfel\n".encode("cp850")), encoding="cp850")
    assert [note for sku, _, note in products(db) if sku.startswith("a")] == [
        "Größe für Äpfel",
        "Äpfel",
        "Äpfel",
    ]


def test_columns_name_those_of_a_file_in_their_order(db: PGMonkey[Any]) -> None:
    text = "a1,1.50\na2,2\n"
    assert db.copy_from("products", stream(text), columns=["sku", "price"], header=False) == 2
    assert [sku for sku, _, _ in products(db)] == ["a1", "a2"]


def test_columns_may_say_where_those_of_the_header_go(db: PGMonkey[Any]) -> None:
    text = "Artikel,Farbe,Preis\na1,rot,1.50\n"
    columns = {"Artikel": "sku", "Preis": "price", "Farbe": None}
    assert db.copy_from("products", stream(text), columns=columns) == 1
    assert [(sku, str(price)) for sku, price, _ in products(db)] == [("a1", "1.50")]


@pytest.mark.parametrize("send", ["body", "form"])
def test_a_view_takes_the_body_of_a_request_or_a_file_of_a_form(
    app: Flask, db: PGMonkey[Any], send: str
) -> None:
    @app.post("/body")
    def body() -> str:
        return str(db.copy_from("products", request.stream, max_bytes=1_000_000))

    @app.post("/form")
    def form() -> str:
        return str(db.copy_from("products", request.files["file"], max_bytes=1_000_000))

    text = "sku,note\n" + "".join(f"{n:06},{'x' * 20}\n" for n in range(10_000))
    client = app.test_client()
    answer = (
        client.post("/body", data=text)
        if send == "body"
        else client.post("/form", data={"file": (stream(text), "products.csv")})
    )
    assert answer.text == "10000"
    assert len(products(db)) == 10_000


class Dribble(io.RawIOBase):
    """A stream that gives a byte or three at a time, as a socket may."""

    def __init__(self, content: bytes) -> None:
        self._rest = content

    def read(self, size: int = -1) -> bytes:
        piece, self._rest = self._rest[:3], self._rest[3:]
        return piece


def test_it_does_not_matter_in_which_pieces_a_stream_comes(db: PGMonkey[Any]) -> None:
    text = "sku,note\n" + "".join(f"{n},'{n}'\n" for n in range(1000))
    assert db.copy_from("products", Dribble(text.encode())) == 1000


def test_text_and_binary_are_copied_as_they_are(
    db: PGMonkey[Any], database: dict[str, Any]
) -> None:
    assert db.copy_from("products", stream("a1\t1\t\\N\n"), format="text") == 1
    assert db.copy_from("products", stream("a2\n"), columns=["sku"], format="text") == 1
    with psycopg.connect(**database) as other, other.cursor() as cursor:
        with cursor.copy(
            "COPY (SELECT 'a3'::text, 3::numeric, 'x'::text) TO STDOUT (FORMAT binary)"
        ) as copy:
            content = b"".join(copy)
    assert db.copy_from("products", stream(content), format="binary") == 1
    assert [(sku, note) for sku, _, note in products(db)] == [
        ("a1", None),
        ("a2", None),
        ("a3", "x"),
    ]
    with pytest.raises(psycopg.DataError):
        db.copy_from("products", stream("a4\t1\t2\t3\n"), format="text")
    with pytest.raises(ValueError, match="format='xlsx': write 'csv', 'text' or 'binary'"):
        db.copy_from("products", stream(""), format="xlsx")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="header=: for CSV files alone, and not for format='text'"):
        db.copy_from("products", stream(""), format="text", header=True)
    with pytest.raises(ValueError, match="columns= with the names of a header: for CSV"):
        db.copy_from("products", stream(""), format="text", columns={"a": "sku"})


def test_a_table_may_be_named_with_its_schema(db: PGMonkey[Any]) -> None:
    db.execute('CREATE SCHEMA "Shop"')
    db.execute('CREATE TABLE "Shop"."Price list" (sku text)')
    assert db.copy_from("Shop.Price list", stream("sku\na1\n")) == 1
    assert db.copy_from("Shop.Price list", stream("a2\n"), format="text") == 1
    assert db.fetch_value('SELECT count(*) FROM "Shop"."Price list"') == 2


@pytest.mark.parametrize(
    ("text", "line", "column", "words"),
    [
        ("sku,price\na1,1\na2,cheap\n", 3, "price", "invalid input syntax for type numeric"),
        ("sku,price\na1,1\na1,2\n", 3, None, "duplicate key"),
        ("sku,price\na1,-1\n", 2, None, "products_price_check"),
        ("sku,price\na1\n", 2, None, "missing data"),
        ("sku,price\na1,1\na2,1,2\n", 3, None, "extra data"),
        ("sku,colour\na1,red\n", None, "colour", "has no column"),
    ],
)
def test_an_error_has_the_line_and_the_column_and_leaves_nothing(
    db: PGMonkey[Any], text: str, line: int | None, column: str | None, words: str
) -> None:
    upload = FileStorage(stream(text), filename="new.csv")
    with pytest.raises(CSVTransferError, match=words) as caught:
        db.copy_from("products", upload)
    assert str(caught.value).startswith("new.csv")
    assert (caught.value.line, caught.value.column) == (line, column)
    assert products(db) == []


def test_advice_is_in_the_words_of_the_call_and_helps(db: PGMonkey[Any]) -> None:
    text = "a1,x\na2,y\n"
    with pytest.raises(CSVTransferError, match=r"say header=True .* or header=False") as caught:
        db.copy_from("products", stream(text), columns=["sku", "note"])
    assert db.copy_from("products", stream(text), columns=["sku", "note"], header=False) == 2

    text = "sku,Farbe\nb1,rot\n"
    with pytest.raises(CSVTransferError) as caught:
        db.copy_from("products", stream(text))
    for remedy in ('columns={"2": "COLUMN"}', 'columns={"2": None}', "ignore_rest=True"):
        assert remedy in str(caught.value)
    assert db.copy_from("products", stream("sku,F\nb0,rot\n"), columns={"2": "note"}) == 1
    assert db.copy_from("products", stream("sku,F\nb3,rot\n"), ignore_rest=True) == 1
    assert db.copy_from("products", stream(text), columns={"Farbe": "note"}) == 1
    assert db.copy_from("products", stream("sku,F\nb2,rot\n"), columns={"F": None}) == 1

    latin = "sku,note\nc1,é\n".encode("latin-1")
    with pytest.raises(CSVTransferError, match="name the file's encoding with encoding="):
        db.copy_from("products", stream(latin), encoding="utf-8")
    assert db.copy_from("products", stream(latin), encoding="latin-1") == 1

    inches = 'sku,note\nd1,5" wide\nd2,6" wide\n'
    with pytest.raises(CSVTransferError, match=r'if quotes are plain characters .* say quote=""'):
        db.copy_from("products", stream(inches), quote='"')
    assert db.copy_from("products", stream(inches), quote="") == 2
    escaped = 'sku|note\nd3|"5\\" wide|"\n'
    with pytest.raises(CSVTransferError, match=r'a backslash stands before them, escape="\\\\"'):
        db.copy_from("products", stream(escaped), escape="")
    assert db.copy_from("products", stream(escaped), escape="\\", delimiter="|") == 1
    assert {note for sku, _, note in products(db) if sku[0] == "d"} == {
        '5" wide',
        '6" wide',
        '5" wide|',
    }

    meanings: dict[str, Any] = {
        'sku,price\ne1,""\n': {"null_quoted": True},
        "sku,price\ne2,NULL\n": {"null": "NULL"},
        'sku,price\ne3,"1,5"\n': {"decimal_comma": True},
    }
    for text, option in meanings.items():
        with pytest.raises(CSVTransferError) as caught:
            db.copy_from("products", stream(text))
        ((name, value),) = option.items()
        assert f"say {name}={value!r}" in str(caught.value)
        assert db.copy_from("products", stream(text), **option) == 1

    with pytest.raises(CSVTransferError, match=r'there is no table "nowhere"[^-]*$'):
        db.copy_from("nowhere", stream("a\n"))


def test_no_option_of_the_command_is_left_in_an_error() -> None:
    folder = Path(flask_pgmonkey.__file__).parent / "csv_transfer"
    advice = " ".join(path.read_text(encoding="utf-8") for path in folder.glob("*.py"))
    options = set(re.findall(r"--[a-z][a-z-]+", advice))
    from flask_pgmonkey.uploads import _with_parameters

    left = {option for option in options if "--" in _with_parameters(f"; {option} makes one")}
    assert left == {"--on-error"}  # which comes in the words ", without --on-error skip"


def test_more_bytes_than_may_be_sent_are_413_and_leave_nothing(
    app: Flask, db: PGMonkey[Any]
) -> None:
    @app.post("/")
    def view() -> str:
        return str(db.copy_from("products", request.stream, max_bytes=500_000))

    text = "sku,note\n" + "".join(f"{n:06},{'x' * 20}\n" for n in range(30_000))
    assert len(text) > 500_000
    assert app.test_client().post("/", data=text).status_code == 413
    assert products(db) == []
    exact = "sku\na1\n"
    with pytest.raises(RequestEntityTooLarge, match="has more than the 6 bytes that may be sent"):
        db.copy_from("products", stream(exact), max_bytes=len(exact) - 1)
    assert db.copy_from("products", stream(exact), max_bytes=len(exact)) == 1


def test_it_joins_an_open_transaction(db: PGMonkey[Any], database: dict[str, Any]) -> None:
    with db.transaction():
        assert db.copy_from("products", stream("sku\na1\n")) == 1
        with pytest.raises(CSVTransferError):
            db.copy_from("products", stream("sku,price\na2,cheap\n"))
        # What was there before goes on.
        assert db.copy_from("products", stream("sku\na3\n")) == 1
        with psycopg.connect(**database) as other:
            assert other.execute("SELECT count(*) FROM products").fetchone() == (0,)
    assert [sku for sku, _, _ in products(db)] == ["a1", "a3"]
    with db.transaction():
        db.copy_from("products", stream("sku\na4\n"))
        raise psycopg.Rollback
    assert len(products(db)) == 2


def test_an_option_that_is_not_of_reading_is_refused(db: PGMonkey[Any]) -> None:
    with pytest.raises(TypeError, match="has no option 'truncate': those of CSV are header, "):
        db.copy_from("products", stream("sku\na1\n"), truncate=True)  # type: ignore[call-arg]
    assert products(db) == []


@pytest.mark.parametrize("format", ["csv", "text"])
def test_a_column_or_table_that_is_not_there_is_named(db: PGMonkey[Any], format: Any) -> None:
    with pytest.raises((psycopg.Error, CSVTransferError), match="nowhere"):
        db.copy_from("nowhere", stream("a1\n"), format=format)
    options: Any = {"header": False} if format == "csv" else {}
    with pytest.raises((psycopg.Error, CSVTransferError), match='"colour"'):
        db.copy_from(
            *("products", stream("a1\n")),
            columns=["colour"],
            format=format,
            **options,
        )
    with pytest.raises(CSVTransferError, match="is not the name of a table"):
        db.copy_from("a.b.c", stream("a1\n"), format=format)
    assert products(db) == []


class BreaksOff(io.BytesIO):
    """A client that hangs up in the middle."""

    def read(self, size: int | None = -1) -> bytes:
        if self.tell() > 200_000:
            raise ConnectionResetError
        return super().read(size)


@pytest.mark.parametrize("format", ["csv", "text"])
def test_a_client_that_hangs_up_leaves_nothing_and_a_usable_connection(
    db: PGMonkey[Any], format: Any, caplog: pytest.LogCaptureFixture
) -> None:
    pid = db.fetch_value("SELECT pg_backend_pid()")
    separator = "," if format == "csv" else "\t"
    text = "".join(f"{n:06}{separator}{'x' * 20}\n" for n in range(30_000))
    broken = BreaksOff(text.encode())
    options: Any = {"header": False} if format == "csv" else {}
    with pytest.raises(ConnectionResetError):
        db.copy_from(
            *("products", broken),
            columns=["sku", "note"],
            format=format,
            **options,
        )
    assert products(db) == []
    assert db.fetch_value("SELECT pg_backend_pid()") == pid
    assert caplog.records == []


def test_what_is_no_stream_of_bytes_is_an_error_that_says_so(db: PGMonkey[Any]) -> None:
    for wrong in ("/etc/passwd", b"sku\n", None):
        with pytest.raises(TypeError, match=r"takes a stream of bytes, such as request\.stream"):
            db.copy_from("products", wrong)
    with pytest.raises(TypeError, match="open the file with 'rb'"):
        db.copy_from("products", io.StringIO("sku\na1\n"))
    with pytest.raises(TypeError, match=r"takes names in a list: write columns=\['sku'"):
        db.copy_from("products", stream("a1\n"), columns="sku")
    assert products(db) == []


def test_events_name_the_call_of_the_app(db: PGMonkey[Any]) -> None:
    events: list[Any] = []

    def note(sender: object, event: Any) -> None:
        events.append(event)

    with query_executed.connected_to(note):
        db.copy_from("products", stream("sku\na1\n"))
    (copied,) = [event for event in events if event.kind == "copy"]
    assert copied.sql.startswith('COPY "products" ("sku") FROM STDIN')
    assert copied.rows == 1
    assert {event.call_site.file for event in events} == {__file__}


def test_nothing_of_it_is_loaded_before_it_is_used() -> None:
    program = (
        "import sys, flask, flask_pgmonkey\n"
        "app = flask.Flask('tests')\n"
        "flask_pgmonkey.PGMonkey(app, config='postgresql://localhost/none')\n"
        "names = ('csv_transfer', 'uploads', 'copying', 'responses', 'json_rows')\n"
        "print([n for n in names if f'flask_pgmonkey.{n}' in sys.modules])\n"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert ran.stdout == b"[]\n"
