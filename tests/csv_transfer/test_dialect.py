from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flask_pgmonkey.csv_transfer.dialect import (
    MOST_VALUES,
    Dialect,
    line_end_of,
    quote_end_markers,
    split_records,
)


def cut(text: bytes, size: int) -> Iterable[bytes]:
    return (text[start : start + size] for start in range(0, len(text), size))


def records_of(text: bytes, size: int = 1000, line_end: bytes = b"\n") -> list[bytes]:
    groups = split_records(cut(text, size), Dialect(), line_end)
    return [record for group in groups for record in group]


@pytest.mark.parametrize(
    ("record", "values"),
    [
        (b"a,b\n", ["a", "b"]),
        (b"a,,\r\n", ["a", None, None]),
        (b'"",x', ["", "x"]),
        (b'"a ""b"", c",d', ['a "b", c', "d"]),
        (b'"two\nlines",x\n', ["two\nlines", "x"]),
        (b'half"quo,ted"x,y', ["halfquo,tedx", "y"]),
        (b'"open,x', ["open,x"]),
        (b"\n", [None]),
    ],
)
def test_values_are_read_as_copy_reads_them(record: bytes, values: list[str | None]) -> None:
    assert Dialect().values(record) == values


def test_null_is_the_unquoted_string_only() -> None:
    assert Dialect(";", "'", "NULL").values(b"NULL;'NULL';") == [None, "NULL", ""]


@pytest.mark.parametrize(
    ("delimiter", "quote"), [(",,", '"'), ("§", '"'), (",", "\n"), (",", ""), (",", ",")]
)
def test_characters_that_copy_cannot_take_are_refused(delimiter: str, quote: str) -> None:
    with pytest.raises(ValueError, match=r"character|both"):
        Dialect(delimiter, quote)


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_records_do_not_depend_on_where_blocks_end(size: int) -> None:
    text = b'a,b\r\n"x\r\ny",1\r\n\r\nlast,"un\nfinished'
    assert records_of(text, size) == [
        b"a,b\r\n",
        b'"x\r\ny",1\r\n',
        b"\r\n",
        b'last,"un\nfinished',
    ]


def test_a_lone_carriage_return_ends_lines_only_where_there_are_no_others() -> None:
    line_end = line_end_of(b"a\rb\r", Dialect())
    assert records_of(b"a\rb\r", line_end=line_end) == [b"a\r", b"b\r"]
    assert line_end_of(b"a\rb\n", Dialect()) == line_end_of(b"a", Dialect()) == b"\n"


def test_a_line_break_within_quotes_ends_no_line() -> None:
    assert line_end_of(b'a\r"x\ny"\rb\r', Dialect()) == b"\r"
    assert line_end_of(b"a\r'x\ny'\rb\r", Dialect(quote="'")) == b"\r"
    assert line_end_of(b'a\r"\\"\n"\rb\r', Dialect(escape="\\")) == b"\r"


@given(st.lists(st.sampled_from([b"a", b'"', b"\n", b",", b"\xc3\xa9"])), st.integers(1, 9))
def test_no_byte_is_lost_between_records(pieces: list[bytes], size: int) -> None:
    text = b"".join(pieces)
    assert b"".join(records_of(text, size)) == text


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 1000])
@pytest.mark.parametrize(
    ("text", "guarded"),
    [
        (b"a\n\\.\nb\n", b'a\n"\\."\nb\n'),
        (b"\\.\r\nb", b'"\\."\r\nb'),
        (b"a\n\\.", b'a\n"\\."'),
        (b'"x\n\\.\ny"\n\\.\n', b'"x\n\\.\ny"\n"\\."\n'),
        (b"\\.x\n\\\\.\n.\n", b"\\.x\n\\\\.\n.\n"),
        (b'"\\."\n', b'"\\."\n'),
    ],
)
def test_only_a_record_that_is_an_end_marker_is_quoted(
    text: bytes, guarded: bytes, size: int
) -> None:
    assert b"".join(quote_end_markers(cut(text, size), Dialect())) == guarded


def _values_by_character(record: str) -> list[str | None]:
    """What COPY does, one character after the other."""
    values: list[str | None] = []
    value, was_quoted, is_open = "", False, False
    position = 0
    while position <= len(record):
        character = record[position : position + 1]
        if not is_open and character in (",", ""):
            values.append(None if not value and not was_quoted else value)
            value, was_quoted = "", False
        elif character == '"' and is_open and record[position + 1 : position + 2] == '"':
            value += '"'
            position += 1
        elif character == '"':
            is_open, was_quoted = not is_open, True
        elif character == "":
            values.append(value)
        else:
            value += character
        position += 1
    return values


@given(st.text(st.sampled_from('a",\n')))
def test_any_record_is_read_as_copy_reads_it(record: str) -> None:
    record = record.rstrip("\n")
    assert Dialect().values(record.encode()) == _values_by_character(record)


def test_a_value_may_hold_any_number_of_delimiters() -> None:
    quoted = b'"' + b"," * 100_000 + b'"'
    assert Dialect().split(b"a," + quoted + b",b\n") == [b"a", quoted, b"b"]
    many = Dialect().split(b'"",' * 20_000)
    assert len(many) == MOST_VALUES + 1
    assert b",".join(many) == b'"",' * 20_000
