"""What a sample says about a file: its encoding, its dialect, whether it has a header."""

from __future__ import annotations

import codecs
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence

from .checking import keeps_values_whole
from .dialect import Dialect, line_end_of, split_records
from .errors import NO_NUL, CSVTransferError
from .inference import TEXT, value_class
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


def detect_encoding(sample: bytes, file: str) -> str:
    """The encoding of a file that begins with *sample*: by its mark, or else the likeliest.

    :raises CSVTransferError: if nothing tells.
    """
    for mark, encoding in BYTE_ORDER_MARKS:
        if sample.startswith(mark):
            return encoding
    if b"\0" in sample:
        for encoding in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
            if _decodes(sample, encoding) and _has_line_end(sample, encoding):
                return encoding
        line = sample[: sample.index(b"\0")].count(b"\n") + 1
        raise CSVTransferError(
            f"{file}, line {line}: there is a byte 0x00, and this does not look like UTF-16, which"
            f" --encoding utf-16-le would say; {NO_NUL}",
            file=file,
            line=line,
        )
    if _decodes(sample, "utf-8"):
        return "utf-8"
    good, wrong = _utf8_weight(sample)
    if good > wrong:  # A few bytes of another encoding in UTF-8: an error will say where.
        return "utf-8"
    from charset_normalizer import from_bytes  # Costs 30 ms, and most files do not need it.

    telling = b"".join(line for line in sample.splitlines(keepends=True) if not line.isascii())
    ranked = [
        (match.chaos, -match.coherence, LIKELY_ENCODINGS.index(name), name)
        for match in from_bytes(telling, cp_isolation=list(LIKELY_ENCODINGS))
        for name in match.could_be_from_charset
        # Almost anything decodes: believe only what has words or a language in it.
        if (name in MULTIBYTE_ENCODINGS and _has_words(telling.decode(name, "ignore")))
        or (
            name in SINGLE_BYTE_ENCODINGS
            and match.coherence
            and not _has_odd_words(telling.decode(name, "ignore"))
        )
    ]
    if ranked and 2 * good < wrong:
        return min(ranked)[-1]
    line = sample[: _first_not_utf8(sample)].count(b"\n") + 1
    raise CSVTransferError(
        f"{file}, line {line}: this is not UTF-8, and too little of the file tells what it is; name"
        " its encoding with --encoding, such as cp1252",
        file=file,
        line=line,
    )


_WORDS = re.compile(r"[^\W\d_\x00-\x7f]{2,}")


def _has_words(text: str) -> bool:
    """Whether nearly all that is not ASCII is words, as in Chinese, not a letter here and there."""
    beyond = sum(not character.isascii() for character in text)
    return sum(map(len, _WORDS.findall(text))) >= MOSTLY * beyond > 0


def _has_odd_words(text: str) -> bool:
    """Whether signs and capitals stand amid small letters, as in M§ller or MŸller."""
    amid = [found[0] for found in _AMID_SMALL_LETTERS.finditer(text)]
    odd = sum(not character.isalpha() or character.isupper() for character in amid)
    return odd > (1 - MOSTLY) * len(amid)


_AMID_SMALL_LETTERS = re.compile(r"(?<=[a-z])[^\x00-\x7f\u2019](?=[a-z])")
"""One character that is neither ASCII nor an apostrophe."""


def _has_line_end(sample: bytes, encoding: str) -> bool:
    text = codecs.getincrementaldecoder(encoding)().decode(sample)
    return "\n" in text or "\r" in text


def _first_not_utf8(sample: bytes) -> int:
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        return error.start
    return len(sample)


_UTF8_CHARACTER = re.compile(
    rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}"
)


def _utf8_weight(sample: bytes) -> tuple[int, int]:
    """How many characters beyond ASCII are UTF-8, and how many bytes are of none."""
    rest, good = _UTF8_CHARACTER.subn(b"", sample)
    return good, len(rest.translate(None, bytes(range(128))))


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
    escape: str | None,
    null: str,
    null_quoted: bool,
    file: str,
) -> Dialect:
    """The dialect of a file that begins with *sample*, UTF-8 cut off anywhere.

    It is one under which quotes open and close whole values; at best the one under which the first
    record names *columns* of the table; else one that gives every record the same number of values,
    more than one; else one that divides the first record. Among several it is the one that gives by
    far the most numbers, dates and the like, or else as many values as the table has columns.
    ``csv.Sniffer`` is no match: it takes any character that comes often enough.

    :param delimiter: what the user said, or None.
    :param quote: likewise.
    :param escape: likewise; nothing, or the quote itself, if quotes are doubled.
    :raises ValueError: if what the user said cannot be.
    :raises CSVTransferError: if several are as likely.
    """
    choices = [
        Dialect(each_delimiter, each_quote, null, each_escape, null_quoted)
        for each_quote in (quote or _likely_quotes(sample))
        for each_escape in _likely_escapes(sample, each_quote, escape)
        for each_delimiter in (delimiter or DELIMITERS)
        if each_delimiter not in (each_quote, each_escape)
    ]
    if len(choices) == 1:
        return choices[0]
    if not choices:  # What the user said cannot be; let it say why.
        return Dialect(delimiter or ",", quote or '"', null, escape or None, null_quoted)
    begin = sample[:SAMPLE_SIZE]
    is_whole = len(sample) <= SAMPLE_SIZE
    clean = [each for each in choices if keeps_values_whole(begin, each, is_whole=is_whole)]
    by_choice = [(dialect, _sample_rows(sample, dialect)) for dialect in clean or choices]
    named = [
        (dialect, rows)
        for dialect, rows in by_choice
        if columns and all(name and find_column(name, columns) for name in rows[0])
    ]
    if named:
        return next((dialect for dialect, rows in named if _is_even(rows)), named[0][0])
    divided = [(dialect, rows) for dialect, rows in by_choice if len(rows[0]) > 1]
    even = [(dialect, rows) for dialect, rows in divided if _is_even(rows)]
    return _likeliest(even or divided or by_choice[:1], columns, file)


def _likeliest(
    choices: Sequence[tuple[Dialect, list[list[str | None]]]],
    columns: Sequence[str] | None,
    file: str,
) -> Dialect:
    """The dialect that most speaks for, among some with the rows that they give.

    :raises CSVTransferError: if as much speaks for another.
    """
    # Quotes and escapes come in the order of their likelihood; delimiters are weighed.
    first, _ = choices[0]
    rivals = [
        (dialect, rows)
        for dialect, rows in choices
        if (dialect.quote, dialect.escape) == (first.quote, first.escape)
    ]
    fitting = [dialect for dialect, rows in rivals if columns and len(rows[0]) == len(columns)]
    ranked = sorted(rivals, key=lambda each: -_typed_share(each[1], each[0]))
    likeliest = ranked[0][0]
    shares = [_typed_share(rows, dialect) for dialect, rows in ranked]
    is_clear = len(shares) == 1 or shares[0] >= shares[1] + CLEAR_LEAD
    if not is_clear and len(fitting) == 1:
        likeliest, is_clear = fitting[0], True
    if is_clear and (not fitting or likeliest in fitting):
        return likeliest
    other = next(each for each in (*fitting, *(each for each, _ in ranked)) if each != likeliest)
    raise CSVTransferError(
        f"{file}: the values may be separated by {likeliest.delimiter!r} or by"
        f" {other.delimiter!r}; say which with --delimiter",
        file=file,
        line=1,
    )


CLEAR_LEAD = 0.1
"""Of the values, how many more must be numbers, dates and the like for a delimiter to be clear."""

MOSTLY = 0.9
"""How much of a column's values must be numbers, dates and the like, for all but slips to be."""

_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+", re.ASCII)


def _typed_share(rows: Sequence[Sequence[str | None]], dialect: Dialect) -> float:
    """How much of the values under *dialect* is numbers, dates and the like."""
    values = [value for row in rows for value in row if value]
    typed = sum(
        value_class(value) not in (TEXT, "boolean")  # It may be the letter t or f.
        or (dialect.delimiter != "," and _DECIMAL_COMMA.fullmatch(value) is not None)
        for value in values
    )
    return typed / len(values) if values else 0.0


def _is_even(rows: Sequence[Sequence[str | None]]) -> bool:
    widths = [len(row) for row in rows]
    while len(widths) > 1 and rows[len(widths) - 1] == [None]:  # A blank line at the end.
        widths.pop()
    return len({*widths}) == 1


def _likely_escapes(sample: bytes, quote: str, escape: str | None) -> Iterable[str | None]:
    if escape is not None:
        return [None if escape == quote else escape or None]
    return [None, "\\"] if b"\\" + quote.encode() in sample else [None]


def _likely_quotes(sample: bytes) -> str:
    first_line = sample.splitlines()[0].strip()
    in_apostrophes = first_line.startswith(b"'") and first_line.endswith(b"'")
    return "'\"" if in_apostrophes else '"'


def _sample_rows(sample: bytes, dialect: Dialect) -> list[list[str | None]]:
    groups = split_records([sample[:SAMPLE_SIZE]], dialect, line_end_of(sample, dialect))
    records = list(itertools.chain.from_iterable(groups))
    if len(sample) > SAMPLE_SIZE and len(records) > 1:
        records.pop()  # It is cut off.
    return [dialect.values(record) for record in records[:SAMPLE_RECORDS]]


def detect_header(
    rows: Sequence[Sequence[str | None]], columns: Sequence[str] | None, file: str, line: int = 1
) -> bool:
    """Whether the first of *rows* names columns.

    It does if it has the name of one of the table's *columns*. Else a word in it that stands above
    little but numbers, dates or the like speaks for it, and such a value against it, unless the
    record looks like the head of a cross table, as ``Country,2019,2020`` does.

    :raises CSVTransferError: if there is as much for it as against it.
    """
    first, rest = rows[0], rows[1 : SAMPLE_RECORDS + 1]
    if columns and any(name and find_column(name, columns) for name in first):
        return True
    below = [_most_common_kind(rest, index) for index in range(len(first))]
    kinds = [_kind_of(value) if value else None for value in first]
    names = sum(kind == "word" and down in VALUES for kind, down in zip(kinds, below, strict=True))
    values = sum(
        kind == "value" or kind == down == "number" for kind, down in zip(kinds, below, strict=True)
    )
    if values and _heads_cross_table(first, rest):
        values = 0
    if names != values:
        return names > values
    raise CSVTransferError(
        f"{file}: the first line may be a header or not; say --header (and map names that the table"
        " does not have with --columns) or --no-header, or leave out lines above the header with"
        " --skip LINES",
        file=file,
        line=line,
    )


VALUES = ("value", "number")
_NUMBERS = re.compile(r"[+-]?[$€£]? ?\d[\d.,:/' -]*[%€$£]?", re.ASCII)
"""Dates, times, sums and the like as people write them all over the world."""


def _kind_of(text: str) -> str:
    """``value`` if a type holds *text*, ``number`` if it is none but digits and marks, ``word``."""
    if value_class(text) != TEXT or _DECIMAL_COMMA.fullmatch(text):
        return "value"
    return "number" if _NUMBERS.fullmatch(text) else "word"


def _most_common_kind(rows: Sequence[Sequence[str | None]], index: int) -> str | None:
    """The kind of nearly all of the values in a column, else ``word``; None if there are none."""
    values = [row[index] for row in rows if len(row) > index]
    kinds = Counter(_kind_of(value) for value in values if value)
    if not kinds:
        return None
    if kinds["value"] + kinds["number"] < MOSTLY * kinds.total():
        return "word"
    return "value" if kinds["value"] >= kinds["number"] else "number"


def _heads_cross_table(first: Sequence[str | None], rest: Sequence[Sequence[str | None]]) -> bool:
    """Whether all but the first value are years, or numbers in sequence, unlike those below."""

    def series(row: Sequence[str | None]) -> str | None:
        numbers = [int(value) for value in row[1:] if value and _NUMBER.fullmatch(value)]
        if len(numbers) != len(row) - 1 or not numbers:
            return None
        if all(1800 <= each < 2200 for each in numbers):
            return "years"
        in_sequence = numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        return "sequence" if in_sequence and len(numbers) > 1 else None

    is_label = first[0] is None or value_class(first[0]) == TEXT
    found = series(first)
    is_common = bool(rest) and all(series(row) == found for row in rest)
    return is_label and found is not None and not is_common


_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
