from __future__ import annotations

import pytest

from flask_pgmonkey.csv_transfer import CSVTransferError
from flask_pgmonkey.csv_transfer.tables import TableName, find_column


@pytest.mark.parametrize(
    ("text", "schema", "table"),
    [
        ("orders", None, "orders"),
        ("Sales.Orders", "Sales", "Orders"),
        ('"we.ird".t', "we.ird", "t"),
        ('s."we.ird"', "s", "we.ird"),
        ('"we.ird"', None, "we.ird"),
        ('"a""b"."c"', 'a"b', "c"),
        ('x"; DROP TABLE users; --', None, 'x"; DROP TABLE users; --'),
        ('"x', None, '"x'),
        ('a."b.c"', "a", "b.c"),
    ],
)
def test_names_are_taken_as_they_are_written(text: str, schema: str | None, table: str) -> None:
    assert TableName.parse(text) == TableName(schema, table)


@pytest.mark.parametrize(
    "text", ["", ".", "a.", ".b", "a.b.c", '"a".', '"a".b.c', '"a"."b"."c"', "a..b"]
)
def test_what_names_no_table_is_refused(text: str) -> None:
    with pytest.raises(CSVTransferError) as caught:
        TableName.parse(text)
    assert str(caught.value).startswith(f"{text!r} is not the name of a table; write ")


def test_a_column_is_found_by_its_exact_name_first() -> None:
    assert find_column("Full Name", ["full_name", "Full Name"]) == "Full Name"
    assert find_column("Full Name", ["full_name"]) == "full_name"
    assert find_column("Full Name", ["fullname"]) is None
