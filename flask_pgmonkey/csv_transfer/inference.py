"""The narrowest column types that hold a sample of values."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import date, datetime
from typing import Literal, NoReturn

ColumnType = Literal[
    "integer",
    "bigint",
    "numeric",
    "boolean",
    "date",
    "timestamp",
    "timestamptz",
    "uuid",
    "jsonb",
    "json",
    "text",
]
TEXT: Literal["text"] = "text"

_BOOLEAN = re.compile(r"true|false|t|f", re.IGNORECASE)
_INTEGER = re.compile(r"-?(?:0|[1-9]\d*)", re.ASCII)  # A leading zero means a code, not a number.
_NUMERIC = re.compile(r"-?(?:(?:0|[1-9]\d*)(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)
_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIMESTAMP = re.compile(
    r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:?\d{0,2})(?:\.\d{1,6})?( ?(?:Z|[+-]\d\d(?::?\d\d)?))?",
    re.ASCII,
)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

_WIDENINGS: dict[frozenset[ColumnType], ColumnType] = {
    frozenset({"integer", "bigint"}): "bigint",
    frozenset({"integer", "numeric"}): "numeric",
    frozenset({"bigint", "numeric"}): "numeric",
}
WIDER: dict[ColumnType, ColumnType] = {
    "integer": "bigint",
    "bigint": "numeric",
    "jsonb": "json",
}
"""What else may give back the text of values, where a type does not."""


def infer_types(
    rows: Iterable[Sequence[str | None]],
    width: int,
    class_of: Callable[[str], ColumnType] | None = None,
) -> list[ColumnType]:
    """The narrowest type of each of *width* columns that holds all values of *rows*.

    It is text where there are only NULLs. Whether the type gives every value back as the same text
    is for the server to say.

    :param class_of: :func:`value_class`, or what else says the narrowest type of one value.
    """
    class_of = class_of or value_class
    types: list[ColumnType | None] = [None] * width
    for row in rows:
        for index, value in enumerate(row[:width]):
            if value is not None and types[index] != TEXT:
                types[index] = _wider(types[index], class_of(value))
    return [found or TEXT for found in types]


def value_class(value: str) -> ColumnType:
    """The narrowest of the types of :func:`infer_types` that holds *value*."""
    if _INTEGER.fullmatch(value):
        bits = int(value).bit_length() if len(value) < 25 else 64
        return "integer" if bits < 32 else "bigint" if bits < 64 else "numeric"
    if _NUMERIC.fullmatch(value):
        return "numeric"
    if _BOOLEAN.fullmatch(value):
        return "boolean"
    if _DATE.fullmatch(value):
        return "date" if _is_date(value) else TEXT
    if match := _TIMESTAMP.fullmatch(value):
        if not _is_date(match[1]):
            return TEXT
        return "timestamptz" if match[2] else "timestamp"
    if _UUID.fullmatch(value):
        return "uuid"
    if value[:1] in ("{", "[") and _is_json(value):
        return "jsonb"
    return TEXT


FRACTIONS = ("numeric", "real", "double precision")
"""How the types begin of which a decimal comma may be meant."""
_DECIMAL_COMMA = re.compile(r"-?(?:\d+|\d{1,3}(?:\.\d{3})+)(?:,\d+)?", re.ASCII)
DECIMAL_COMMA_SQL = r"^-?(0|[1-9]\d*|[1-9]\d{0,2}(\.\d{3})+)(,\d+)?$"
"""A number with a decimal comma, and perhaps points between its thousands, for the server."""


def decimal_comma_class(value: str) -> ColumnType:
    """:func:`value_class` for files with decimal commas."""
    if not _INTEGER.fullmatch(value):
        if _DECIMAL_COMMA.fullmatch(value):
            return "numeric"
        if _NUMERIC.fullmatch(value):  # With a decimal point after all.
            return TEXT
    return value_class(value)


def with_decimal_point(value: str) -> str | None:
    """*value*, a number with a decimal comma, as PostgreSQL reads it; None if it has a point."""
    if _DECIMAL_COMMA.fullmatch(value):
        return value.replace(".", "").replace(",", ".")
    return None if "." in value else value


def _wider(known: ColumnType | None, other: ColumnType) -> ColumnType:
    if known is None or known == other:
        return other
    return _WIDENINGS.get(frozenset({known, other}), TEXT)


def _is_date(text: str) -> bool:
    try:
        datetime.fromisoformat(text) if len(text) > 10 else date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    return "\\u" not in text  # jsonb refuses some of these escapes; text keeps them all.


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)
