from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path

import pytest

from flask_pgmonkey.csv_transfer import export_csv, import_csv

from .conftest import Connection

WriteFile = Callable[[str | bytes], Path]


def round_trip(connection: Connection, path: Path, values: list[str]) -> str:
    """The type of the column that *values* get in a new table, which gives them back."""
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([["number", "value"], *enumerate(values)])
    result = import_csv(connection, "new", path, create=True)
    out = io.BytesIO()
    export_csv(connection, out, query="SELECT * FROM new ORDER BY number")
    assert list(csv.reader(io.StringIO(out.getvalue().decode(), newline="")))[1:] == [
        [str(number), value] for number, value in enumerate(values)
    ]
    assert result.created is not None
    return result.created["value"]


@pytest.mark.parametrize(
    ("values", "type_name"),
    [
        (["1", "-5"], "integer"),
        (["1", "2147483648"], "bigint"),
        (["1", "2147483648"] * 6000 + ["9223372036854775808"], "numeric"),
        (["1"] * 12_000 + ["3000000000"], "bigint"),
        (["1"] * 12_000 + ["0.50"], "numeric"),
        (["1.50", "7"], "numeric"),
        (["1E5"], "text"),
        (["1e5", "2"], "text"),
        ([".5"], "text"),
        (["-0"], "text"),
        (["-0.0"], "text"),
        (["1." + "1" * 20_000], "text"),
        (["t", "f"], "boolean"),
        (["T", "F"], "text"),
        (["true", "false"], "text"),
        (["2026-02-28", "0001-01-01"], "date"),
        (["2024-03-31 02:30:00"], "timestamp"),
        (["2024-03-31 02:30"], "text"),
        (["2024-03-31 02:30:00", "2024-03-31 02:30:00.5"], "timestamp"),
        (["2024-03-31 02:30:00.50"], "text"),
        (["2024-03-31T02:30:00"], "text"),
        (["2024-03-31 02:30:00+00"], "timestamptz"),
        (["2024-03-31 02:30:00+02"], "text"),
        (["2024-03-31T02:30:00Z"], "text"),
        (["123e4567-e89b-12d3-a456-426614174000"], "uuid"),
        (["123E4567-E89B-12D3-A456-426614174000"], "text"),
        (['{"a": 1}', "[]"], "jsonb"),
        (['{"a":1}'], "json"),
        (['{"b": 1, "a": 1, "a": 2}'], "json"),
        (["1", "+1"], "text"),
        (["1 "], "text"),
        (["NaN", "1"], "text"),
    ],
)
def test_a_type_gives_every_value_back_as_it_was_written(
    connection: Connection, csv_file: WriteFile, values: list[str], type_name: str
) -> None:
    connection.execute("SET TimeZone = 'UTC'")
    connection.commit()
    assert round_trip(connection, csv_file(""), values) == type_name


def test_a_session_that_shows_dates_its_own_way_keeps_them_as_text(
    connection: Connection, csv_file: WriteFile
) -> None:
    connection.execute("SET DateStyle = 'German'")
    connection.commit()
    assert round_trip(connection, csv_file(""), ["2026-02-28"]) == "text"


def test_columns_that_change_values_do_not_spoil_the_others(
    connection: Connection, csv_file: WriteFile
) -> None:
    """The first rows tell what the last do not keep to, in columns between good ones."""
    width = 9
    rows = [["1"] * width] * 12_000 + [["x" if n % 3 == 0 else "1" for n in range(width)]]
    header = [f"c{n}" for n in range(width)]
    text = "".join(",".join(row) + "\n" for row in [header, *rows])
    created = import_csv(connection, "new", csv_file(text), create=True).created
    assert created == {f"c{n}": "integer" if n % 3 else "text" for n in range(width)}


def test_null_is_of_every_type(connection: Connection, csv_file: WriteFile) -> None:
    path = csv_file('a,b\n1,\n,2026-01-01\n,""\n')
    created = import_csv(connection, "new", path, create=True).created
    assert created == {"a": "integer", "b": "text"}
    path = csv_file("a,b\n1,-\n-,2026-01-01\n")
    created = import_csv(connection, "other", path, create=True, null="-").created
    assert created == {"a": "integer", "b": "date"}
