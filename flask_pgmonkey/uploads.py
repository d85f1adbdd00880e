"""``copy_from()``: what a client sends into a table, as it comes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, cast

from psycopg import sql
from werkzeug.exceptions import RequestEntityTooLarge

from .csv_transfer import NO_QUOTE, CSVTransferError, import_csv
from .csv_transfer.tables import TableName
from .files import BLOCK_SIZE

if TYPE_CHECKING:
    from .connections.server_connection import ServerConnection

Format = Literal["csv", "text", "binary"]
Columns = Sequence[str] | Mapping[str, str | None]


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
    reading: Mapping[str, Any],
) -> int:
    """Append the rows of *upload* to *table*, all of them or none, and return how many they are.

    :param reading: how to read a CSV file, as :func:`import_csv` takes it. What is None is
        detected.
    """
    mapping = columns if isinstance(columns, Mapping) else None
    in_order = None if isinstance(columns, Mapping) else columns
    if format == "csv":
        if reading["quote"] == "":
            reading = {**reading, "quote": NO_QUOTE}
        source = cast("BinaryIO", upload)
        try:
            result = import_csv(conn, table, source, columns=in_order, mapping=mapping, **reading)
        except CSVTransferError as error:
            error.args = (_with_parameters(str(error)),)
            raise
        return result.rows
    if format not in ("text", "binary"):
        raise ValueError(f"format={format!r}: write 'csv', 'text' or 'binary', as COPY has them")
    for_csv = [f"{name}=" for name, value in reading.items() if value is not None]
    if for_csv or mapping is not None:
        what = ", ".join(for_csv) or "columns= with the names of a header"
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
    (r'--columns "([^"]*)=COLUMN"', r'columns={"\1": "COLUMN"}'),
    (r'--columns "([^"]*)="', r'columns={"\1": None}'),
    (r"--no-header\b", "header=False"),
    (r"--header\b", "header=True"),
    (r"--quote none\b", 'quote=""'),
    (r"--escape double\b", 'escape=""'),
    (r"--escape '\\'", r'escape="\\\\"'),
    (r"--(columns|encoding|delimiter|quote|escape)\b", r"\1="),
)


def _with_parameters(message: str) -> str:
    for option, parameter in _OPTIONS:
        message = re.sub(option, parameter, message)
    return message
