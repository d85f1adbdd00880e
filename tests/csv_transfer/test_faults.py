"""Bad input and broken servers: one clear error, and nothing lost or half done."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from flask_pgmonkey.csv_transfer import CSVTransferError, export_csv, import_csv

from ..servers import PrivateServer
from .conftest import Connection

WriteFile = Callable[[str | bytes], Path]
ReadRows = Callable[[str], list[tuple[Any, ...]]]
OLD = (0, "old", 1)

ROW = 900_000


def long_file(bad: bytes) -> bytes:
    """A header and 1,000,000 rows, *bad* being row 900,000, on line 900,001."""
    return b"id,name\n" + b"1,x\n" * (ROW - 1) + bad + b"1,x\n" * (1_000_000 - ROW)


@pytest.fixture
def readings(connection: Connection) -> Connection:
    """The connection, and a table ``readings`` with one row."""
    connection.execute("CREATE TABLE readings (id integer, name varchar(5))")
    connection.execute("INSERT INTO readings VALUES (0, 'old')")
    connection.commit()
    return connection


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_missing_file(items: Connection, tmp_path: Path, on_error: Any) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        import_csv(items, "items", tmp_path / "none.csv", on_error=on_error)


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\xff\xfe", b"\n", b"\r\n\r\n"])
@pytest.mark.parametrize("create", [False, True])
def test_an_empty_file(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows, content: bytes, create: bool
) -> None:
    with pytest.raises(CSVTransferError, match=r"items\.csv: the file is empty"):
        import_csv(items, "items", csv_file(content), create=create, truncate=True)
    assert rows_of("items") == [OLD]


@pytest.mark.parametrize("content", ["id,name", "id,name\n", "\ufeffid,name\r\n"])
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_header_only(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows, content: str, on_error: Any
) -> None:
    assert import_csv(items, "items", csv_file(content), on_error=on_error).rows == 0
    assert rows_of("items") == [OLD]


@pytest.mark.parametrize(
    ("row", "told"),
    [("2", 'missing data for column "name"'), ("2,x,3", "extra data"), ("", "missing data")],
)
def test_a_ragged_row(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows, row: str, told: str
) -> None:
    with pytest.raises(CSVTransferError, match=rf"items\.csv, line 3: {told}") as caught:
        import_csv(items, "items", csv_file(f"id,name\n1,x\n{row}\n3,y\n"))
    assert caught.value.line == 3
    assert rows_of("items") == [OLD]


def test_an_open_quote(items: Connection, csv_file: WriteFile, rows_of: ReadRows) -> None:
    with pytest.raises(CSVTransferError, match="unterminated CSV quoted field"):
        import_csv(items, "items", csv_file('id,name\n1,"x\n2,y\n'))
    assert rows_of("items") == [OLD]


@pytest.mark.parametrize("name", ["readings", "new"])
def test_an_undecodable_byte_in_row_900_000(
    readings: Connection, csv_file: WriteFile, rows_of: ReadRows, name: str
) -> None:
    with pytest.raises(
        CSVTransferError, match=r"line 900001: invalid byte sequence .* 0xff.*--encoding"
    ) as caught:
        import_csv(readings, name, csv_file(long_file(b"1,\xff\n")), create=True)
    assert caught.value.line == ROW + 1
    assert rows_of("readings") == [(0, "old")]
    assert readings.execute("SELECT to_regclass('new')").fetchone() == (None,)


def test_an_undecodable_byte_in_row_900_000_of_another_encoding(
    readings: Connection, csv_file: WriteFile, rows_of: ReadRows
) -> None:
    path = csv_file(long_file(b"1,\x81\n"))
    with pytest.raises(
        CSVTransferError, match=r"items\.csv, line 900001: the bytes 81 are not cp1252"
    ) as caught:
        import_csv(readings, "readings", path, encoding="cp1252")
    assert caught.value.line == ROW + 1
    assert rows_of("readings") == [(0, "old")]


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-be", "cp932"])
@pytest.mark.parametrize("line_end", ["\n", "\r"])
def test_the_line_of_an_undecodable_byte_is_right_in_every_encoding(
    readings: Connection, csv_file: WriteFile, rows_of: ReadRows, encoding: str, line_end: str
) -> None:
    rows = "".join(f"{number},日本ഊ{line_end}" for number in range(39_999)).encode(
        encoding, "ignore"
    )
    wrong = {"utf-16-le": b"\x00\xd8", "utf-16-be": b"\xd8\x00"}.get(encoding, b"\xff\xff\xff\xff")
    header, rest = (text.encode(encoding) for text in (f"id,name{line_end}", f"x{line_end}" * 9))
    marked = encoding.startswith("utf-")
    mark = "\ufeff".encode(encoding) if marked else b""
    with pytest.raises(CSVTransferError) as caught:
        import_csv(
            readings,
            "readings",
            csv_file(mark + header + rows + wrong + rest),
            encoding=None if marked else encoding,
        )
    assert caught.value.line == 40_001
    assert rows_of("readings") == [(0, "old")]


def test_a_wrong_type_in_row_900_000(
    readings: Connection, csv_file: WriteFile, rows_of: ReadRows
) -> None:
    with pytest.raises(CSVTransferError) as caught:
        import_csv(readings, "readings", csv_file(long_file(b"12.5,x\n")))
    error = caught.value
    path, line, column, value_class = error.file, error.line, error.column, error.value_class
    assert (line, column, value_class) == (ROW + 1, "id", "numeric")
    assert str(error) == (
        f'{path}, line 900001, column "id" (integer, value: numeric): invalid input syntax for type'
        ' integer: "12.5"'
    )
    assert rows_of("readings") == [(0, "old")]


def test_a_wrong_type_in_row_900_000_of_utf16(
    readings: Connection, csv_file: WriteFile, rows_of: ReadRows
) -> None:
    path = csv_file(long_file("1,Größen\n".encode()).decode().encode("utf-16"))
    with pytest.raises(CSVTransferError, match=r"line 900001, column \"name\" .*too long for type"):
        import_csv(readings, "readings", path)
    assert rows_of("readings") == [(0, "old")]


def test_skip_finds_row_900_000(
    readings: Connection, csv_file: WriteFile, rows_of: ReadRows
) -> None:
    path = csv_file(long_file(b"1,\xff\n"))
    result = import_csv(readings, "readings", path, on_error="skip")
    assert (result.rows, result.rejected) == (999_999, 1)
    assert "line 900001: invalid byte" in result.rejections[0]
    assert path.with_name("items.rejected.csv").read_bytes() == b"id,name\n1,\xff\n"


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("id,id", 'columns 1 and 2 of the file both go to the column "id"'),
        ("id,ID", 'columns 1 and 2 of the file both go to the column "id"'),
        ("id,", "column 2 has no name in the header"),
        ('id," "', "column 2 has no name in the header"),
        ("id,label", r'the table items has no column "label", only "id", "name", "price"'),
    ],
)
def test_a_header_that_does_not_name_the_columns(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows, header: str, told: str
) -> None:
    path = csv_file(f"{header}\n1,x\n")
    with pytest.raises(CSVTransferError, match=rf"items\.csv: {told}.*--columns"):
        import_csv(items, "items", path)
    if "label" not in header:
        with pytest.raises(CSVTransferError, match=r"--columns"):
            import_csv(items, "new", path, create=True)
    assert rows_of("items") == [OLD]


def test_a_table_with_an_evil_name(items: Connection, csv_file: WriteFile) -> None:
    name = 'x"; DROP TABLE users; --'
    items.execute("CREATE TABLE users ()")
    items.commit()
    with pytest.raises(CSVTransferError, match="there is no table"):
        import_csv(items, name, csv_file("id\n1\n"))
    assert import_csv(items, name, csv_file("id\n1\n"), create=True).rows == 1
    path = csv_file('"a""; DROP TABLE users; --"\n1\n')
    made = import_csv(items, "evil", path, create=True, keep_names=True).created
    assert made == {'a"; DROP TABLE users; --': "integer"}
    assert export_csv(items, path, table="evil", columns=[*made]) == 1
    assert export_csv(items, path, table=name) == 1
    assert items.execute("SELECT to_regclass('users') IS NOT NULL").fetchone() == (True,)


@pytest.mark.parametrize("name", ["none", "none.items", "public.none"])
def test_no_such_table(items: Connection, csv_file: WriteFile, tmp_path: Path, name: str) -> None:
    with pytest.raises(CSVTransferError, match=f'there is no table "{name}"; .*--create makes'):
        import_csv(items, name, csv_file("id\n1\n"))
    with pytest.raises(CSVTransferError, match=f'there is no table "{name}"'):
        export_csv(items, tmp_path / "none.csv", table=name)
    assert not (tmp_path / "none.csv").exists()


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("item", "items"),
        ("Items", "items"),
        ("itmes", "items"),
        ("public.item", "public.items"),
        ("sold", "shop.sold"),
        ("shop.solds", "shop.sold"),
    ],
)
def test_the_nearest_table_is_offered_and_is_there(
    items: Connection, csv_file: WriteFile, tmp_path: Path, name: str, near: str
) -> None:
    items.execute("CREATE SCHEMA shop; CREATE TABLE shop.sold (id integer, name text)")
    items.commit()
    told = f'there is no table "{name}"; did you mean "{near}"\\?'
    with pytest.raises(CSVTransferError, match=f"{told}; --create makes one$"):
        import_csv(items, name, csv_file("id,name\n1,x\n"))
    with pytest.raises(CSVTransferError, match=f"{told}$"):
        export_csv(items, tmp_path / "out.csv", table=name)
    assert import_csv(items, near, csv_file("id,name\n1,x\n")).rows == 1
    assert export_csv(items, tmp_path / "out.csv", table=near) > 0


def test_names_that_nothing_is_near_to_are_offered_nothing(items: Connection) -> None:
    for name in ("none", "x" * 5000, "x.y"):
        with pytest.raises(CSVTransferError) as caught:
            export_csv(items, "out.csv", table=name)
        assert "mean" not in str(caught.value)


@pytest.mark.parametrize(("name", "near"), [("nam", "name"), ("Twice price", "twice_price")])
def test_the_nearest_column_is_offered_to_an_export(
    items: Connection, tmp_path: Path, name: str, near: str
) -> None:
    items.execute(
        "ALTER TABLE items ADD twice_price numeric GENERATED ALWAYS AS (2 * price) STORED"
    )
    items.commit()
    told = 'the table items has no column "{}", only "id", .*"twice_price"; did you mean "{}"'
    told = told.format(name, near)
    with pytest.raises(CSVTransferError, match=rf"^{told}\?$"):
        export_csv(items, tmp_path / "out.csv", table="items", columns=["id", name])
    for column in (near, "ctid"):
        assert export_csv(items, tmp_path / "out.csv", table="items", columns=["id", column]) == 1


def test_create_without_the_schema(items: Connection, csv_file: WriteFile) -> None:
    with pytest.raises(CSVTransferError, match=r'^schema "none" does not exist; .*schema$'):
        import_csv(items, "none.items", csv_file("id\n1\n"), create=True)
    items.execute("SET search_path = none")
    with pytest.raises(CSVTransferError, match=r"^no schema has been selected.*its schema$"):
        import_csv(items, "new", csv_file("id\n1\n"), create=True)


def test_no_privilege(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows, tmp_path: Path
) -> None:
    items.execute("SET SESSION ROLE pg_monitor")
    items.commit()
    for how in ({"truncate": True}, {"on_error": "skip"}, {}):
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="table items"):
            import_csv(items, "items", csv_file("id\n1\n"), **how)
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="table items"):
        export_csv(items, tmp_path / "out.csv", table="items")
    assert rows_of("items") == [OLD]
    assert [each.name for each in tmp_path.iterdir()] == ["items.csv"]


def test_errors_show_neither_whole_rows_nor_long_values(
    items: Connection, csv_file: WriteFile
) -> None:
    for text in (
        f"id,name\n{'9' * 5000},other\n",
        "id,name\n0,other\n",
        "id,name,price\n1,other,-1\n",
    ):
        with pytest.raises(CSVTransferError) as caught:
            import_csv(items, "items", csv_file(text))
        assert len(str(caught.value)) < 500
        assert "other" not in str(caught.value)


def test_a_deferred_constraint_undoes_everything(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows
) -> None:
    items.execute(
        "CREATE TABLE sales (item integer REFERENCES items DEFERRABLE INITIALLY DEFERRED)"
    )
    items.commit()
    with pytest.raises(psycopg.errors.ForeignKeyViolation):
        import_csv(items, "sales", csv_file("item\n0\n7\n"))
    assert rows_of("sales") == []


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_the_server_restarts_during_an_import(
    private_server: PrivateServer, tmp_path: Path, on_error: Any
) -> None:
    with private_server.connect("app") as admin:
        admin.execute("DROP TABLE IF EXISTS readings")
        admin.execute("CREATE TABLE readings AS SELECT 0 AS id, 'old' AS name")
        admin.execute("ALTER TABLE readings OWNER TO app")
    path = tmp_path / "readings.csv"
    path.write_bytes(long_file(b"x,y\n" if on_error == "skip" else b""))
    restarts: list[int] = []

    def restart(done: int, total: int | None, rows: int) -> None:
        if not restarts and rows > ROW:
            restarts.append(rows)
            private_server.restart()

    with psycopg.connect(**private_server.settings()) as connection:
        with pytest.raises(psycopg.OperationalError):
            import_csv(connection, "readings", path, on_error=on_error, progress=restart)
    with private_server.connect("app") as admin:
        assert admin.execute("SELECT * FROM readings").fetchall() == [(0, "old")]
    assert restarts
    assert [each.name for each in tmp_path.iterdir()] == ["readings.csv"]


def test_the_server_restarts_during_an_export(
    private_server: PrivateServer, tmp_path: Path
) -> None:
    path = tmp_path / "numbers.csv"
    path.write_text("what was there")
    restarts: list[int] = []

    def restart(done: int, total: int | None, rows: int) -> None:
        if not restarts:
            restarts.append(rows)
            private_server.restart()

    with psycopg.connect(**private_server.settings()) as connection:
        query = "SELECT n, md5(n::text) FROM generate_series(1, 1000000) AS n"
        with pytest.raises(psycopg.DatabaseError):
            export_csv(connection, path, query=query, progress=restart)
    assert path.read_text() == "what was there"
    assert [each.name for each in tmp_path.iterdir()] == ["numbers.csv"]


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_rejected_rows_are_as_private_as_their_file(
    items: Connection, csv_file: WriteFile, mode: int
) -> None:
    path = csv_file("id,name\nx,y\n")
    path.chmod(mode)
    treasure = path.with_name("treasure")
    treasure.write_text("ours")
    rejected = path.with_name("items.rejected.csv")
    rejected.symlink_to(treasure)
    umask = os.umask(0)
    try:
        import_csv(items, "items", path, on_error="skip")
    finally:
        os.umask(umask)
    assert rejected.read_bytes() == b"id,name\nx,y\n"
    assert stat.S_IMODE(rejected.lstat().st_mode) == mode
    assert treasure.read_text() == "ours"


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_an_error_that_does_not_lie_in_the_file_blames_no_line(
    items: Connection, csv_file: WriteFile, on_error: Any
) -> None:
    items.execute(
        "CREATE FUNCTION cancel() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_cancel_backend(pg_backend_pid()), pg_sleep(9); RETURN NEW; END'"
    )
    items.execute(
        "CREATE TRIGGER ends BEFORE INSERT ON items FOR EACH ROW EXECUTE FUNCTION cancel()"
    )
    items.commit()
    with pytest.raises(psycopg.errors.QueryCanceled):
        import_csv(items, "items", csv_file("id,name\n1,x\n"), on_error=on_error)
