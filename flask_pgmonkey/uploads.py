"""``copy_from()``: what a client sends into a table, as it comes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypedDict, cast

from psycopg import sql
from werkzeug.exceptions import RequestEntityTooLarge

from .csv_transfer import NO_QUOTE, CSVTransferError, import_csv
from .csv_transfer.tables import TableName
from .files import BLOCK_SIZE

if TYPE_CHECKING:
    from .connections.server_connection import ServerConnection

Format = Literal["csv", "text", "binary"]
Columns = Sequence[str] | Mapping[str, str | None]


class CSVOptions(TypedDict, total=False):
    """How to read a CSV file, where that cannot be told: see :func:`import_csv`.

    The :attr:`quote` ``""`` says that quotes are plain characters.
    """

    header: bool | None
    encoding: str | None
    delimiter: str | None
    quote: str | None
    escape: str | None
    null: str
    null_quoted: bool
    decimal_comma: bool
    skip: int
    ignore_rest: bool


class Upload:
    """The bytes that a client sends, in full blocks.

    :param stream: such as Flask's ``request.stream``, or a file of ``request.files``.
    :param max_bytes: how many they may be at most; any number if None.
    """

    def __init__(self, stream: Any, max_bytes: int | None) -> None:
        if not callable(getattr(stream, "read", None)):
            raise TypeError(
                "copy_from() takes a stream of bytes, such as request.stream or a file of"
                f" request.files, not an object of type {type(stream).__name__}"
            )
        self._stream = stream
        self._max_bytes = max_bytes
        self._size = 0
        self.name: str = getattr(stream, "filename", None) or "the upload"
        """What errors call it."""

    def read(self, size: int) -> bytes:
        """The next *size* bytes, fewer at the end alone.

        :raises RequestEntityTooLarge: if there are more in all than there may be.
        """
        pieces: list[bytes] = []
        missing = size
        while missing > 0:
            piece: object = self._stream.read(missing)
            if not isinstance(piece, bytes):
                raise TypeError("copy_from() takes a stream of bytes: open the file with 'rb'")
            if not piece:
                break
            pieces.append(piece)
            missing -= len(piece)
            self._size += len(piece)
            if self._max_bytes is not None and self._size > self._max_bytes:
                raise RequestEntityTooLarge(
                    f"{self.name} has more than the {self._max_bytes:,} bytes that may be sent."
                )
        return b"".join(pieces)


def copy_upload(
    conn: ServerConnection,
    table: str,
    upload: Upload,
    columns: Columns | None,
    format: Format,
    options: CSVOptions,
) -> int:
    """Append the rows of *upload* to *table*, all of them or none, and return how many they are."""
    if isinstance(columns, str):
        raise TypeError("columns= takes names in a list: write columns=['sku', 'price']")
    if unknown := options.keys() - CSVOptions.__annotations__.keys():
        known = ", ".join(CSVOptions.__annotations__)
        raise TypeError(f"copy_from() has no option {min(unknown)!r}: those of CSV are {known}")
    if format not in ("csv", "text", "binary"):
        raise ValueError(f"format={format!r}: write 'csv', 'text' or 'binary', as COPY has them")
    mapping = columns if isinstance(columns, Mapping) else None
    in_order = None if isinstance(columns, Mapping) else columns
    if format == "csv":
        if options.get("quote") == "":
            options = {**options, "quote": NO_QUOTE}
        source = cast("BinaryIO", upload)
        try:
            result = import_csv(conn, table, source, columns=in_order, mapping=mapping, **options)
        except CSVTransferError as error:
            error.args = (_with_parameters(str(error)),)
            raise
        return result.rows
    if options or mapping is not None:
        what = ", ".join(f"{name}=" for name in options) or "columns= with the names of a header"
        raise ValueError(f"{what}: for CSV files alone, and not for format={format!r}")
    return _copy_plain(conn, TableName.parse(table), upload, in_order, format)


def _copy_plain(
    conn: ServerConnection,
    table: TableName,
    upload: Upload,
    columns: Sequence[str] | None,
    format: Literal["text", "binary"],
) -> int:
    names = sql.SQL(" ({})").format(sql.SQL(", ").join(map(sql.Identifier, columns or ())))
    statement = sql.SQL("COPY {}{} FROM STDIN (FORMAT {}, ENCODING 'UTF8')").format(
        table.identifier, names if columns else sql.SQL(""), sql.SQL(format)
    )
    with conn.transaction(), conn.cursor() as cursor:
        with cursor.copy(statement) as copy:
            while block := upload.read(BLOCK_SIZE):
                copy.write(block)
        return cursor.rowcount


# What the engine advises, in the words of the command.
_OPTIONS = (
    (r"; --create makes one", ""),
    (r", without --on-error skip", ""),
    (r"--no-header\b", "header=False"),
    (r"--(header|null-quoted|decimal-comma|ignore-rest)\b", r"\1=True"),
    (r"--quote none\b", 'quote=""'),
    (r"--escape double\b", 'escape=""'),
    (r"--escape '\\'", r'escape="\\\\"'),
    (r"--(columns|null|skip) (?=['\dL])", r"\1="),
    (r"--(columns|encoding|delimiter|quote|escape|null|skip)\b", r"\1="),
)


def _with_parameters(message: str) -> str:
    message = re.sub(r'--columns "([^"]*)"', _as_mapping, message)
    for option, parameter in _OPTIONS:
        message = re.sub(option, parameter, message)
    return re.sub(r"\b[a-z]+-[a-z]+(?==True)", lambda found: found[0].replace("-", "_"), message)


def _as_mapping(option: re.Match[str]) -> str:
    pairs = (pair.rpartition("=") for pair in option[1].split(","))
    shown = (f'"{name}": "{column}"' if column else f'"{name}": None' for name, _, column in pairs)
    return f"columns={{{', '.join(shown)}}}"
