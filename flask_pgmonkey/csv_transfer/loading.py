"""Handing the text of a CSV file to COPY, whole or record by record."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import psycopg
from psycopg import sql

from ..files import new_file, our_file
from ..printable import one_line
from .dialect import Dialect, LongRecordError
from .errors import ROW_ERRORS, line_of, located_error, shortened
from .inference import FRACTIONS, with_decimal_point
from .reading import CSVText
from .tables import TableName

SHOWN_REJECTIONS = 5
LARGEST_PIECE = 1 << 16
"""Records that one COPY takes at most."""


@dataclass(frozen=True)
class Destination:
    """The columns of a table that take the values of a file."""

    connection: psycopg.Connection[Any]
    table: TableName
    columns: Sequence[str | None]
    """One for each column of the file, None for one that is left out."""
    types: Mapping[str, str]
    dialect: Dialect
    file: str
    lines_skipped: int = 0
    decimal_comma: bool = False
    """Whether numbers have one, in columns that take fractions."""

    @cached_property
    def decimal_columns(self) -> list[int]:
        """Which of :attr:`columns` have numbers to be written with a point instead."""
        if not self.decimal_comma:
            return []
        return [
            index
            for index, name in enumerate(self.columns)
            if name is not None and self.types.get(name, "").startswith(FRACTIONS)
        ]

    def copy_statement(self, *, header: bool) -> sql.Composed:
        names = sql.SQL(", ").join(
            sql.Identifier(name) for name in self.columns if name is not None
        )
        return sql.SQL(
            "COPY {} ({}) FROM STDIN (FORMAT csv, HEADER {}, DELIMITER {}, QUOTE {}, NULL {},"
            " ESCAPE {}{}, ENCODING 'UTF8')"
        ).format(
            self.table.identifier,
            names,
            sql.SQL("true" if header else "false"),
            sql.Literal(self.dialect.delimiter),
            sql.Literal(self.dialect.quote),
            sql.Literal(self.dialect.null),
            sql.Literal(self.dialect.escape or self.dialect.quote),
            sql.SQL(", FORCE_NULL ({})").format(names) if self.dialect.null_quoted else sql.SQL(""),
        )

    def located(self, error: psycopg.Error, line: int | None = None) -> Exception:
        """*error* with its place in the file; itself if it does not lie in the file.

        :param line: the line of the file, where it is not the one that the server counted.
        """
        return located_error(
            error,
            file=self.file,
            table=self.table.table,
            types=self.types,
            line=line,
            lines_skipped=self.lines_skipped,
        )


class RejectedFile(NamedTuple):
    """Where the records are kept that the server refuses."""

    path: Path
    mode: int | None
    """Who may read them; None if nobody is to keep them."""


@dataclass
class Loaded:
    """What came of the records of a file."""

    rows: int = 0
    rejected: int = 0
    rejections: list[str] = field(default_factory=list)
    """Where the first few rejected records are, and what the server said of them."""


def copy_whole(
    to: Destination, text: CSVText, *, header: bool, report: Callable[[int], None]
) -> Loaded:
    """Let the server read *text* as it is.

    :param report: is called with the lines read.
    """
    try:
        with to.connection.cursor() as cursor:
            with cursor.copy(to.copy_statement(header=header)) as copy:
                for block in text.blocks():
                    copy.write(block)
                    report(text.lines)
            return Loaded(cursor.rowcount)
    except psycopg.Error as error:
        located = to.located(error)
        if located is error:
            raise
        raise located from error


def copy_records(
    to: Destination,
    text: CSVText,
    *,
    header: bool,
    rejected_file: RejectedFile | None,
    report: Callable[[int], None],
) -> Loaded:
    """Copy piece by piece, so that values can be left out and refused records be kept apart.

    :param rejected_file: where to keep the records that the server refuses, if there are any; if
        None, the first one ends the import.
    :param report: is called with the lines done.
    """
    groups = text.records(to.dialect)
    first = next(group for group in groups if group)
    head = first.pop(0) if header else b""
    with ExitStack() as stack:
        loader = _PieceLoader(to, text.line_end, text.skipped + head, rejected_file, stack)
        try:
            for records in itertools.chain([first], groups):
                loader.load(records)
                report(loader.line)
        except LongRecordError:
            raise text.long_record(loader.line + 1) from None
    return loader.loaded


class _PieceLoader:
    """Loads pieces of a file; halves those that fail, down to the record that is to blame."""

    def __init__(
        self,
        to: Destination,
        line_end: bytes,
        head: bytes,
        rejected_file: RejectedFile | None,
        stack: ExitStack,
    ) -> None:
        self.loaded = Loaded()
        self.line = head.count(line_end)
        """The lines of the file that are done."""
        self._to = to
        self._line_end = line_end
        self._head = head
        self._rejected_file = rejected_file
        self._stack = stack
        self._rejects: BinaryIO | None = None
        self._statement = to.copy_statement(header=False)
        self._kept = [index for index, name in enumerate(to.columns) if name is not None]
        self._reach = LARGEST_PIECE

    def load(self, records: list[bytes]) -> None:
        done = 0
        while done < len(records):
            piece = records[done : done + self._reach]
            error = self._copy(piece)
            if error is None:
                if len(piece) == self._reach:
                    self._reach = min(2 * self._reach, LARGEST_PIECE)
                self.line += self._lines(piece)
                done += len(piece)
            elif len(piece) == 1:
                self.line += self._lines(piece)
                self._reject(piece[0], error)
                done += 1
            else:
                # Smaller pieces where many records are bad, or each would send its piece again.
                self._reach = max(1, min(self._reach, len(piece)) // 2)
                suspect = self._index_of(error, piece)
                self.load(piece[:suspect])
                self.load(piece[suspect : suspect + 1])
                done += suspect + 1

    def _copy(self, piece: list[bytes]) -> psycopg.Error | None:
        """Copy all records of *piece* or none; the error, if it lies in one of them."""
        connection = self._to.connection
        try:
            text = b"".join(map(self._chosen_values, piece))
            with connection.transaction(), connection.cursor() as cursor:
                with cursor.copy(self._statement) as copy:
                    copy.write(text)
                self.loaded.rows += cursor.rowcount
        except psycopg.Error as error:
            if (error.sqlstate or "")[:2] in ROW_ERRORS:
                return error
            raise
        return None

    def _chosen_values(self, record: bytes) -> bytes:
        if len(self._kept) == len(self._to.columns) and not self._to.decimal_columns:
            return record
        values = self._to.dialect.split(record)
        self._check_width(len(values))
        for index in self._to.decimal_columns:
            values[index] = self._with_decimal_point(values[index])
        delimiter = self._to.dialect.delimiter.encode()
        return delimiter.join(values[index] for index in self._kept) + self._line_end

    def _check_width(self, width: int) -> None:
        """Make sure that a record has a value for each column that is kept, and none too many.

        The server would not see it where the values that are left make as many as it expects.

        :raises psycopg.Error: in the server's words.
        """
        if width > len(self._to.columns):
            raise psycopg.errors.BadCopyFileFormat("extra data after last expected column")
        if width <= self._kept[-1]:
            missing = next(self._to.columns[index] for index in self._kept if index >= width)
            raise psycopg.errors.BadCopyFileFormat(f'missing data for column "{missing}"')

    def _with_decimal_point(self, written: bytes) -> bytes:
        (value,) = self._to.dialect.values(written) if written else (None,)
        if value is None or self._to.dialect.quote in value:
            return written
        number = with_decimal_point(value)
        if number is None:
            raise psycopg.errors.InvalidTextRepresentation(
                f'no number with a decimal comma: "{shortened(value)}"'
            )
        quote = self._to.dialect.quote.encode()
        return quote + number.encode() + quote

    def _index_of(self, error: psycopg.Error, piece: list[bytes]) -> int:
        """The record that *error* names; the middle one if it names none, as foreign keys do."""
        line = line_of(error, self._to.table.table)
        if line is not None:
            for index, record in enumerate(piece):
                line -= self._lines([self._chosen_values(record)])
                if line <= 0:
                    return index
        return len(piece) // 2

    def _lines(self, records: list[bytes]) -> int:
        return sum(record.count(self._line_end) or 1 for record in records)

    def _reject(self, record: bytes, error: psycopg.Error) -> None:
        located = self._to.located(error, self.line)
        if self._rejected_file is None:
            raise located from error
        if self._rejects is None:
            path, mode = self._rejected_file
            self._rejects = self._stack.enter_context(
                new_file(os.devnull) if mode is None else our_file(path, mode=mode)
            )
            self._rejects.write(self._head)
        self._rejects.write(record if record.endswith(self._line_end) else record + self._line_end)
        self.loaded.rejected += 1
        if len(self.loaded.rejections) < SHOWN_REJECTIONS:
            self.loaded.rejections.append(one_line(located))
