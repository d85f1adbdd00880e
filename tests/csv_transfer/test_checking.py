"""What COPY would misread is found wherever it is, however the text is cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from flask_pgmonkey.csv_transfer.checking import checked, in_whole_pairs
from flask_pgmonkey.csv_transfer.dialect import NO_QUOTE, Dialect

pytestmark = pytest.mark.any_version

DOUBLED = Dialect()
ESCAPED = Dialect(escape="\\")
TEXTS = st.text('"",\\\n\rab ', max_size=14)


class RefusedError(Exception):
    pass


def refuse(after: bytes, has_blank: bool) -> RefusedError:
    return RefusedError(after.decode())


def cut(text: str, size: int) -> Iterable[bytes]:
    content = text.encode()
    return (content[begin : begin + size] for begin in range(0, len(content), size))


def line_of_misplaced(text: str, dialect: Dialect) -> int | None:
    """The line of the first quote that neither opens nor closes a whole value, by character."""
    is_open = False
    position = 0
    while position < len(text):
        here = text[position]
        ahead = text[position + 1 : position + 2]
        line = text.count("\n", 0, position) or (
            0 if "\n" in text else text.count("\r", 0, position)
        )
        if (
            is_open
            and here == dialect.escape
            and ahead
            and ahead in (dialect.escape, dialect.quote)
        ):
            position += 1
        elif is_open and here == dialect.quote:
            if dialect.escape is None and ahead == dialect.quote:
                position += 1
            elif ahead in ("", dialect.delimiter, "\n", "\r"):
                is_open = False
            else:
                return line + 1
        elif here == dialect.quote:
            if position and text[position - 1] not in (dialect.delimiter, "\n", "\r"):
                return line + 1
            is_open = True
        position += 1
    return None


@settings(max_examples=1500, deadline=None)
@given(text=TEXTS, size=st.integers(1, 16), dialect=st.sampled_from([DOUBLED, ESCAPED]))
@example(text='a,\\"b\n', size=100, dialect=ESCAPED)
@example(text='"a""b",""\n', size=1, dialect=DOUBLED)
@example(text='"a"\n"b" \n', size=3, dialect=DOUBLED)
def test_a_quote_is_refused_unless_it_opens_or_closes_a_whole_value(
    text: str, size: int, dialect: Dialect
) -> None:
    expected, found = line_of_misplaced(text, dialect), None
    passed = seen = b""

    def remembered() -> Iterator[bytes]:
        nonlocal seen
        for block in in_whole_pairs(cut(text, size), dialect):
            seen += block
            yield block

    try:
        passed = b"".join(checked(remembered(), dialect, refuse))
    except RefusedError as error:
        before = seen.decode().removesuffix(error.args[0])
        found = before.count("\n") + 1
    assert (found is None) == (expected is None)
    if "\r" not in text:
        assert found == expected
        assert found or passed.decode() == text


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(
    ("text", "passed"),
    [
        ('a\r\n"x\ny"\nb\n', 'a\r\n"x\ny"\r\nb\r\n'),
        ('a\n"x\r\ny"\r\nb\r\n', 'a\n"x\r\ny"\nb\n'),
        ('"a\r\n"\nb\r\nc\n', '"a\r\n"\nb\nc\n'),
        ("a\rb\r", "a\rb\r"),
        ('"\r\n', '"\r\n'),
    ],
)
def test_records_get_one_line_end_and_values_keep_theirs(text: str, passed: str, size: int) -> None:
    for dialect in (DOUBLED, ESCAPED):
        blocks = checked(in_whole_pairs(cut(text, size), dialect), dialect, refuse)
        assert b"".join(blocks).decode() == passed


def test_where_quotes_are_plain_characters_only_their_stand_in_is_refused() -> None:
    dialect = Dialect(quote=NO_QUOTE)
    assert b"".join(checked([b'5" pipe,"\n'], dialect, refuse)) == b'5" pipe,"\n'
    with pytest.raises(RefusedError):
        list(checked([b"a\n\x01"], dialect, refuse))
