from __future__ import annotations

import gzip
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from flask_pgmonkey.csv_transfer import CSVTransferError, Dialect, import_csv

from .conftest import Connection

WriteFile = Callable[[str | bytes], Path]
ReadRows = Callable[[str], list[tuple[Any, ...]]]
OLD = (0, "old", 1)


def test_columns_are_found_by_name_in_any_order(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows
) -> None:
    result = import_csv(items, "items", csv_file('Name,ID\n"x, y",1\nz,2\n'))
    assert result.rows == 2
    assert result.header
    assert rows_of("items") == [OLD, (1, "x, y", None), (2, "z", None)]


def test_missing_columns_take_their_default(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows
) -> None:
    import_csv(items, "items", csv_file("price,id\n2.5,1\n,2\n"))
    assert rows_of("items") == [OLD, (1, "unnamed", 2.5), (2, "unnamed", None)]


def test_without_a_header_columns_go_by_position(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows
) -> None:
    assert not import_csv(items, "items", csv_file("1,x,2\n2,y,\n")).header
    import_csv(items, "items", csv_file("z,3\n"), columns=["name", "id"])
    assert rows_of("items") == [OLD, (1, "x", 2), (2, "y", None), (3, "z", None)]


def test_columns_can_rename_a_header(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows
) -> None:
    import_csv(items, "items", csv_file("a,b\n1,x\n"), header=True, columns=["id", "name"])
    assert rows_of("items") == [OLD, (1, "x", None)]


@pytest.mark.parametrize("names", [["id"], ["id", "name", "price"]])
def test_columns_that_do_not_fit_the_file_are_refused(
    items: Connection, csv_file: WriteFile, names: list[str]
) -> None:
    with pytest.raises(CSVTransferError, match=r"--columns names [13] columns, .* has 2"):
        import_csv(items, "items", csv_file("1,x\n"), columns=names)


def test_names_of_the_header_are_mapped_and_left_out(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows
) -> None:
    path = csv_file('Remarks,No,name\n"many\nlines",1,x\n,2,"y,\n"\n')
    import_csv(items, "items", path, mapping={"No": "id", "Remarks": None})
    assert rows_of("items") == [OLD, (1, "x", None), (2, "y,\n", None)]


def test_a_mapping_of_a_name_that_is_not_there_is_refused(
    items: Connection, csv_file: WriteFile
) -> None:
    with pytest.raises(CSVTransferError, match='"Nr", not in the header'):
        import_csv(items, "items", csv_file("No,name\n1,x\n"), mapping={"Nr": "id"})


def test_lines_are_counted_where_values_are_left_out(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows
) -> None:
    path = csv_file('Remarks,id\n"many\n\nlines",1\n"a\nb",2\nc,x\n')
    with pytest.raises(CSVTransferError, match=r"items\.csv, line 7, column \"id\"") as caught:
        import_csv(items, "items", path, mapping={"Remarks": None})
    assert caught.value.line == 7
    assert rows_of("items") == [OLD]


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        (
            "Id,Full Name,Größe,On\n1,x,1.5,2026-01-01\n3000000000,y,2,\n",
            [("id", "bigint"), ("full_name", "text"), ("größe", "numeric"), ("on", "date")],
        ),
        ("1,x\n2,y\n", [("column_1", "integer"), ("column_2", "text")]),
        ("a,b\n,1\n", [("a", "text"), ("b", "integer")]),
    ],
)
def test_create_infers_the_types(
    connection: Connection, csv_file: WriteFile, text: str, columns: list[tuple[str, str]]
) -> None:
    result = import_csv(connection, "new", csv_file(text), create=True)
    assert result.created == dict(columns)
    described = connection.execute(
        "SELECT attname, atttypid::regtype::text FROM pg_attribute"
        " WHERE attrelid = 'new'::regclass AND attnum > 0 ORDER BY attnum"
    ).fetchall()
    assert described == columns


def test_create_leaves_a_table_that_is_there(items: Connection, csv_file: WriteFile) -> None:
    assert import_csv(items, "items", csv_file("id\n1\n"), create=True).created is None


def test_create_can_make_all_text_and_keep_names(
    connection: Connection, csv_file: WriteFile
) -> None:
    path = csv_file('Id,"The ""Name"""\n1,x\n')
    result = import_csv(connection, "new", path, create=True, text=True, keep_names=True)
    assert result.created == {"Id": "text", 'The "Name"': "text"}


@pytest.mark.parametrize("sample", [10, 100])
def test_a_value_beyond_the_sample_makes_its_column_text(
    connection: Connection, csv_file: WriteFile, sample: int
) -> None:
    path = csv_file("id,n\n" + "1,2\n" * 20 + "x,3\n")
    result = import_csv(connection, "new", path, create=True, sample=sample)
    assert result.created == {"id": "text", "n": "integer"}


def test_null_and_the_empty_string_stay_apart(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows
) -> None:
    import_csv(items, "items", csv_file('id,name,price\n1,"",\n'))
    import_csv(items, "items", csv_file("id,name,price\n2,,NULL\n"), null="NULL")
    assert rows_of("items") == [OLD, (1, "", None), (2, "", None)]


def test_truncate_empties_the_table_in_the_same_transaction(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows
) -> None:
    with pytest.raises(CSVTransferError):
        import_csv(items, "items", csv_file("id\nx\n"), truncate=True)
    assert rows_of("items") == [OLD]
    import_csv(items, "items", csv_file("id\n1\n"), truncate=True)
    assert rows_of("items") == [(1, "unnamed", None)]


def test_dry_run_does_everything_and_rolls_it_back(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows
) -> None:
    result = import_csv(items, "items", csv_file("id\n1\n"), truncate=True, dry_run=True)
    assert result.rows == 1
    assert rows_of("items") == [OLD]
    with pytest.raises(CSVTransferError, match="line 2"):
        import_csv(items, "items", csv_file("id\nx\n"), dry_run=True)


@pytest.mark.parametrize("autocommit", [False, True])
def test_a_transaction_of_the_caller_stays_the_callers(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows, autocommit: bool
) -> None:
    items.autocommit = autocommit
    with items.transaction(force_rollback=True):
        import_csv(items, "items", csv_file("id\n1\n"))
    assert rows_of("items") == [OLD]


def test_skip_keeps_the_rejected_rows_beside_the_source(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows
) -> None:
    path = csv_file(
        "id,name,price\n1,a,1\nx,b,1\n2,c,-1\n0,d,1\n3,e\n4,f,1,1\n"
        '"y\n",g,1\n5,"h\n",1\n6,\xff,1\n7,,1\n8,last,x'.encode("latin-1")
    )
    result = import_csv(items, "items", path, encoding="utf-8", on_error="skip")
    assert rows_of("items") == [OLD, (1, "a", 1), (5, "h\n", 1)]
    assert (result.rows, result.rejected) == (2, 9)
    assert result.rejected_file == path.with_name("items.rejected.csv")
    assert result.rejected_file.read_bytes() == (
        "id,name,price\nx,b,1\n2,c,-1\n0,d,1\n3,e\n4,f,1,1\n"
        '"y\n",g,1\n6,\xff,1\n7,,1\n8,last,x\n'.encode("latin-1")
    )
    assert [text.partition(": ")[0].partition(", ")[2] for text in result.rejections] == [
        'line 3, column "id" (integer, value',
        "line 4",
        "line 5",
        "line 6",
        "line 7",
    ]


def test_skip_without_rejected_rows_leaves_no_file(items: Connection, csv_file: WriteFile) -> None:
    path = csv_file("id\n1\n")
    assert import_csv(items, "items", path, on_error="skip").rejected_file is None
    assert [each.name for each in path.parent.iterdir()] == ["items.csv"]


def test_skip_writes_no_file_in_a_dry_run(items: Connection, csv_file: WriteFile) -> None:
    path = csv_file("id\n1\nx\n")
    result = import_csv(items, "items", path, on_error="skip", dry_run=True)
    assert (result.rows, result.rejected, result.rejected_file) == (1, 1, None)
    assert len(result.rejections) == 1
    assert [each.name for each in path.parent.iterdir()] == ["items.csv"]


@pytest.mark.parametrize("bad_of_ten", [1, 5, 10])
def test_skip_finds_every_bad_row_among_many(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows, bad_of_ten: int
) -> None:
    numbers = range(1, 1001)
    bad = {number for number in numbers if number % 10 < bad_of_ten}
    lines = [f"{'x' if number in bad else ''}{number}\n" for number in numbers]
    result = import_csv(items, "items", csv_file("id\n" + "".join(lines)), on_error="skip")
    assert [row[0] for row in rows_of("items")[1:]] == [each for each in numbers if each not in bad]
    assert result.rejected_file is not None
    assert result.rejected_file.read_text() == "id\n" + "".join(
        line for line in lines if line.startswith("x")
    )


def test_skip_finds_rows_that_the_server_does_not_name(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows
) -> None:
    items.execute("CREATE TABLE sales (item integer REFERENCES items)")
    items.commit()
    text = "item\n" + "0\n" * 50 + "7\n" + "0\n" * 49
    result = import_csv(items, "sales", csv_file(text), on_error="skip")
    assert (result.rows, result.rejected) == (99, 1)
    assert "line 52" in result.rejections[0]
    assert "foreign key" in result.rejections[0]
    assert len(rows_of("sales")) == 99


def test_skip_does_not_skip_what_is_no_fault_of_the_row(
    items: Connection, csv_file: WriteFile
) -> None:
    items.execute("CREATE VIEW seen AS SELECT count(*) FROM items")
    items.commit()
    with pytest.raises(psycopg.Error, match="cannot copy to view"):
        import_csv(items, "seen", csv_file("count\n1\n"), on_error="skip")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32", "cp1252"])
def test_text_is_transcoded(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows, encoding: str
) -> None:
    lines = ["id;name\n", *(f"{number};Müller à Besançon\n" for number in range(1, 20_001))]
    result = import_csv(items, "items", csv_file("".join(lines).encode(encoding)))
    assert result.encoding == encoding
    assert result.dialect == Dialect(";")
    rows = rows_of("items")
    assert len(rows) == 20_001
    assert {row[1] for row in rows[1:]} == {"Müller à Besançon"}


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_line_ends_of_every_system_are_read(
    items: Connection, csv_file: WriteFile, rows_of: ReadRows, line_end: str, on_error: Any
) -> None:
    path = csv_file(f'id,name{line_end}1,"a{line_end}b"{line_end}2,c')
    import_csv(items, "items", path, on_error=on_error)
    assert rows_of("items")[1:] == [(1, f"a{line_end}b", None), (2, "c", None)]


def test_a_line_that_older_servers_take_for_the_end_is_a_value(
    connection: Connection, csv_file: WriteFile, rows_of: ReadRows
) -> None:
    connection.execute("CREATE TABLE notes (note text)")
    connection.commit()
    import_csv(connection, "notes", csv_file('note\na\n\\.\n"\\."\nb\n'), delimiter=",")
    assert rows_of("notes") == [("\\.",), ("\\.",), ("a",), ("b",)]


def test_compressed_files_are_read(items: Connection, tmp_path: Path, rows_of: ReadRows) -> None:
    path = tmp_path / "items.csv.gz"
    path.write_bytes(gzip.compress(b"id\n1\n"))
    import_csv(items, "items", path)
    assert rows_of("items")[1:] == [(1, "unnamed", None)]


@pytest.mark.parametrize("ending", ["gz", "zst"])
@pytest.mark.parametrize("damage", ["not compressed", "cut off"])
def test_a_damaged_compressed_file_is_named(
    items: Connection, tmp_path: Path, rows_of: ReadRows, ending: str, damage: str
) -> None:
    from flask_pgmonkey.csv_transfer import export_csv

    path = tmp_path / f"items.csv.{ending}"
    export_csv(items, path, query="SELECT id, md5(id::text) FROM generate_series(1, 9999) AS id")
    whole = path.read_bytes()
    path.write_bytes(b"id\n1\n" if damage == "not compressed" else whole[: len(whole) // 2])
    with pytest.raises(CSVTransferError, match=rf"items\.csv\.{ending}: .* damaged or cut off"):
        import_csv(items, "items", path, mapping={"md5": "name"} if damage == "cut off" else None)
    assert rows_of("items") == [OLD]


def test_a_stream_is_read_and_stays_open(items: Connection, rows_of: ReadRows) -> None:
    stream = io.BytesIO(b"id\n1\n")
    import_csv(items, "items", stream)
    assert not stream.closed
    assert rows_of("items")[1:] == [(1, "unnamed", None)]


def test_progress_ends_with_the_whole_file(items: Connection, csv_file: WriteFile) -> None:
    path = csv_file("id\n" + "".join(f"{number}\n" for number in range(1, 50_001)))
    calls: list[tuple[int, int | None, int]] = []
    import_csv(items, "items", path, progress=lambda *done: calls.append(done))
    size = path.stat().st_size
    assert len(calls) > 1
    assert calls[-1] == (size, size, 50_001)


def test_generated_columns_are_left_to_the_server(
    connection: Connection, csv_file: WriteFile, rows_of: ReadRows
) -> None:
    connection.execute("CREATE TABLE g (a integer, b integer GENERATED ALWAYS AS (a * 2) STORED)")
    connection.commit()
    import_csv(connection, "g", csv_file("1\n2\n"))
    assert rows_of("g") == [(1, 2), (2, 4)]
