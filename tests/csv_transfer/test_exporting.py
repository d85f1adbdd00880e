from __future__ import annotations

import csv
import gzip
import importlib
import io
import stat
import sys
from itertools import product
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from flask_pgmonkey.csv_transfer import CSVTransferError, Dialect, export_csv, import_csv
from flask_pgmonkey.csv_transfer.exporting import _copy_out

from .conftest import Connection


@pytest.fixture
def pairs(connection: Connection) -> Connection:
    """The connection, and a table ``pairs``."""
    connection.execute("CREATE TABLE pairs (id integer, name text)")
    connection.execute(
        "INSERT INTO pairs VALUES (1, 'a,b'), (2, ''), (3, NULL), (4, E'say \"x\"\\n€')"
    )
    connection.commit()
    return connection


ALL = 'id,name\n1,"a,b"\n2,""\n3,\n4,"say ""x""\n€"\n'


def test_a_table_is_written_whole(pairs: Connection, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    assert export_csv(pairs, path, table="pairs") == 4
    assert path.read_text(encoding="utf-8") == ALL
    assert [each.name for each in tmp_path.iterdir()] == ["pairs.csv"]


def test_a_stream_gets_the_rows_and_stays_open(pairs: Connection) -> None:
    stream = io.BytesIO()
    export_csv(pairs, stream, table="pairs", columns=["name", "id"], where="id < 2 -- not all")
    assert stream.getvalue() == b'name,id\n"a,b",1\n'


def test_a_query_may_hold_what_sql_may_hold(pairs: Connection) -> None:
    stream = io.BytesIO()
    query = "SELECT '100 %s {}' AS \"x %\", id FROM pairs WHERE id % 2 = 1 ORDER BY id; -- odd"
    export_csv(pairs, stream, query=query.replace("; -- odd", " -- odd"))
    export_csv(pairs, stream, query="VALUES (7);  ", header=False)
    assert stream.getvalue() == b"x %,id\n100 %s {},1\n100 %s {},3\n7\n"


def test_the_dialect_is_the_users(pairs: Connection) -> None:
    stream = io.BytesIO()
    dialect = Dialect("\t", "'", "NULL")
    export_csv(pairs, stream, table="pairs", where="id < 4", dialect=dialect, header=False)
    assert stream.getvalue() == b"1\ta,b\n2\t\n3\tNULL\n"


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252"])
def test_text_is_transcoded_with_one_mark(pairs: Connection, encoding: str) -> None:
    stream = io.BytesIO()
    export_csv(pairs, stream, table="pairs", encoding=encoding)
    assert stream.getvalue() == ALL.encode(encoding)


def test_a_character_that_the_encoding_lacks_is_named(pairs: Connection, tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("what was there")
    with pytest.raises(CSVTransferError, match=r"record 5: .*'€' \(U\+20AC\).* latin-1"):
        export_csv(pairs, path, table="pairs", encoding="latin-1")
    assert path.read_text() == "what was there"
    assert [each.name for each in tmp_path.iterdir()] == ["pairs.csv"]
    assert pairs.execute("SELECT 1").fetchone() == (1,)


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_file_is_compressed_by_its_ending(pairs: Connection, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"pairs.csv.{ending}"
    export_csv(pairs, path, table="pairs")
    assert path.read_bytes() != ALL.encode()
    assert import_csv(pairs, "copy", path, create=True).rows == 4
    assert pairs.execute("SELECT * FROM copy EXCEPT SELECT * FROM pairs").fetchall() == []
    if ending == "gz":
        assert gzip.decompress(path.read_bytes()).decode() == ALL


@pytest.fixture
def without_zstd(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    importlib.import_module(name)
    monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("without_zstd")
def test_missing_zstd_says_what_to_install(pairs: Connection, tmp_path: Path) -> None:
    with pytest.raises(CSVTransferError, match=r'pip install "flask-pgmonkey\[zstd\]"'):
        export_csv(pairs, tmp_path / "pairs.csv.zst", table="pairs")
    assert list(tmp_path.iterdir()) == []


def test_what_copy_alone_refuses_is_exported(pairs: Connection) -> None:
    pairs.execute("CREATE VIEW seen AS SELECT id FROM pairs")
    pairs.execute("CREATE TABLE parts (id integer) PARTITION BY RANGE (id)")
    pairs.execute("CREATE TABLE part PARTITION OF parts DEFAULT")
    pairs.execute("INSERT INTO parts VALUES (1)")
    pairs.commit()
    stream = io.BytesIO()
    assert export_csv(pairs, stream, table="seen", header=False) == 4
    assert export_csv(pairs, stream, table="parts") == 1


def test_generated_columns_are_left_out_so_that_the_file_can_be_imported(
    connection: Connection,
) -> None:
    connection.execute("CREATE TABLE g (a integer, b integer GENERATED ALWAYS AS (a * 2) STORED)")
    connection.execute("INSERT INTO g VALUES (1)")
    stream = io.BytesIO()
    export_csv(connection, stream, table="g")
    assert stream.getvalue() == b"a\n1\n"


def test_the_database_is_not_changed(pairs: Connection, tmp_path: Path) -> None:
    path = tmp_path / "deleted.csv"
    with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
        export_csv(pairs, path, query="DELETE FROM pairs RETURNING id")
    assert not path.exists()
    assert pairs.execute("SELECT count(*) FROM pairs").fetchone() == (4,)


def test_an_error_halfway_leaves_the_old_file(pairs: Connection, tmp_path: Path) -> None:
    path = tmp_path / "numbers.csv"
    path.write_text("what was there")
    with pytest.raises(psycopg.errors.DivisionByZero):
        export_csv(pairs, path, query="SELECT 1 / (90000 - n) FROM generate_series(1, 100000) AS n")
    assert path.read_text() == "what was there"
    assert [each.name for each in tmp_path.iterdir()] == ["numbers.csv"]
    assert pairs.execute("SELECT 1").fetchone() == (1,)


def test_an_error_of_progress_stops_the_server(pairs: Connection, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(done: int, total: int | None, rows: int) -> None:
        raise StoppedError

    with pytest.raises(StoppedError):
        export_csv(
            pairs,
            tmp_path / "numbers.csv",
            query="SELECT n FROM generate_series(1, 1000000) AS n",
            progress=stop,
        )
    assert list(tmp_path.iterdir()) == []
    assert pairs.execute("SELECT 1").fetchone() == (1,)


def test_a_new_file_has_the_usual_mode_and_an_old_one_keeps_its_own(
    pairs: Connection, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.touch()
    path = tmp_path / "pairs.csv"
    export_csv(pairs, path, table="pairs")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
    path.chmod(0o640)
    export_csv(pairs, path, table="pairs")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_a_link_goes_on_to_point_to_the_file(pairs: Connection, tmp_path: Path) -> None:
    path, link = tmp_path / "pairs.csv", tmp_path / "link.csv"
    link.symlink_to(path)
    export_csv(pairs, link, table="pairs")
    assert link.is_symlink()
    assert path.read_text(encoding="utf-8") == ALL


def test_a_device_is_written_to_as_it_is(pairs: Connection) -> None:
    assert export_csv(pairs, "/dev/null", table="pairs") == 4
    assert Path("/dev/null").is_char_device()


@pytest.mark.parametrize("target", ["none/pairs.csv", "."])
def test_a_target_that_cannot_be_written_is_named(
    pairs: Connection, tmp_path: Path, target: str
) -> None:
    path = tmp_path / target
    with pytest.raises(OSError) as caught:
        export_csv(pairs, path, table="pairs")
    assert caught.value.filename in (path, str(path))


def test_progress_counts_rows_and_estimates_the_end(pairs: Connection) -> None:
    calls: list[tuple[int, int | None, int]] = []
    stream = io.BytesIO()
    query = "SELECT n FROM generate_series(1, 100000) AS n"
    export_csv(pairs, stream, query=query, header=False, progress=lambda *done: calls.append(done))
    assert len(calls) > 1
    done, total, rows = calls[-1]
    assert (done, rows) == (len(stream.getvalue()), 100_000)
    assert total is not None
    assert total >= done


@pytest.mark.parametrize(
    "query",
    [
        "SELECT 1) TO STDOUT; COPY (SELECT 2",
        "SELECT 1) TO STDOUT; COMMIT; DROP TABLE pairs; COPY (SELECT 2",
        "SELECT 1) TO PROGRAM 'touch /tmp/robbed' --",
        "SELECT 1; COMMIT; DROP TABLE pairs",
        "COMMIT; DROP TABLE pairs; SELECT 1",
        "SELECT 1\n) TO STDOUT; SELECT (2",
    ],
)
@pytest.mark.parametrize("as_condition", [False, True])
@pytest.mark.parametrize("with_progress", [False, True])
def test_a_query_is_one_statement(
    pairs: Connection, query: str, as_condition: bool, with_progress: bool
) -> None:
    stream = io.BytesIO()
    progress = (lambda *_: None) if with_progress else None
    what: dict[str, Any] = {"query": query}
    if as_condition:
        what = {"table": "pairs", "where": query[7:]}
    with pytest.raises((CSVTransferError, psycopg.errors.SyntaxError)):
        export_csv(pairs, stream, progress=progress, **what)
    assert stream.getvalue() == b""
    assert pairs.execute("SELECT count(*) FROM pairs").fetchone() == (4,)


BEYOND_SQL = """
    CREATE SEQUENCE numbers;
    CREATE TABLE ruled (id int);
    CREATE RULE added AS ON INSERT TO ruled DO INSTEAD NOTHING;
    CREATE RULE told AS ON DELETE TO ruled DO INSTEAD NOTIFY told;
    CREATE RULE more AS ON UPDATE TO ruled DO ALSO DELETE FROM pairs;
    CREATE FUNCTION run(text) RETURNS int LANGUAGE plpgsql AS $$ BEGIN EXECUTE $1; RETURN 1; END $$;
    CREATE PROCEDURE leave() LANGUAGE plpgsql AS $$ BEGIN COMMIT; DELETE FROM pairs; END $$;
    PREPARE deletion AS DELETE FROM pairs RETURNING id;
"""


ATTEMPTS = [
    "SELECT run('DELETE FROM pairs')",
    "SELECT run('SET TRANSACTION READ WRITE')",
    "SELECT run('COMMIT')",
    "SELECT run('CREATE TABLE more ()')",
    "SELECT set_config('transaction_read_only', 'off', true), run('DELETE FROM pairs')",
    "WITH freed AS (SELECT set_config('transaction_read_only', 'off', false)) TABLE freed",
    "WITH added AS (INSERT INTO pairs VALUES (9, 'x') RETURNING id) SELECT id FROM added",
    "SELECT nextval('numbers')",
    "SELECT id FROM pairs FOR UPDATE",
    "SELECT id INTO more FROM pairs",
    "SELECT lo_export(lo_from_bytea(0, 'x'), '/tmp/robbed')",
    "COPY pairs TO PROGRAM 'touch /tmp/robbed'",
    "EXECUTE deletion",
    "EXPLAIN ANALYZE DELETE FROM pairs",
    "CALL leave()",
    "DO $$ BEGIN DELETE FROM pairs; END $$",
    "SET transaction_read_only = off",
    "INSERT INTO ruled VALUES (1)",
    "DELETE FROM ruled",
    "UPDATE ruled SET id = 1",
    "SELECT 1 \\; DELETE FROM pairs",
    "SELECT $$a; DELETE FROM pairs",
    "SELECT 1 /* ; DELETE FROM pairs",
    "SELECT 1; -- ; DELETE FROM pairs",
    "SELECT $1",
    "SELECT " + "1+" * 100_000 + "1",
    "SELECT 1\0",
    "SELECT '\ud800'",
]


def test_no_query_changes_anything(pairs: Connection) -> None:
    pairs.execute(BEYOND_SQL)
    pairs.commit()
    for query, progress in product(ATTEMPTS, (None, lambda *_: None)):
        with pytest.raises((CSVTransferError, psycopg.Error)):
            export_csv(pairs, io.BytesIO(), query=query, progress=progress)
        facts = "SELECT count(*), to_regclass('more') FROM pairs"
        assert pairs.execute(facts).fetchone() == (4, None), query[:80]
        pairs.commit()
    assert pairs.execute("SELECT is_called FROM numbers").fetchone() == (False,)
    assert not Path("/tmp/robbed").exists()


def test_a_query_that_ends_its_own_session_is_the_servers_error(pairs: Connection) -> None:
    with pytest.raises(psycopg.errors.AdminShutdown):
        export_csv(pairs, io.BytesIO(), query="SELECT pg_terminate_backend(pg_backend_pid())")


def test_a_query_may_end_in_semicolons(pairs: Connection) -> None:
    stream = io.BytesIO()
    export_csv(pairs, stream, query="SELECT 1 AS one;\n; ")
    assert stream.getvalue() == b"one\n1\n"


def test_several_statements_are_called_so(pairs: Connection) -> None:
    with pytest.raises(CSVTransferError, match="several statements; give one SELECT"):
        export_csv(pairs, io.BytesIO(), query="SELECT 1; SELECT 2")


def test_another_copy_than_the_one_asked_for_ends_the_export(pairs: Connection) -> None:
    statement = sql.SQL("COPY (VALUES (1)) TO STDOUT; COPY (VALUES (2)) TO STDOUT").format()
    with pytest.raises(CSVTransferError, match="began another copy"):
        _copy_out(pairs, statement, lambda row: None, 0, None)
    assert pairs.closed


FORMULAS = ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1", '=HYPERLINK("x")']  # noqa: RUF001


@pytest.mark.parametrize("type_name", ["text", "varchar", "char(20)", "label", "jsonb", "word"])
def test_formulas_become_texts(connection: Connection, type_name: str) -> None:
    connection.execute("CREATE TYPE label AS ENUM ('=1', 'plain')")
    connection.execute("CREATE DOMAIN word AS text")
    connection.execute(
        sql.SQL('CREATE TABLE t (n integer, "=1" {}, "=1 " integer)').format(sql.SQL(type_name))  # pyright: ignore[reportArgumentType]
    )
    dangerous = {"label": ["=1"], "jsonb": ["-1"]}.get(type_name, FORMULAS)
    harmless = {"label": ["plain"], "jsonb": ["1", '"=1"']}.get(type_name, ["a=1", "'", "", " =1"])
    for number, value in enumerate([*dangerous, *harmless, None]):
        connection.execute("INSERT INTO t VALUES (%s, %s, -1)", [number, value])
    stream, plain = io.BytesIO(), io.BytesIO()
    export_csv(connection, stream, table="t", safe_formulas=True)
    export_csv(connection, plain, table="t")
    written = list(csv.reader(io.StringIO(stream.getvalue().decode(), newline="")))
    before = list(csv.reader(io.StringIO(plain.getvalue().decode(), newline="")))
    assert written[0] == ["n", "'=1", "'=1 "]
    for old, (index, text, minus) in zip(before[1:], written[1:], strict=True):
        assert (index, minus) == (old[0], "-1")
        assert text == ("'" + old[1] if int(index) < len(dangerous) else old[1])
    assert written[-1][1] == ""
    assert stream.getvalue().splitlines()[-1].decode().endswith(",,-1"), "NULL is no empty text"


def test_a_query_with_two_columns_of_a_name_is_made_safe(pairs: Connection) -> None:
    stream = io.BytesIO()
    query = "SELECT name AS x, '-'||id AS x FROM pairs WHERE id < 3 ORDER BY id DESC -- last;"
    export_csv(pairs, stream, query=query, safe_formulas=True)
    assert stream.getvalue() == b'x,x\n"",\'-2\n"a,b",\'-1\n'
