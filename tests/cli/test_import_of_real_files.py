"""Files of real life come in as they are, or the error says how, and what it says works."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from click.testing import CliRunner, Result

from flask_pgmonkey.cli import pgmonkey

from ..servers import Server
from .conftest import write_config

pytestmark = pytest.mark.any_version

Connection = psycopg.Connection[tuple[Any, ...]]
Rows = list[tuple[Any, ...]]
Import = Callable[..., Result]


class Case(NamedTuple):
    """A file, the columns of the table, none for one to be created, and what comes in."""

    columns: str
    content: str | bytes
    words: Sequence[str]
    rows: Rows


@pytest.fixture(scope="module")
def settings(server: Server) -> Iterator[dict[str, Any]]:
    with server.database() as dbname:
        yield server.settings(dbname)


@pytest.fixture
def connection(settings: dict[str, Any]) -> Iterator[Connection]:
    """To a database without tables."""
    with psycopg.connect(**settings, autocommit=True) as connection:
        yield connection
        connection.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


@pytest.fixture
def run(connection: Connection, settings: dict[str, Any], tmp_path: Path) -> Import:
    """Imports a file into the table ``t``, which is made first if it has columns."""
    config = write_config(tmp_path, settings)

    def run(columns: str, content: str | bytes, *words: str) -> Result:
        if columns:
            connection.execute(f"CREATE TABLE IF NOT EXISTS t ({columns})".encode())
        path = tmp_path / "file.csv"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        options = ["--config", str(config), *([] if columns else ["--create"]), *words]
        return CliRunner().invoke(pgmonkey, ["import-csv", "t", str(path), *options])

    return run


def rows_of(connection: Connection) -> Rows:
    return connection.execute("SELECT * FROM t").fetchall()


def remedied(run: Import, connection: Connection, case: Case, told: str) -> None:
    """Import the file of *case*, which ends in an error, with what the error says."""
    result = run(case.columns, case.content)
    assert result.exit_code == 1, result.output
    assert re.search(told, result.stderr), result.stderr
    assert result.stderr.count("\n") == 1
    assert case.words[0] in result.stderr
    if case.columns:
        assert rows_of(connection) == []
    result = run(case.columns, case.content, *case.words)
    assert result.exit_code == 0, result.output
    assert rows_of(connection) == case.rows


TWO = "a text, b text"


@pytest.mark.parametrize(
    "case",
    [
        Case(TWO, 'a,b\n2,"say \\"hi\\" now"\n', [], [("2", 'say "hi" now')]),
        Case(TWO, 'a,b\n2,"say ""hi"" now"\n', [], [("2", 'say "hi" now')]),
        Case(TWO, 'a,b\n2,"C:\\"\n3,"D:\\"\n', [], [("2", "C:\\"), ("3", "D:\\")]),
        Case(TWO, 'a,b\n2,"\\\\"\n3,"\\"x\\""\n', [], [("2", "\\"), ("3", '"x"')]),
        Case(TWO, 'a,b\n"one\ntwo","\\"\n\\","\n', [], [("one\ntwo", '"\n",')]),
        Case(TWO, 'a,b\n1,"x|"y"\n', ["--escape", "|"], [("1", 'x"y')]),
        Case(TWO, "a,b\n1,it's\n", [], [("1", "it's")]),
    ],
)
def test_quotes_within_quotes_come_in_as_they_are_meant(
    run: Import, connection: Connection, case: Case
) -> None:
    result = run(case.columns, case.content, *case.words)
    assert result.exit_code == 0, result.output
    assert rows_of(connection) == case.rows


LATE = "a,b\n" + "1,x\n" * 60_000
"""More than is looked at before the first row goes to the server."""


@pytest.mark.parametrize(
    ("case", "line"),
    [
        (Case(TWO, 'a,b\n20,5" pipe\n3,4" pipe\n', ["--quote", "none"],
              [("20", '5" pipe'), ("3", '4" pipe')]), 2),
        (Case(TWO, 'a,b\n1,x\n20,5" pipe\n', ["--quote", "none"],
              [("1", "x"), ("20", '5" pipe')]), 3),
        (Case(TWO, 'a,b\n1,="007"\n', ["--quote", "none"], [("1", '="007"')]), 2),
        (Case(TWO, 'a,b\n1,"x"y\n', ["--quote", "none"], [("1", '"x"y')]), 2),
        (Case(TWO, 'a,b\n1,"x" \n', ["--quote", "none"], [("1", '"x" ')]), 2),
        (Case(TWO, 'a,b\n1,\\"x\\"\n', ["--quote", "none"], [("1", '\\"x\\"')]), 2),
        (Case(TWO, LATE + '2,"a \\"b\\""\n', ["--escape", "\\"],
              [*[("1", "x")] * 60_000, ("2", 'a "b"')]), 60_002),
    ],
)  # fmt: skip
def test_quotes_out_of_place_end_in_what_to_do(
    run: Import, connection: Connection, case: Case, line: int
) -> None:
    told = rf"file\.csv, line {line}: a quote \(\"\) stands in the middle of a value"
    remedied(run, connection, case, told)


def test_a_blank_beside_a_quote_is_to_be_taken_out(run: Import, connection: Connection) -> None:
    content = 'a,b\n1, "x, y"\n'
    result = run(TWO, content)
    assert result.exit_code == 1
    assert "line 2: a quote" in result.stderr
    assert result.stderr.endswith("or else take out the blank beside it\n")
    assert run(TWO, content.replace(' "', '"')).exit_code == 0
    assert rows_of(connection) == [("1", "x, y")]


def test_a_file_whose_backslashes_are_plain_after_all(run: Import, connection: Connection) -> None:
    """Where an escape was named that is none, the error says how to read doubled quotes."""
    content = 'a,b\n1,"C:\\"\n2,"a ""b"""\n'
    result = run(TWO, content, "--escape", "\\")
    assert result.exit_code == 1
    assert "--escape double" in result.stderr
    assert run(TWO, content, "--escape", "double").exit_code == 0
    assert rows_of(connection) == [("1", "C:\\"), ("2", 'a "b"')]


THREE = "a text, b text, c text"
YEARS = "Country,2019,2020\nFrance,67,68\n"
TIES = "a,b;c\nd,e;g\n"
CP1252 = "a,b\n1,x\n2,café\n".encode("cp1252")


@pytest.mark.parametrize(
    ("case", "told"),
    [
        (Case("", YEARS, ["--header"], [("France", 67, 68)]), "first line may be a header"),
        (Case("", YEARS, ["--no-header"],
              [("Country", 2019, 2020), ("France", 67, 68)]), "first line may be a header"),
        (Case(THREE, YEARS, ["--no-header"],
              [("Country", "2019", "2020"), ("France", "67", "68")]), "first line may be a header"),
        (Case("", "name,city\nAnn,Rome\n", ["--header"], [("Ann", "Rome")]), "may be a header"),
        (Case(TWO, TIES, ["--delimiter", ",", "--no-header"],
              [("a", "b;c"), ("d", "e;g")]), "separated by ',' or by ';'"),
        (Case(TWO, TIES, ["--delimiter", ";", "--no-header"],
              [("a,b", "c"), ("d,e", "g")]), "separated by ',' or by ';'"),
        (Case(TWO, "x;1,5;z\ny;2,5;z\n", ["--delimiter", ",", "--no-header"],
              [("x;1", "5;z"), ("y;2", "5;z")]), "separated by ';' or by ','"),
        (Case(TWO, CP1252, ["--encoding", "cp1252"],
              [("1", "x"), ("2", "café")]), "line 3: .*cp1252"),
        (Case(TWO, "a,b\né,é\n".encode() + b"2,caf\xe9\n", ["--encoding", "cp1252"],
              [("Ã©", "Ã©"), ("2", "café")]), "line 3: .*name the file's encoding with --encoding"),
    ],
)  # fmt: skip
def test_what_nothing_tells_is_asked_for(
    run: Import, connection: Connection, case: Case, told: str
) -> None:
    remedied(run, connection, case, told)


@pytest.mark.parametrize(
    "case",
    [
        Case(TWO, "1,5;2,5\n1,5;3,5\n", [], [("1,5", "2,5"), ("1,5", "3,5")]),
        Case("a text", "a\nb;c,d\n", [], [("b;c,d",)]),
        Case(TWO, "01.02.2024;x\n02.02.2024;y\n", [], [("01.02.2024", "x"), ("02.02.2024", "y")]),
        Case("", "Tag;Wert\n01.02.2024;1.234,50\n", [], [("01.02.2024", "1.234,50")]),
        Case("", "year,n\n2019,5\n2020,6\n", [], [(2019, 5), (2020, 6)]),
    ],
)
def test_what_is_clear_is_not_asked_for(run: Import, connection: Connection, case: Case) -> None:
    result = run(case.columns, case.content, *case.words)
    assert result.exit_code == 0, result.output
    assert rows_of(connection) == case.rows
