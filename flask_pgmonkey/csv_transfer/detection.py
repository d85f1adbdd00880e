"""What a sample says about a file: its encoding, its dialect, whether it has a header."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Sequence

from .dialect import Dialect, line_end_of, split_records
from .errors import CSVTransferError
from .inference import TEXT, infer_types, value_class
from .tables import find_column

BYTE_ORDER_MARKS = (  # UTF-32 first: its little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
MULTIBYTE_ENCODINGS = ("cp932", "euc_jp", "gb18030", "euc_kr", "big5")
SINGLE_BYTE_ENCODINGS = (
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257"),
    "koi8_r",
)
LIKELY_ENCODINGS = (*SINGLE_BYTE_ENCODINGS, *MULTIBYTE_ENCODINGS)
"""What CSV files without a mark are written in, the most usual first. Where the detector is left
the choice among all that Python knows, it calls short German or French texts cp775 or cp1006."""

DELIMITERS = ",;\t|"
SAMPLE_SIZE = 30_000
"""Bytes: less than a block holds even of UTF-32, so that a smaller sample is a whole file."""
SAMPLE_RECORDS = 200


def detect_encoding(sample: bytes) -> str:
    """The encoding of a file that begins with *sample*: by its mark, or else the likeliest."""
    for mark, encoding in BYTE_ORDER_MARKS:
        if sample.startswith(mark):
            return encoding
    if b"\0" in sample:
        for encoding in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
            if _decodes(sample, encoding):
                return encoding
    if _decodes(sample, "utf-8"):
        return "utf-8"
    from charset_normalizer import from_bytes  # Costs 30 ms, and most files do not need it.

    telling = b"".join(line for line in sample.splitlines(keepends=True) if not line.isascii())
    ranked = [
        (match.chaos, -match.coherence, LIKELY_ENCODINGS.index(name), name)
        for match in from_bytes(telling, cp_isolation=list(LIKELY_ENCODINGS))
        for name in match.could_be_from_charset
        # In single bytes almost anything decodes: believe those only with a language in them.
        if name in MULTIBYTE_ENCODINGS or (name in SINGLE_BYTE_ENCODINGS and match.coherence)
    ]
    if ranked:
        return min(ranked)[-1]
    return "cp1252" if _decodes(sample, "cp1252") else "utf-8"


def _decodes(sample: bytes, encoding: str) -> bool:
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(sample)
    except UnicodeDecodeError:
        return False
    return "\0" not in text


def detect_dialect(
    sample: bytes,
    columns: Sequence[str] | None,
    *,
    delimiter: str | None,
    quote: str | None,
    null: str,
) -> Dialect:
    """The dialect of a file that begins with *sample*, UTF-8 cut off anywhere.

    It is the one under which the first record names *columns* of the table; else the one that
    gives every record the same number of values, more than one, at best that of the table's
    columns; else the one that divides the first record. Among several, the most usual.
    ``csv.Sniffer`` is no match: it takes any character that comes often enough.

    :param delimiter: what the user said, or None.
    :param quote: likewise.
    :raises ValueError: if what the user said cannot be.
    """
    if delimiter and quote:
        return Dialect(delimiter, quote, null)
    choices = [
        Dialect(each_delimiter, each_quote, null)
        for each_quote in (quote or _likely_quotes(sample))
        for each_delimiter in (delimiter or DELIMITERS)
        if each_delimiter != each_quote
    ]
    by_choice = [(dialect, _sample_rows(sample, dialect)) for dialect in choices]
    for dialect, rows in by_choice:
        if columns and all(name and find_column(name, columns) for name in rows[0]):
            return dialect
    divided = [(dialect, rows) for dialect, rows in by_choice if len(rows[0]) > 1]
    even = [(dialect, rows) for dialect, rows in divided if len({*map(len, rows)}) == 1]
    fitting = [
        (dialect, rows) for dialect, rows in even if columns and len(rows[0]) == len(columns)
    ]
    ragged = [(dialect, rows) for dialect, rows in divided if dialect.quote == choices[0].quote]
    return next(iter(fitting or even or ragged or by_choice))[0]


def _likely_quotes(sample: bytes) -> str:
    first_line = sample.splitlines()[0].strip()
    in_apostrophes = first_line.startswith(b"'") and first_line.endswith(b"'")
    return "'\"" if in_apostrophes else "\"'"


def _sample_rows(sample: bytes, dialect: Dialect) -> list[list[str | None]]:
    groups = split_records([sample[:SAMPLE_SIZE]], dialect.quote, line_end_of(sample))
    records = list(itertools.chain.from_iterable(groups))
    if len(sample) > SAMPLE_SIZE and len(records) > 1:
        records.pop()  # It is cut off.
    return [dialect.values(record) for record in records[:SAMPLE_RECORDS]]


def detect_header(
    rows: Sequence[Sequence[str | None]], columns: Sequence[str] | None, file: str
) -> bool:
    """Whether the first of *rows* names columns.

    It does if it has the name of one of the table's *columns*, or if a word in it stands above
    values that are numbers, dates or the like; it does not if it has such values itself. For a
    table that is yet to be created it does in doubt.

    :raises CSVTransferError: in doubt, where the table exists.
    """
    first, rest = rows[0], rows[1:]
    if columns and any(name and find_column(name, columns) for name in first):
        return True
    if any(value and value_class(value) != TEXT for value in first):
        return False
    below = infer_types(rest, len(first))
    if columns is None or any(found != TEXT for found in below):
        return True
    raise CSVTransferError(
        f"{file}: the first line names no column of the table and may be a header or not; say"
        " --header (and map its names with --columns) or --no-header",
        file=file,
        line=1,
    )
