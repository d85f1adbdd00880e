"""How a CSV file separates and quotes its values, read exactly as PostgreSQL's COPY reads it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property


def check_character(character: str) -> str:
    """*character* itself.

    :raises ValueError: if COPY cannot take it for a delimiter or quote.
    """
    if len(character) != 1 or not character.isascii() or character in "\r\n\0":
        raise ValueError(f"{character!r} is not one ASCII character other than a line break")
    return character


@dataclass(frozen=True)
class Dialect:
    """The characters that give a CSV file its structure.

    :raises ValueError: for a delimiter or quote that COPY cannot take.
    """

    delimiter: str = ","
    quote: str = '"'
    null: str = ""
    """What an unquoted value must equal to be NULL."""

    def __post_init__(self) -> None:
        check_character(self.delimiter)
        check_character(self.quote)
        if self.delimiter == self.quote:
            raise ValueError(f"delimiter and quote are both {self.quote!r}")

    @cached_property
    def _value(self) -> re.Pattern[bytes]:
        # COPY lets a quote open and close anywhere in a value, not only at its ends.
        delimiter, quote = (re.escape(c.encode()) for c in (self.delimiter, self.quote))
        return re.compile(b"(?:[^%b%b]+|%b[^%b]*%b?)*" % (delimiter, quote, quote, quote, quote))

    @cached_property
    def _quoted(self) -> re.Pattern[str]:
        quote = re.escape(self.quote)
        return re.compile(f"{quote}((?:[^{quote}]|{quote}{quote})*){quote}?")

    def split(self, record: bytes) -> list[bytes]:
        """The values of *record* as they are written, quotes included, its line end left out."""
        record = record.rstrip(b"\r\n")
        pieces = []
        position = 0
        while (match := self._value.match(record, position)) is not None:
            pieces.append(match[0])
            position = match.end() + 1
            if match.end() == len(record):
                break
        return pieces

    def values(self, record: bytes) -> list[str | None]:
        """The values of *record*, unquoted; None for NULL."""
        return [self._unquote(piece.decode("utf-8", "replace")) for piece in self.split(record)]

    def _unquote(self, piece: str) -> str | None:
        if self.quote not in piece:
            return None if piece == self.null else piece
        doubled = self.quote * 2
        return self._quoted.sub(lambda quoted: quoted[1].replace(doubled, self.quote), piece)


def line_end_of(sample: bytes) -> bytes:
    """The last byte of every line in *sample*: a carriage return for old Macintosh files."""
    return b"\r" if b"\r" in sample and b"\n" not in sample else b"\n"


def split_records(blocks: Iterable[bytes], quote: str, line_end: bytes) -> Iterator[list[bytes]]:
    """The records of *blocks* with their line ends, those that a block completes at a time.

    A record that no block completes, because the text ends or its quote stays open, comes last.
    """
    quote_byte = quote.encode()
    line: list[bytes] = []  # the pieces of a line that no block has completed yet
    record: list[bytes] = []  # the lines of a record whose quote is still open
    for block in blocks:
        *complete, rest = block.split(line_end)
        records = []
        for ending in complete:
            line.append(ending)
            text = b"".join(line) + line_end
            line.clear()
            is_open = bool(record) != bool(text.count(quote_byte) & 1)
            record.append(text)
            if not is_open:
                records.append(record[0] if len(record) == 1 else b"".join(record))
                record.clear()
        if rest:
            line.append(rest)
        yield records
    if record or line:
        yield [b"".join(record + line)]


_END_MARKER = re.compile(rb"(?:(?<=[\r\n])|\A)\\\.(?=[\r\n]|\Z)")


def quote_end_markers(blocks: Iterable[bytes], quote: str) -> Iterator[bytes]:
    r"""*blocks* with every record that is a bare ``\.`` put in quotes.

    Before PostgreSQL 18, COPY takes such a record for the end of the data and drops what follows.
    """
    quote_byte = quote.encode()
    is_open = False
    line: list[bytes] = []  # the pieces of a line that no block has completed yet
    for block in itertools.chain(blocks, [None]):
        if block is None:
            lines = b"".join(line)
        elif end := max(block.rfind(b"\n"), block.rfind(b"\r")) + 1:
            lines = b"".join([*line, block[:end]])
            line = [block[end:]]
        else:
            line.append(block)
            continue
        done = 0
        if b"\\." in lines:
            for marker in _END_MARKER.finditer(lines):
                is_open ^= bool(lines.count(quote_byte, done, marker.start()) & 1)
                yield lines[done : marker.start()]
                yield marker[0] if is_open else quote_byte + marker[0] + quote_byte
                done = marker.end()
        is_open ^= bool(lines.count(quote_byte, done) & 1)
        yield lines[done:]
