"""CSV files into tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import psycopg
from psycopg import sql

from .columns import columns_by_position, columns_of_header, is_position, with_unnamed
from .creating import create_table, settle_types
from .detection import detect_dialect, detect_header
from .dialect import Dialect
from .inference import TEXT, ColumnType, decimal_comma_class, infer_types, value_class
from .loading import Destination, RejectedFile, copy_records, copy_whole
from .reading import CSVText
from .sequences import AdvancedSequence, advance_sequences
from .streams import Progress, open_source, without_compression
from .tables import (
    TableName,
    check_text,
    column_types,
    no_such_table,
)

ROWS_COMPARED = 2
"""How many records are looked at, with all that come in the same block."""
READS_END_MARKERS = 180000
r"""The first server version that takes a bare ``\.`` in CSV for data."""


@dataclass(frozen=True)
class ImportResult:
    """What an import did, and how it read the file."""

    rows: int
    encoding: str
    dialect: Dialect
    header: bool
    created: Mapping[str, str] | None
    """The columns and types of the table that was made; None if there was one."""
    sequences: Sequence[AdvancedSequence]
    """Those that were behind the values of the file."""
    rejected: int
    rejections: Sequence[str]
    """Where the first few rejected records are, and what the server said of them."""
    rejected_file: Path | None
    """The file that keeps them; None if there are none, and after a dry run."""


def import_csv(
    connection: psycopg.Connection[Any],
    table: str,
    source: str | os.PathLike[str] | BinaryIO,
    *,
    encoding: str | None = None,
    delimiter: str | None = None,
    quote: str | None = None,
    escape: str | None = None,
    null: str = "",
    null_quoted: bool = False,
    decimal_comma: bool = False,
    skip: int | None = None,
    header: bool | None = None,
    columns: Sequence[str] | None = None,
    mapping: Mapping[str, str | None] | None = None,
    ignore_rest: bool = False,
    create: bool = False,
    text: bool = False,
    sample: int = 10_000,
    keep_names: bool = False,
    truncate: bool = False,
    dry_run: bool = False,
    on_error: Literal["stop", "skip"] = "stop",
    progress: Progress | None = None,
) -> ImportResult:
    """Append the rows of a CSV file to a table, in one transaction.

    The file is read once, from its start to its end, decompressed if it ends in ``.gz``, ``.zst``
    or ``.zstd``, and goes to the server as it is where it is UTF-8. What is None is detected.

    :param table: ``table`` or ``schema.table``.
    :param encoding: one that Python knows.
    :param quote: :data:`NO_QUOTE` if quotes are plain characters.
    :param escape: what stands before a quote within quotes; nothing if quotes are doubled.
    :param null: what an unquoted value must equal to be NULL.
    :param null_quoted: whether a quoted one is NULL too.
    :param decimal_comma: whether numbers in columns that take fractions have one.
    :param skip: how many lines to leave out before the first record or header.
    :param header: whether the first record names the columns, which are then found by name.
    :param columns: the table's columns in the order of the file's, whatever a header says.
    :param mapping: the table's column for some names of the header, or positions counted from 1,
        as texts; None for one to leave out.
    :param ignore_rest: leave out the columns of the file that have none in the table.
    :param create: make the table if there is none, with types that give every value back as it is
        written.
    :param text: make all its columns text.
    :param sample: how many records to guess the types from; they are held in memory.
    :param keep_names: name its columns as the header does, not in lower case with ``_``.
    :param truncate: empty the table first.
    :param dry_run: do everything and roll it back; no file is written.
    :param on_error: ``skip`` leaves out the records that the server refuses and keeps them, in
        UTF-8 and under the file's header, in ``NAME.rejected.csv`` beside the source.
    :param progress: is called after each block, with the lines done.
    :raises CSVTransferError: if the file or the table cannot be used; nothing is imported.
    """
    name = TableName.parse(table)
    check_text(null, "NULL")
    with open_source(source) as opened:
        csv_text = CSVText(opened, encoding, skip)
        with connection.transaction(force_rollback=dry_run):
            types = column_types(connection, name)
            if types is None and not create:
                raise no_such_table(connection, name, "--create makes one")
            known = None if types is None else list(types)
            dialect = detect_dialect(
                csv_text.start,
                known,
                delimiter=delimiter or csv_text.delimiter,
                quote=quote,
                escape=escape,
                null=null,
                null_quoted=null_quoted,
                file=opened.name,
            )
            reads_end_markers = connection.info.server_version >= READS_END_MARKERS
            csv_text.check(dialect, reads_end_markers=reads_end_markers)
            rows = csv_text.look_ahead(sample + 1 if types is None else ROWS_COMPARED, dialect)
            if len(rows[0]) > 1:
                csv_text.leave_out_blank_end()
            line = csv_text.first_line
            mapping = mapping or {}
            if header is None:
                header = _names_header(mapping, rows[0]) or detect_header(
                    rows, known, opened.name, line
                )
            how: dict[str, Any] = {"ignore_rest": ignore_rest, "file": opened.name, "line": line}
            if header and not columns:
                names = with_unnamed(rows[0], rows[1:], mapping, **how)
                chosen = columns_of_header(
                    names, known, mapping, keep_names=keep_names, table=name, **how
                )
            else:
                chosen = columns_by_position(rows, known, columns or (), mapping, table=name, **how)
            candidates: dict[str, ColumnType] = {}
            if types is None:
                candidates = _inferred_types(
                    chosen,
                    () if text else rows[header:][:sample],
                    decimal_comma_class if decimal_comma else value_class,
                )
                create_table(connection, name, candidates)
            if truncate:
                connection.execute(sql.SQL("TRUNCATE {}").format(name.identifier))
            destination = Destination(
                connection,
                name,
                chosen,
                types or dict.fromkeys(candidates, TEXT),
                dialect,
                opened.name,
                line - 1,
                decimal_comma,
            )

            def report(lines: int) -> None:
                if progress:
                    progress(opened.position, opened.size, lines)

            rejected_file = None
            if on_error == "skip":
                mode = None if dry_run else opened.mode
                rejected_file = RejectedFile(_rejected_file(source), mode)
            is_whole = None not in chosen and not destination.decimal_columns
            if rejected_file is None and is_whole:
                loaded = copy_whole(destination, csv_text, header=header, report=report)
            else:
                loaded = copy_records(
                    destination,
                    csv_text,
                    header=header,
                    rejected_file=rejected_file,
                    report=report,
                )
            created = None
            if types is None:
                created = settle_types(connection, name, candidates, decimal_comma=decimal_comma)
            sequences: Sequence[AdvancedSequence] = ()
            if types is not None and not dry_run:
                sequences = advance_sequences(connection, name, filter(None, chosen))
    return ImportResult(
        rows=loaded.rows,
        encoding=csv_text.encoding,
        dialect=dialect,
        header=header,
        created=created,
        sequences=sequences,
        rejected=loaded.rejected,
        rejections=loaded.rejections,
        rejected_file=rejected_file.path
        if rejected_file and loaded.rejected and not dry_run
        else None,
    )


def _names_header(mapping: Mapping[str, str | None], first: Sequence[str | None]) -> bool:
    """Whether *mapping* has names, which only a header can have, and not positions alone."""
    return any(name in first or not is_position(name) for name in mapping)


def _inferred_types(
    columns: Sequence[str | None],
    rows: Iterable[Sequence[str | None]],
    class_of: Callable[[str], ColumnType],
) -> dict[str, ColumnType]:
    inferred = zip(columns, infer_types(rows, len(columns), class_of), strict=True)
    return {column: type_name for column, type_name in inferred if column is not None}


def _rejected_file(source: str | os.PathLike[str] | BinaryIO) -> Path:
    if isinstance(source, (str, os.PathLike)):
        return without_compression(Path(source)).with_suffix(".rejected.csv")
    return Path("stdin.rejected.csv")
