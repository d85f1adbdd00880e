# ruff: noqa: RUF001
from __future__ import annotations

import pytest

from flask_pgmonkey.csv_transfer.inference import infer_types, value_class

from .conftest import Connection


@pytest.mark.parametrize(
    ("values", "inferred"),
    [
        (["1", "-2", None], "integer"),
        (["1", "2147483648"], "bigint"),
        (["1", "9223372036854775808"], "numeric"),
        (["1.50", "-.5", "1e6", "7"], "numeric"),
        (["t", "F", "true"], "boolean"),
        (["2026-02-28"], "date"),
        (["2026-02-28", "2026-02-28 12:00"], "text"),
        (["2026-02-28 12:00", "2026-02-28 12:00:00.5"], "timestamp"),
        (["2026-02-28 12:00", "2026-02-28 12:00Z"], "text"),
        (["2026-02-28T12:00:00.123Z", "2026-02-28 12:00:00+05:30"], "timestamptz"),
        (["123e4567-e89b-12d3-a456-426614174000"], "uuid"),
        (['{"a": [1, null]}', "[]"], "jsonb"),
        (["007"], "text"),
        (["1", "x"], "text"),
        (["1", "true"], "text"),
        (["1", ""], "text"),
        ([" 1"], "text"),
        (["١"], "text"),
        (["2026-02-30"], "text"),
        (["NaN"], "text"),
        (['{"a": NaN}', "{a}"], "text"),
        (["[" * 100_000], "text"),
        ([r'["\u0000"]'], "text"),
        (["9" * 5000], "numeric"),
        ([None], "text"),
        ([], "text"),
    ],
)
def test_a_column_gets_the_narrowest_type_that_holds_its_values(
    values: list[str | None], inferred: str
) -> None:
    assert infer_types([[value] for value in values], 1) == [inferred]


def test_ragged_rows_do_not_matter() -> None:
    assert infer_types([["1"], ["2", "x", "more"]], 2) == ["integer", "text"]


@pytest.mark.parametrize(
    "value",
    ["-2147483648", "9223372036854775807", ".5", "1e400", "T", "0001-01-01", "2026-01-01 23:59",
     "2026-01-01T00:00:00.000001Z", "2026-01-01 00:00 +0530", '{"a": "é"}', "[1e400]"],
)  # fmt: skip
def test_the_server_takes_what_a_class_promises(connection: Connection, value: str) -> None:
    type_name = value_class(value)
    assert type_name != "text"
    connection.execute(f"SELECT %s::{type_name}".encode(), (value,))
