"""Files of real life come in as they are, or the error says how, and what it says works."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
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
        (Case(TWO, "# of today\na;b\n1;x\n", ["--skip", "1"],
              [("1", "x")]), "lines above the header"),
        (Case(TWO, "\n\na,b\n1,x\n", ["--skip", "2"], [("1", "x")]), "lines above the header"),
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


FOUR = "id int, name text, price numeric, day date"
LONG = "x" * 70


@pytest.mark.parametrize(
    ("case", "told"),
    [
        # columns without a name
        (Case(TWO, ",a,b\n0,1,x\n", ["--columns", "1="], [("1", "x")]), "column 1 has no name"),
        (Case(TWO, ",a,b\n0,1,x\n", ["--ignore-rest"], [("1", "x")]), "column 1 has no name"),
        (Case(THREE, ",a,b\n0,1,x\n", ["--columns", "1=c"], [("1", "x", "0")]), "has no name"),
        (Case("", ",n,age\n0,Ann,5\n", ["--columns", "1=row"], [(0, "Ann", 5)]), "has no name"),
        (Case("", ",n,age\n0,Ann,5\n", ["--ignore-rest"], [("Ann", 5)]), "has no name"),
        # trailing delimiters
        (Case(TWO, "a;b;\n1;x;\n", ["--ignore-rest"], [("1", "x")]), "column 3 has no name"),
        (Case(TWO, "a;b;\n1;x;\n", ["--columns", "3="], [("1", "x")]), "column 3 has no name"),
        (Case(TWO, "a;b\n1;x;\n2;y;\n", ["--ignore-rest"], [("1", "x"), ("2", "y")]), "2 names.*3"),
        (Case(TWO, "name,age\n1,Ann,5\n",
              ["--skip", "1", "--no-header", "--columns", "1=,2=a,3=b"],
              [("Ann", "5")]), "first that has no name"),
        (Case(TWO, "name,age\n1,Ann,5\n",
              ["--skip", "1", "--no-header", "--columns", "a,b", "--ignore-rest"],
              [("1", "Ann")]), "2 names.*3 values"),
        (Case(TWO, "1;x;;\n2;y;;\n", ["--ignore-rest"],
              [("1", "x"), ("2", "y")]), "the first record has 4 values"),
        # doubled names
        (Case(TWO, "a,b,a\n1,x,2\n", ["--columns", "3="], [("1", "x")]), "columns 1 and 3 .*both"),
        (Case(THREE, "a,b,a\n1,x,2\n", ["--columns", "3=c"], [("1", "x", "2")]), "1 and 3 .*both"),
        (Case("", "a b,a-b\n1,2\n", ["--columns", "2=c"], [(1, 2)]), 'column "a_b"'),
        (Case("", f"{LONG}1,{LONG}2\n1,2\n", ["--columns", "2=c"], [(1, 2)]), "columns 1 and 2"),
        # names that the table does not have
        (Case(TWO, "a,note\n1,x\n", ["--columns", "2=b"], [("1", "x")]), 'no column "note"'),
        (Case(TWO, "a,note\n1,x\n", ["--columns", "2="], [("1", None)]), 'no column "note"'),
        (Case(TWO, "a,note\n1,x\n", ["--ignore-rest"], [("1", None)]), 'no column "note"'),
        (Case("name text, b text", "b,nmae\n1,x\n", ["--columns", "2=name"],
              [("x", "1")]), 'did you mean "name"'),
        # names that PostgreSQL keeps for itself
        (Case("", "ctid,b\n1,2\n", ["--columns", "1=c"], [(1, 2)]), '"ctid" for itself'),
        (Case("", "XMin,b\n1,2\n", ["--columns", "1=c"], [(1, 2)]), '"xmin" for itself'),
        # values that an option gives a meaning
        (Case(FOUR, '"id","name"\n"1","x"\n"","y"\n', ["--null-quoted"],
              [(1, "x", None, None), (None, "y", None, None)]), 'line 3, column "id"'),
        (Case(FOUR, "id,name\n\\N,x\n", ["--null", "\\N"],
              [(None, "x", None, None)]), r"--null '\\N'"),
        (Case(FOUR, "id;price\n1;1.234,50\n", ["--decimal-comma"],
              [(1, None, Decimal("1234.50"), None)]), "if its comma is a decimal one"),
    ],
)  # fmt: skip
def test_columns_that_are_not_clear_can_be_said(
    run: Import, connection: Connection, case: Case, told: str
) -> None:
    remedied(run, connection, case, told)


@pytest.mark.parametrize(
    "case",
    [
        Case(FOUR, "id;price\n1;1.234,50\n2;-0,5\n3;7\n4;\n", ["--decimal-comma"], [
            (1, None, Decimal("1234.50"), None), (2, None, Decimal("-0.5"), None),
            (3, None, Decimal(7), None), (4, None, None, None)]),
        Case("", "n;price\n1;1.234,50\n2;0,5\n", ["--decimal-comma"],
             [(1, Decimal("1234.50")), (2, Decimal("0.5"))]),
        Case("", "n;price\n1;1.5\n2;0,5\n", ["--decimal-comma", "--header"],
             [(1, "1.5"), (2, "0,5")]),
        Case(FOUR, 'id,price\n1,"2,50"\n', ["--decimal-comma"], [(1, None, Decimal("2.50"), None)]),
        Case(FOUR, '"id","price"\n"1",""\n', ["--decimal-comma", "--null-quoted"],
             [(1, None, None, None)]),
        Case(TWO, "Report\nof today\na,b\n1,x\n", ["--skip", "2"], [("1", "x")]),
        Case(TWO, "Report, of today\r\n\r\na,b\r\n1,x\r\n", ["--skip", "2"], [("1", "x")]),
        Case(TWO, "sep=;\na;b\n1,5;x\n", [], [("1,5", "x")]),
        Case(TWO, '\ufeff"sep=|"\r\na|b\r\n1,5|x\r\n', [], [("1,5", "x")]),
        Case(TWO, "sep=\t\na\tb\n1,5\tx\n", [], [("1,5", "x")]),
        Case(TWO, "sep=;\n1,5;x\n", ["--no-header"], [("1,5", "x")]),
        Case(TWO, "a,b\n1,x\n\n\n", [], [("1", "x")]),
        Case(TWO, "a,b\r\n1,x\r\n\r\n\n", [], [("1", "x")]),
        Case(TWO, "a,b\n" + "1,x\n" * 40_000 + "\n" * 60_000, [], [("1", "x")] * 40_000),
        Case("a text", "a\nx\n\n\n", [], [("x",), (None,), (None,)]),
        Case(TWO, 'a,b\r\n1,"x\ny"\n2,z\r\n', [], [("1", "x\ny"), ("2", "z")]),
        Case(TWO, "a,b\n1,x\r\n2,z\n", [], [("1", "x"), ("2", "z")]),
        Case(f"{LONG[:63]} text", f"{LONG}\n1\n", [], [("1",)]),
        Case(TWO, " a , b \n1,x\n", [], [("1", "x")]),
        Case(TWO, "A Name,b\n1,x\n", ["--columns", "A Name=a"], [("1", "x")]),
        Case(TWO, " A Name ,b\n1,x\n", ["--columns", "A Name=a"], [("1", "x")]),
        Case("a text, n text, b text", "1,2,x\n", ["--no-header", "--columns", "2="],
             [("1", None, "x")]),
        Case(TWO, "a;b\n1;x;\n2;y;\n", ["--columns", "3="], [("1", "x"), ("2", "y")]),
        Case(TWO, "a;b;\n1;x\n2;y;\n", ["--ignore-rest"], [("1", "x"), ("2", "y")]),
        Case("", "2019,b\n5,x\n", ["--header", "--columns", "2019=year"], [(5, "x")]),
    ],
)  # fmt: skip
def test_options_and_usual_slips_are_understood(
    run: Import, connection: Connection, case: Case
) -> None:
    result = run(case.columns, case.content, *case.words)
    assert result.exit_code == 0, result.output
    assert rows_of(connection) == case.rows


@pytest.mark.parametrize("line", ["3", "3,4,y,z", ""])
@pytest.mark.parametrize("columns", [TWO, "b text"])
def test_where_columns_are_left_out_no_value_moves_into_anothers_place(
    run: Import, connection: Connection, line: str, columns: str
) -> None:
    content = f"a,no,b\n1,2,x\n{line}\n5,6,z\n"
    result = run(columns, content, "--ignore-rest")
    assert result.exit_code == 1
    assert "line 3: " in result.stderr
    assert rows_of(connection) == []
    result = run(columns, content, "--ignore-rest", "--on-error", "skip")
    assert result.exit_code == 0, result.output
    assert [row[-1] for row in rows_of(connection)] == ["x", "z"]


def test_a_table_fits_its_own_file_the_second_time(run: Import, connection: Connection) -> None:
    """Names that PostgreSQL cuts off, and those that are made plain, are found again."""
    content = f"{LONG},Full Name,é{LONG}\n1,Ann,x\n"
    for _ in range(2):
        assert run("", content).exit_code == 0
    assert rows_of(connection) == [(1, "Ann", "x")] * 2


def test_a_line_is_counted_as_an_editor_does_after_skipped_ones(
    run: Import, connection: Connection
) -> None:
    for content, words in (("Report\nid,name\n1,x\nz,y\n", ["--skip", "1"]),
                           ("sep=,\nid,name\n1,x\nz,y\n", [])):  # fmt: skip
        for more in ([], ["--ignore-rest", "--on-error", "skip"]):
            result = run(FOUR, content, *words, *more)
            assert 'line 4, column "id"' in result.stderr


def test_rejected_rows_of_a_file_with_skipped_lines_go_in_the_same_way(
    run: Import, connection: Connection, tmp_path: Path
) -> None:
    run(FOUR, "sep=;\nid;name\n1;x\nz;y,z\n", "--on-error", "skip")
    rejected = (tmp_path / "file.rejected.csv").read_text()
    assert rejected == "sep=;\nid;name\nz;y,z\n"
    assert run(FOUR, rejected.replace("\nz", "\n2")).exit_code == 0
    assert rows_of(connection) == [(1, "x", None, None), (2, "y,z", None, None)]


def test_a_quote_that_is_never_closed_may_be_a_plain_character(
    run: Import, connection: Connection
) -> None:
    case = Case(TWO, 'a,b\n1,"x\n2,y\n', ["--quote", "none"], [("1", '"x'), ("2", "y")])
    remedied(run, connection, case, "unterminated CSV quoted field; .*--quote none")


@pytest.mark.parametrize("words", [[], ["--on-error", "skip"]])
def test_a_decimal_point_among_decimal_commas_is_refused(
    run: Import, connection: Connection, words: list[str]
) -> None:
    result = run(FOUR, "id;price\n1;2,5\n3;1.5\n", "--decimal-comma", *words)
    assert result.exit_code == (0 if words else 1)
    assert 'file.csv, line 3: no number with a decimal comma: "1.5"' in result.stderr


@pytest.mark.parametrize("where", ["a,b\n1,x\0y\n", "\0a,b\n1,xy\n", "a,b\n1,xy\n\0\0\0\0"])
@pytest.mark.parametrize("words", [[], ["--encoding", "utf-8"]])
def test_a_nul_is_called_so_and_can_be_taken_out(
    run: Import, connection: Connection, where: str, words: list[str]
) -> None:
    result = run(TWO, where, *words)
    assert result.exit_code == 1
    if not where.startswith("\0") or not words:  # Or else it is part of a name of the header.
        assert "tr -d '\\000'" in result.stderr
    assert run(TWO, where.replace("\0", ""), *words).exit_code == 0
    assert rows_of(connection) == [("1", "xy")]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_text_without_a_mark_is_read_by_itself(
    run: Import, connection: Connection, encoding: str
) -> None:
    assert run(TWO, "a,b\n1,日本\n".encode(encoding)).exit_code == 0
    assert rows_of(connection) == [("1", "日本")]


def test_wide_text_that_does_not_look_so_is_read_when_it_is_said(
    run: Import, connection: Connection
) -> None:
    case = Case(TWO, "a,b".encode("utf-16-le"), ["--encoding", "utf-16-le"], [])
    remedied(run, connection, case, "does not look like UTF-16")


def test_no_advice_is_given_for_a_comma_that_is_not_a_decimal_one(
    run: Import, connection: Connection
) -> None:
    result = run(FOUR, 'id,price\n1,"1,234.50"\n')
    assert result.exit_code == 1
    assert "--decimal-comma" not in result.stderr
