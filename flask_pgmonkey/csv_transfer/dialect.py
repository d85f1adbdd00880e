"""How a CSV file separates and quotes its values, read exactly as PostgreSQL's COPY reads it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

MOST_VALUES = 16_384
"""What a record is divided into at most: ten times what a table has columns."""

NO_QUOTE = "\x01"
"""The quote of files in which quotes are plain characters: one that stands in no text."""

ESCAPED_QUOTE = b"\0\1"
"""What stands for it in :meth:`Dialect.neutral`."""


class LongRecordError(Exception):
    """A record that goes on and on, as where a quote stays open."""


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
    escape: str | None = None
    """What stands before a quote within quotes, and before itself; None if quotes are doubled."""

    null_quoted: bool = False
    """Whether a quoted value is NULL too if it equals :attr:`null`."""

    def __post_init__(self) -> None:
        check_character(self.delimiter)
        check_character(self.quote)
        if self.delimiter == self.quote:
            raise ValueError(f"delimiter and quote are both {self.quote!r}")
        if self.escape is not None:
            check_character(self.escape)
            if self.escape in (self.delimiter, self.quote):
                raise ValueError(
                    f"the escape is {self.escape!r}, as the delimiter or the quote; a quote that is"
                    " doubled needs none"
                )

    def neutral(self, text: bytes) -> bytes:
        """*text*, as long as it is, in which every quote opens or closes.

        What is escaped outside of quotes too, which :func:`.checking.checked` refuses.
        """
        if self.escape is None:
            return text
        escape, quote = self.escape.encode(), self.quote.encode()
        return text.replace(2 * escape, b"\0\0").replace(escape + quote, ESCAPED_QUOTE)

    @cached_property
    def _delimiter_or_quoted(self) -> re.Pattern[bytes]:
        # No repeated group, for which the engine would keep a note of each repetition.
        delimiter, quote = (re.escape(c.encode()) for c in (self.delimiter, self.quote))
        return re.compile(b"(%b)|%b[^%b]*%b?" % (delimiter, quote, quote, quote))

    def split(self, record: bytes) -> list[bytes]:
        """The values of *record* as they are written, quotes included, its line end left out.

        If there are more than :data:`MOST_VALUES`, one more holds all the rest.
        """
        record = record.rstrip(b"\r\n")
        delimiter, quote = self.delimiter.encode(), self.quote.encode()
        pieces = record.split(delimiter, MOST_VALUES)
        if quote not in record:
            return pieces
        if len(pieces) > MOST_VALUES:  # Perhaps all of them are within quotes.
            return self._scanned(record)
        # COPY lets a quote open and close anywhere in a value, not only at its ends.
        values: list[bytes] = []
        opened: list[bytes] = []  # the pieces of a value whose quote is still open
        for piece in pieces:
            changes = bool(self.neutral(piece).count(quote) & 1)
            if opened:
                opened.append(piece)
                if changes:
                    values.append(delimiter.join(opened))
                    opened.clear()
            elif changes:
                opened.append(piece)
            else:
                values.append(piece)
        if opened:
            values.append(delimiter.join(opened))
        return values

    def _scanned(self, record: bytes) -> list[bytes]:
        """:meth:`split` without a piece of memory for each delimiter, at half the speed."""
        values: list[bytes] = []
        begin = 0
        for found in self._delimiter_or_quoted.finditer(self.neutral(record)):
            if found.lastindex:
                values.append(record[begin : found.start()])
                begin = found.end()
                if len(values) == MOST_VALUES:
                    break
        values.append(record[begin:])
        return values

    def values(self, record: bytes) -> list[str | None]:
        """The values of *record*, unquoted; None for NULL."""
        return [self._unquote(piece.decode("utf-8", "replace")) for piece in self.split(record)]

    def _unquote(self, piece: str) -> str | None:
        if self.quote not in piece:
            return None if piece == self.null else piece
        value = self._within_quotes(piece)
        return None if self.null_quoted and value == self.null else value

    def _within_quotes(self, piece: str) -> str:
        if self.escape is not None:
            escaped = f"{re.escape(self.escape)}([{re.escape(self.escape + self.quote)}])"
            return re.sub(f"{escaped}|{re.escape(self.quote)}", lambda found: found[1] or "", piece)
        parts = piece.split(self.quote)  # What is outside of quotes, inside, outside …
        for outside in range(2, len(parts) - 1, 2):
            if not parts[outside]:  # Between two quotes: a doubled one.
                parts[outside] = self.quote
        return "".join(parts)


def line_end_of(sample: bytes, dialect: Dialect) -> bytes:
    """The last byte of every line in *sample*: a carriage return for old Macintosh files."""
    outside = b"".join(dialect.neutral(sample).split(dialect.quote.encode())[::2])
    return b"\r" if b"\r" in outside and b"\n" not in outside else b"\n"


def split_records(
    blocks: Iterable[bytes], dialect: Dialect, line_end: bytes, longest: int | None = None
) -> Iterator[list[bytes]]:
    """The records of *blocks* with their line ends, those that a block completes at a time.

    A record that no block completes, because the text ends or its quote stays open, comes last.

    :param longest: how many bytes of a record are held before it counts as endless.
    :raises LongRecordError: for such a record, when all before it have been given.
    """
    quote = dialect.quote.encode()
    line: list[bytes] = []  # the pieces of a line that no block has completed yet
    record: list[bytes] = []  # the lines of a record whose quote is still open
    held = 0
    for block in blocks:
        if longest is not None and held > longest:
            raise LongRecordError
        *complete, rest = block.split(line_end)
        records = []
        for ending in complete:
            line.append(ending)
            text = b"".join(line) + line_end
            line.clear()
            is_open = bool(record) != bool(dialect.neutral(text).count(quote) & 1)
            record.append(text)
            if not is_open:
                records.append(record[0] if len(record) == 1 else b"".join(record))
                record.clear()
        if rest:
            line.append(rest)
        # What was held may be in a record that this block has completed.
        held = held + len(block) if not records else sum(map(len, record)) + len(rest)
        yield records
    if record or line:
        yield [b"".join(record + line)]


_END_MARKER = re.compile(rb"(?:(?<=[\r\n])|\A)\\\.(?=[\r\n]|\Z)")


def quote_end_markers(blocks: Iterable[bytes], dialect: Dialect) -> Iterator[bytes]:
    r"""*blocks* with every record that is a bare ``\.`` put in quotes.

    Before PostgreSQL 18, COPY takes such a record for the end of the data and drops what follows.
    """
    quote = dialect.quote.encode()
    is_open = False
    begins_line = True
    rest = b""  # the start of a line that may become such a record
    for block in itertools.chain(blocks, [None]):
        text = rest + (block or b"")
        rest = b""
        if block is not None:
            last = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
            if text[last:] in (b"\\", b"\\.") and (last or begins_line):
                text, rest = text[:last], text[last:]
        done = 0
        if b"\\." in text:
            for marker in _END_MARKER.finditer(text):
                if not marker.start() and not begins_line:
                    continue
                is_open ^= bool(dialect.neutral(text[done : marker.start()]).count(quote) & 1)
                yield text[done : marker.start()]
                yield marker[0] if is_open else quote + marker[0] + quote
                done = marker.end()
        is_open ^= bool(dialect.neutral(text[done:]).count(quote) & 1)
        yield text[done:]
        if text:
            begins_line = text.endswith((b"\n", b"\r"))
