"""What COPY would misread without a word is found, or mended, while the text passes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache

from .dialect import ESCAPED_QUOTE, NO_QUOTE, Dialect


def in_whole_pairs(blocks: Iterable[bytes], dialect: Dialect) -> Iterator[bytes]:
    r"""*blocks* cut so that none ends within ``\r\n`` or an escape and what it escapes."""
    escape = dialect.escape.encode() if dialect.escape else b""
    rest = b""
    for block in blocks:
        text = rest + block
        rest = b""
        if text.endswith(b"\r"):
            rest = b"\r"
        elif escape and text.endswith(escape):
            run = len(text) - len(text.rstrip(escape))
            rest = escape * (run & 1)
        yield text[: len(text) - len(rest)]
    yield rest


def keeps_values_whole(text: bytes, dialect: Dialect, *, is_whole: bool) -> bool:
    """Whether every quote in *text*, the start of a file, opens or closes a whole value.

    :param is_whole: whether it is all of the file, so that every quote closes.
    """
    pieces = dialect.neutral(text).split(dialect.quote.encode())
    if is_whole and not len(pieces) & 1:
        return False
    outside = dialect.quote.encode().join(pieces[::2])
    return _misplaced(pieces, outside, False, b"\n", dialect) is None


def checked(
    blocks: Iterable[bytes], dialect: Dialect, refuse: Callable[[bytes, bool], Exception]
) -> Iterator[bytes]:
    r"""*blocks*, in whole pairs, up to a quote that neither opens nor closes a whole value.

    COPY lets quotes open and close anywhere, and drops them. Where ``\n`` and ``\r\n`` both end
    records, all get the line end of the first, since COPY refuses the others.

    :param refuse: the error for a quote, from what follows it in its block, and whether a blank
        stands beside it.
    """
    quote = dialect.quote.encode()
    is_open = False
    before = b"\n"
    line_end = b""
    for block in blocks:
        begins_open = is_open
        pieces = dialect.neutral(block).split(quote)
        outside = quote.join(pieces[begins_open::2])
        position = _misplaced(pieces, outside, begins_open, before, dialect)
        if position is not None:
            near = block[max(0, position - 1) : position + 2]
            raise refuse(block[position:], b" " in near)
        is_open ^= not len(pieces) & 1
        line_end = line_end or _line_end(outside)
        before = block[-1:] or before
        if _is_mixed(outside, line_end):
            block = b"".join(_mended(block, pieces, begins_open, line_end))
        yield block


def _misplaced(
    pieces: Sequence[bytes], outside: bytes, is_open: bool, before: bytes, dialect: Dialect
) -> int | None:
    """The offset of the first misplaced quote in a text that is *pieces* between quotes.

    :param outside: those that are not within quotes, joined by quotes.
    :param is_open: whether the text begins within quotes.
    :param before: the character before it.
    """
    quote = dialect.quote.encode()
    is_doubled = dialect.escape is None
    if len(pieces) == 1 and (is_open or (before != quote and ESCAPED_QUOTE not in pieces[0])):
        return None
    if dialect.quote == NO_QUOTE:
        return len(pieces[0])
    # Outside of quotes, each quote shown stands for a value within quotes. One that began in the
    # text before began well there.
    begin = dialect.delimiter.encode() + quote if is_open or before == quote else before
    shown = begin + outside
    if is_open ^ (not len(pieces) & 1):
        shown += quote
    if _wrong_neighbour(dialect.delimiter, dialect.quote, is_doubled).search(shown) is None and (
        is_doubled or ESCAPED_QUOTE not in shown
    ):
        return None
    return _first_misplaced(pieces, is_open, before, dialect)


@lru_cache(8)
def _wrong_neighbour(delimiter: str, quote: str, is_doubled: bool) -> re.Pattern[bytes]:
    """A quote with something beside it, outside, that neither ends a value nor is a quote."""
    neighbours = re.escape(f"{delimiter}\r\n{quote if is_doubled else ''}".encode())
    escaped = re.escape(quote.encode())
    return re.compile(
        b"%b(?:(?![%b]|\\Z)|(?<![%b]%b))" % (escaped, neighbours, neighbours, escaped)
    )


def _first_misplaced(
    pieces: Sequence[bytes], is_open: bool, before: bytes, dialect: Dialect
) -> int | None:
    """:func:`_misplaced`, piece by piece."""
    quote = dialect.quote.encode()
    ends = (dialect.delimiter.encode(), b"\r", b"\n", *([quote] if dialect.escape is None else ()))
    offset = 0
    for number, piece in enumerate(pieces):
        if (number & 1) == is_open:
            is_last = number == len(pieces) - 1
            left = quote if number else before
            right = b"\n" if is_last else quote
            if left == quote and (piece[:1] or right) not in ends:
                return max(0, offset - 1)
            if dialect.escape is not None and ESCAPED_QUOTE in piece:
                return offset + piece.index(ESCAPED_QUOTE) + 1
            if not is_last and (piece[-1:] or left) not in ends:
                return offset + len(piece)
        offset += len(piece) + 1
    return None


def _line_end(text: bytes) -> bytes:
    end = text.find(b"\n")
    if end < 0:
        return b""
    return b"\r\n" if text[end - 1 : end] == b"\r" else b"\n"


def _is_mixed(text: bytes, line_end: bytes) -> bool:
    if line_end == b"\n":
        return b"\r" in text and b"\r\n" in text  # The first of which costs next to nothing.
    return line_end == b"\r\n" and text.count(b"\n") != text.count(b"\r\n")


def _mended(
    block: bytes, pieces: Sequence[bytes], is_open: bool, line_end: bytes
) -> Iterator[bytes]:
    done = 0
    for number, piece in enumerate(pieces):
        end = done + len(piece)
        text = block[done:end]  # Not the piece, whose escapes were made neutral.
        if (number & 1) == is_open:
            text = text.replace(b"\r\n", b"\n").replace(b"\n", line_end)
        yield text
        yield block[end : end + 1]  # the quote
        done = end + 1


LONGEST_BLANK = 1 << 16
"""Bytes: of line breaks that are held because they may be the file's end."""


def without_blank_end(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """*blocks* without the blank lines that the last record is followed by.

    There are some still where they are very many.
    """
    held = b""
    for block in blocks:
        body = block.rstrip(b"\r\n")
        if not body and len(held) < LONGEST_BLANK:
            held += block
            continue
        if held:
            yield held
        end = len(body) + (2 if block[len(body) : len(body) + 2] == b"\r\n" else 1)
        yield block[:end]
        held = block[end:]
