"""Any table of text comes back identical, through every encoding."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import psycopg
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from psycopg import sql

from flask_pgmonkey.csv_transfer import Dialect, export_csv, import_csv

from ..servers import Server
from .conftest import Connection

ENCODINGS = ("utf-8", "utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252")
PIECES = ("\\.", "\n", "\r\n", "\r", '"', "'", ",", ";", "\t", "|", "\\", "\\N", "😀", "é", "", " ")
NAMES = ("a", "Größe (cm)", 'q"u', "x;y", "it's", "two\nlines", "\\.", "1")


Table = tuple[list[str], list[tuple[str | None, ...]]]


@pytest.fixture(scope="module")
def connection(server: Server) -> Iterator[Connection]:
    with server.database() as dbname, psycopg.connect(**server.settings(dbname)) as connection:
        yield connection


def values(encoding: str) -> st.SearchStrategy[str | None]:
    characters = st.characters(codec=encoding, exclude_characters="\0")
    pieces = [
        piece for piece in PIECES if piece.encode(encoding, "ignore").decode(encoding) == piece
    ]
    return st.none() | st.lists(st.sampled_from(pieces) | characters, max_size=6).map("".join)


@st.composite
def tables(draw: st.DrawFn, encoding: str) -> Table:
    names = draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
    row = st.tuples(*[values(encoding) for _ in names])
    return names, draw(st.lists(row, max_size=8))


def transfer_there_and_back(
    connection: Connection,
    table: Table,
    encoding: str,
    *,
    told: str | None = None,
    dialect: Dialect | None = None,
    on_error: Literal["stop", "skip"] = "stop",
) -> None:
    """Compare *table* with its copy; the import learns only *told* and *dialect* of the file."""
    names, rows = table
    columns = sql.SQL(", ").join(sql.SQL("{} text").format(sql.Identifier(name)) for name in names)
    stream = io.BytesIO()
    with connection.transaction(force_rollback=True):
        for name in ("source", "copy"):
            connection.execute(
                sql.SQL("CREATE TEMP TABLE {} ({})").format(sql.Identifier(name), columns)
            )
        with connection.cursor() as cursor, cursor.copy("COPY source FROM STDIN") as copy:
            for row in rows:
                copy.write_row(row)
        export_csv(connection, stream, table="source", encoding=encoding, dialect=dialect)
        stream.seek(0)
        result = import_csv(
            connection,
            "copy",
            stream,
            encoding=told,
            delimiter=dialect.delimiter if dialect else None,
            quote=dialect.quote if dialect else None,
            null=dialect.null if dialect else "",
            on_error=on_error,
        )
        assert (result.rows, result.rejected, result.header) == (len(rows), 0, True)
        assert connection.execute("SELECT * FROM copy").fetchall() == rows


@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_table_comes_back_identical(
    connection: Connection, encoding: str, data: st.DataObject
) -> None:
    told = None if encoding.startswith("utf") else encoding
    transfer_there_and_back(connection, data.draw(tables(encoding)), encoding, told=told)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
@settings(max_examples=60, deadline=None)
@given(
    table=tables("utf-8"),
    delimiter=st.sampled_from(",;\t|x\\."),
    quote=st.sampled_from("\"'`"),
    null=st.sampled_from(["", "NULL", "\\N", "😀"]),
)
def test_any_dialect_comes_back_identical(
    connection: Connection,
    table: Table,
    delimiter: str,
    quote: str,
    null: str,
    on_error: Literal["stop", "skip"],
) -> None:
    assume(delimiter not in null)  # The server refuses it.
    dialect = Dialect(delimiter, quote, null)
    transfer_there_and_back(connection, table, "utf-8", dialect=dialect, on_error=on_error)


@pytest.mark.parametrize(("encoding", "ending"), [("utf-8", ""), ("utf-16", ""), ("utf-8", ".gz")])
def test_memory_does_not_grow_with_the_rows(
    database: dict[str, Any], tmp_path: Path, encoding: str, ending: str
) -> None:
    program = """if True:
        import json, sys, psycopg
        from flask_pgmonkey.csv_transfer import export_csv, import_csv

        def peak():
            with open("/proc/self/status") as status:
                return int(status.read().partition("VmHWM:")[2].split()[0]) / 1024

        database, path, encoding = json.loads(sys.argv[1])
        start = peak()
        with psycopg.connect(**database) as connection:
            query = "SELECT n, md5(n::text), n % 7 FROM generate_series(1, 300000) AS n"
            export_csv(connection, path, query=query, encoding=encoding)
            result = import_csv(connection, "rows", path, create=True, columns=["a", "b", "c"])
        print(result.rows, peak() - start)
    """
    arguments = json.dumps([database, str(tmp_path / f"numbers.csv{ending}"), encoding])
    output = subprocess.run(
        [sys.executable, "-c", program, arguments], capture_output=True, text=True, check=True
    ).stdout
    rows, megabytes = output.split()
    assert int(rows) == 300_000
    assert float(megabytes) < 80
