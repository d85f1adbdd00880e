"""CSV files into tables."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import psycopg
from psycopg import sql

from .creating import create_table, settle_types
from .detection import detect_dialect, detect_header
from .dialect import Dialect
from .inference import TEXT, ColumnType, infer_types
from .loading import Destination, RejectedFile, copy_records, copy_whole
from .reading import CSVText
from .sequences import AdvancedSequence, advance_sequences
from .streams import Progress, open_source, without_compression
from .tables import (
    TableName,
    check_text,
    column_types,
    columns_by_position,
    columns_of_header,
    no_such_table,
)

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
    header: bool | None = None,
    columns: Sequence[str] | None = None,
    mapping: Mapping[str, str | None] | None = None,
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
    :param header: whether the first record names the columns, which are then found by name.
    :param columns: the table's columns in the order of the file's, whatever a header says.
    :param mapping: the table's column for some names of the header, None for one to leave out.
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
        csv_text = CSVText(opened, encoding)
        with connection.transaction(force_rollback=dry_run):
            types = column_types(connection, name)
            if types is None and not create:
                raise no_such_table(connection, name, "--create makes one")
            known = None if types is None else list(types)
            dialect = detect_dialect(
                csv_text.start,
                known,
                delimiter=delimiter,
                quote=quote,
                escape=escape,
                null=null,
                file=opened.name,
            )
            reads_end_markers = connection.info.server_version >= READS_END_MARKERS
            csv_text.check(dialect, reads_end_markers=reads_end_markers)
            rows = csv_text.look_ahead(sample + 1 if types is None else 1, dialect)
            if header is None:
                header = mapping is not None or detect_header(rows, known, opened.name)
            if header and not columns:
                chosen = columns_of_header(
                    rows[0],
                    known,
                    mapping or {},
                    keep_names=keep_names,
                    file=opened.name,
                    table=name,
                )
            else:
                chosen = columns_by_position(len(rows[0]), known, columns, opened.name)
            candidates: dict[str, ColumnType] = {}
            if types is None:
                candidates = _inferred_types(chosen, () if text else rows[header:][:sample])
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
            )

            def report(lines: int) -> None:
                if progress:
                    progress(opened.position, opened.size, lines)

            rejected_file = None
            if on_error == "skip":
                mode = None if dry_run else opened.mode
                rejected_file = RejectedFile(_rejected_file(source), mode)
            if rejected_file is None and None not in chosen:
                loaded = copy_whole(destination, csv_text, header=header, report=report)
            else:
                loaded = copy_records(
                    destination,
                    csv_text,
                    header=header,
                    rejected_file=rejected_file,
                    report=report,
                )
            created = settle_types(connection, name, candidates) if types is None else None
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


def _inferred_types(
    columns: Sequence[str | None], rows: Iterable[Sequence[str | None]]
) -> dict[str, ColumnType]:
    inferred = zip(columns, infer_types(rows, len(columns)), strict=True)
    return {column: type_name for column, type_name in inferred if column is not None}


def _rejected_file(source: str | os.PathLike[str] | BinaryIO) -> Path:
    if isinstance(source, (str, os.PathLike)):
        return without_compression(Path(source)).with_suffix(".rejected.csv")
    return Path("stdin.rejected.csv")
