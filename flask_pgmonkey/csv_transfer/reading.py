"""The text of a CSV file, with its beginning read ahead to learn what it is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from .detection import detect_encoding
from .dialect import Dialect, line_end_of, quote_end_markers, split_records
from .errors import CSVTransferError
from .streams import Source, check_encoding, utf8_blocks


class CSVText:
    """The text of *source* in UTF-8.

    :param encoding: the encoding of the source; detected if None.
    :raises CSVTransferError: if there is no text, or it is not of *encoding*.
    """

    def __init__(self, source: Source, encoding: str | None) -> None:
        first = source.read()
        self.name: str = source.name
        self.encoding: str = check_encoding(encoding) if encoding else detect_encoding(first)
        self._blocks: Iterator[bytes] = utf8_blocks(source, first, self.encoding)
        self.start: bytes = b""
        """The first line at least, and most of the time as much as a block holds."""
        for block in self._blocks:
            self.start += block
            if b"\n" in block or b"\r" in block:
                break
        if not self.start.strip():
            raise CSVTransferError(f"{self.name}: the file is empty", file=self.name)
        self.line_end: bytes = line_end_of(self.start)
        self._blocks = itertools.chain([self.start], self._blocks)

    def quote_end_markers(self, quote: str) -> None:
        r"""Let no server take a bare ``\.`` for the end of the data."""
        self._blocks = quote_end_markers(self._blocks, quote)

    def look_ahead(self, at_least: int, dialect: Dialect) -> list[list[str | None]]:
        """The values of the first *at_least* records and of those that come in the same block.

        What is read for it stays in memory until it is read again.
        """
        seen: list[bytes] = []

        def remembered() -> Iterator[bytes]:
            for block in self._blocks:
                seen.append(block)
                yield block

        rows: list[list[str | None]] = []
        for records in split_records(remembered(), dialect.quote, self.line_end):
            rows += map(dialect.values, records)
            if len(rows) >= at_least:
                break
        self._blocks = itertools.chain(seen, self._blocks)
        return rows

    def blocks(self) -> Iterator[bytes]:
        """All of the text, once."""
        return self._blocks

    def records(self, quote: str) -> Iterator[list[bytes]]:
        """All of the text, once, in records: those that a block completes at a time."""
        return split_records(self._blocks, quote, self.line_end)
