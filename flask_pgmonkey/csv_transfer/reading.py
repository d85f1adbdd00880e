"""The text of a CSV file, with its beginning read ahead to learn what it is."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator

from .checking import checked, in_whole_pairs, without_blank_end
from .detection import detect_encoding
from .dialect import NO_QUOTE, Dialect, line_end_of, quote_end_markers, split_records
from .errors import CSVTransferError
from .formats import refuse_other_formats
from .streams import Source, check_encoding, utf8_blocks

SAYS_DELIMITER = re.compile(rb'"?sep=([!#-&(-/:-@[-`{-~\t ])"?(?:\r?\n|\r)', re.IGNORECASE)

MEBIBYTE = 1 << 20
LONGEST_LINE = 16 * MEBIBYTE
"""Bytes: of the first line and record, which are held in memory to learn what the file is."""
LONGEST_RECORD = 64 * MEBIBYTE
"""Bytes: of a record that is held in memory, which PostgreSQL itself need not do."""
BYTES_OF_A_ROW = 1024
"""A generous guess; a sample of the rows asked for is cut off there."""


class CSVText:
    """The text of *source* in UTF-8.

    :param encoding: the encoding of the source; detected if None.
    :param skip: how many lines to leave out at the start; None for the one of Excel's that says
        what the delimiter is.
    :raises CSVTransferError: if there is no text, its first line has no end, or it is not of
        *encoding*.
    """

    def __init__(self, source: Source, encoding: str | None, skip: int | None = None) -> None:
        first = source.read()
        refuse_other_formats(first, source.name)
        self.name: str = source.name
        self.encoding: str = (
            check_encoding(encoding) if encoding else detect_encoding(first, source.name)
        )
        self._blocks: Iterator[bytes] = utf8_blocks(source, first, self.encoding)
        self.skipped: bytes = b""
        """The lines that were left out."""
        self.start: bytes = self._read_lines(1)
        """The first line at least, and most of the time as much as a block holds."""
        self.delimiter: str | None = None
        """What the file says of itself, as Excel writes it."""
        if skip is None and (found := SAYS_DELIMITER.match(self.start)):
            self.delimiter, skip = found[1].decode(), 1
        self.line_end: bytes = line_end_of(self.start, Dialect())
        if skip:
            self.start += self._read_lines(skip + 1 - self.start.count(self.line_end))
            lines = self.start.split(self.line_end, skip)
            self.start = lines.pop() if len(lines) > skip else b""
            self.skipped = b"".join(line + self.line_end for line in lines)
        if not self.start.strip():
            raise CSVTransferError(f"{self.name}: the file is empty", file=self.name)
        self.lines: int = 0
        """How many were read and checked, without those that were left out."""
        self._blocks = itertools.chain([self.start], self._blocks)

    def _read_lines(self, count: int) -> bytes:
        """As many blocks as have *count* ends of lines, if there are so many."""
        begin: list[bytes] = []
        lines = size = 0
        while lines < count and (block := next(self._blocks, None)) is not None:
            begin.append(block)
            lines += block.count(b"\n") or block.count(b"\r")
            size += len(block)
            if lines < count and size > LONGEST_LINE:
                raise self._too_long("line", 1, LONGEST_LINE, "is it a CSV file?")
        return b"".join(begin)

    @property
    def first_line(self) -> int:
        """The number of the line that the first record begins on."""
        return self.skipped.count(self.line_end) + 1

    def check(self, dialect: Dialect, *, reads_end_markers: bool) -> None:
        r"""Let no text pass that COPY would misread, read in *dialect*.

        :param reads_end_markers: whether the server takes a bare ``\.`` for data.
        """

        def refuse(after: bytes, has_blank: bool) -> CSVTransferError:
            line = self.first_line + self.lines - after.count(self.line_end)
            if dialect.quote == NO_QUOTE:
                what = "the text has the character U+0001, which --quote none needs for itself"
            else:
                what = (
                    f"a quote ({dialect.quote}) stands in the middle of a value, or one before it"
                    " stays open; if quotes are plain characters in this file, say --quote none"
                )
                if dialect.escape is None:
                    what += ", if a backslash stands before them, --escape '\\'"
                else:
                    what += ", if they are doubled, --escape double"
                if has_blank:
                    what += ", or else take out the blank beside it"
            return CSVTransferError(f"{self.name}, line {line}: {what}", file=self.name, line=line)

        self.line_end = line_end_of(self.start, dialect)
        self._blocks = checked(
            self._counted(in_whole_pairs(self._blocks, dialect)), dialect, refuse
        )
        if not reads_end_markers:
            self._blocks = quote_end_markers(self._blocks, dialect)

    def _counted(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        for block in blocks:
            self.lines += block.count(self.line_end)
            yield block

    def leave_out_blank_end(self) -> None:
        """Leave out the blank lines after the last record."""
        self._blocks = without_blank_end(self._blocks)

    def look_ahead(self, at_least: int, dialect: Dialect) -> list[list[str | None]]:
        """The values of the first *at_least* records and of those that come in the same block.

        They are fewer where the records are very long. What is read for it stays in memory until
        it is read again.

        :raises CSVTransferError: if the first record has no end.
        """
        seen: list[bytes] = []
        most = max(LONGEST_LINE, at_least * BYTES_OF_A_ROW)
        size = 0

        def remembered() -> Iterator[bytes]:
            for block in self._blocks:
                seen.append(block)
                yield block

        rows: list[list[str | None]] = []
        for records in split_records(remembered(), dialect, self.line_end):
            rows += map(dialect.values, records)
            size += len(seen[-1])
            if len(rows) >= at_least or (rows and size > most):
                break
            if size > most:
                raise self._too_long(
                    "record", self.first_line, LONGEST_LINE, "is its quote closed?"
                )
        self._blocks = itertools.chain(seen, self._blocks)
        return rows

    def blocks(self) -> Iterator[bytes]:
        """All of the text, once."""
        return self._blocks

    def records(self, dialect: Dialect) -> Iterator[list[bytes]]:
        """All of the text, once, in records: those that a block completes at a time.

        :raises LongRecordError: for a record with more than :data:`LONGEST_RECORD` bytes.
        """
        return split_records(self._blocks, dialect, self.line_end, LONGEST_RECORD)

    def long_record(self, line: int) -> CSVTransferError:
        """The error for a :class:`LongRecordError`, whose record begins on *line*."""
        return self._too_long(
            "record",
            line,
            LONGEST_RECORD,
            "is its quote closed? Longer ones can be loaded into a table with all of the file's"
            " columns, without --on-error skip",
        )

    def _too_long(self, what: str, line: int, longest: int, advice: str) -> CSVTransferError:
        return CSVTransferError(
            f"{self.name}, line {line}: the {what} that begins here is longer than"
            f" {longest // MEBIBYTE} MiB; {advice}",
            file=self.name,
            line=line,
        )
