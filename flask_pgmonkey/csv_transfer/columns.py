"""Which column of a table each column of a file goes to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .dialect import MOST_VALUES
from .errors import CSVTransferError, shortened
from .tables import (
    SYSTEM_COLUMNS,
    TableName,
    check_text,
    find_column,
    fitted,
    listed,
    nearest,
    no_such_column,
    plain_name,
)

MOST_COLUMNS = 1600
"""As many as PostgreSQL's tables may have."""


def columns_of_header(
    header: Sequence[str | None],
    columns: Sequence[str] | None,
    mapping: Mapping[str, str | None],
    *,
    keep_names: bool,
    ignore_rest: bool,
    file: str,
    line: int,
    table: TableName,
) -> list[str | None]:
    """The table's column for each name of *header*, or None where a value is to be left out.

    :param columns: the table's columns, or None for a table that is yet to be created.
    :param mapping: the user's own choice of column, or None, for some of the names or positions.
    :param keep_names: whether new columns are named as the header spells them.
    :param ignore_rest: whether to leave out what has no column in the table; in a table yet to be
        created, what *mapping* does not name, or without one, what has no name.
    :param line: that of the header.
    """
    chosen = _by_position(header, mapping, file)
    left_out = sum(column is None for column in chosen.values())
    if not ignore_rest:
        check_width(len(header) if len(header) > MOST_VALUES else len(header) - left_out, file)
    found: list[str | None] = []
    for position, name in enumerate(header, 1):
        column: str | None
        if position in chosen:
            column = _known(chosen[position], columns, position, file, table)
        elif not name or not name.strip():
            if not ignore_rest:
                raise CSVTransferError(
                    f"{file}: column {position} has no name in the header; say where it goes with"
                    f' --columns "{position}=COLUMN", or leave it out with --columns "{position}="'
                    " or --ignore-rest",
                    file=file,
                    line=line,
                )
            column = None
        elif columns is None:
            column = None if ignore_rest and mapping else fitted(_new_name(name, keep_names))
        else:
            column = find_column(name, columns)
            if column is None and not ignore_rest:
                raise _no_column(name, columns, position, file, table)
        if column is not None:
            check_text(column, f"{file}: a name in the header")
            _check_free(column, found, position, columns, file)
        found.append(column)
    check_width(sum(column is not None for column in found), file)
    return _at_least_one(found, file)


def _new_name(name: str, keep_names: bool) -> str:
    return name if keep_names else plain_name(name)


def columns_by_position(
    rows: Sequence[Sequence[str | None]],
    columns: Sequence[str] | None,
    names: Sequence[str],
    mapping: Mapping[str, str | None],
    *,
    ignore_rest: bool,
    file: str,
    line: int,
    table: TableName,
) -> list[str | None]:
    """The table's column for each column of a file, in order.

    :param rows: the first records.
    :param columns: the table's columns, or None for a table that is yet to be created.
    :param names: the user's own choice; all columns if empty.
    :param mapping: the user's choice for some positions.
    :param ignore_rest: whether to leave out the columns of the file beyond those.
    :param line: that of the first record.
    """
    width = len(rows[0])
    if names:
        if len(names) != width and not (ignore_rest and len(names) < width):
            raise CSVTransferError(
                f"{file}: --columns names {len(names)} columns, the first record has {width}; name"
                " as many, or the first of them and say --ignore-rest",
                file=file,
                line=line,
            )
    elif columns is None:
        check_width(width, file)
        names = [f"column_{number}" for number in range(1, width + 1)]
    else:
        names = columns
    chosen = _by_position([None] * width, mapping, file)
    is_wider = width > len(names) and (ignore_rest or min(map(len, rows)) > len(names))
    found: list[str | None] = []
    # If only some records have another number of values, the server says so.
    for position in range(1, (width if chosen or is_wider else len(names)) + 1):
        column = names[position - 1] if position <= len(names) else None
        if position in chosen:
            column = chosen[position]
        elif column is None and not ignore_rest:
            raise CSVTransferError(
                f"{file}: the first record has {width} values, and the table {table} has"
                f' {len(names)} columns; leave one out with --columns "{position}=", or all that'
                " are too many with --ignore-rest",
                file=file,
                line=line,
            )
        column = _known(column, columns, position, file, table)
        if column is not None:
            _check_free(column, found, position, columns, file)
        found.append(column)
    return _at_least_one(found, file)


def _by_position(
    header: Sequence[str | None], mapping: Mapping[str, str | None], file: str
) -> dict[int, str | None]:
    """The user's choice of column for positions of the file, counted from 1."""
    chosen: dict[int, str | None] = {}
    for key, column in mapping.items():
        positions = [n for n, name in enumerate(header, 1) if name == key] or [
            n for n, name in enumerate(header, 1) if name and name.strip() == key.strip()
        ]
        if not positions and is_position(key) and int(key) <= len(header):
            positions = [int(key)]
        if not positions:
            near = nearest(key, (name for name in header if name))
            told = f"{file}: --columns names {listed([key])}, not in the header"
            raise CSVTransferError("; ".join(filter(None, (told, near))))
        if len(positions) > 1:
            first, second = positions[:2]
            raise CSVTransferError(
                f"{file}: the header has {listed([key])} in columns {first} and {second}; say"
                f' which by position, as in --columns "{first}=COLUMN,{second}="',
                file=file,
            )
        if positions[0] in chosen:
            raise CSVTransferError(f"{file}: --columns names column {positions[0]} twice")
        chosen[positions[0]] = check_text(column, "a name in --columns") if column else None
    return chosen


def is_position(key: str) -> bool:
    """Whether *key* of ``--columns`` may be a column's number."""
    return key.isascii() and key.isdecimal() and len(key) < 6 and int(key) > 0


def _known(
    name: str | None,
    columns: Sequence[str] | None,
    position: int,
    file: str,
    table: TableName,
) -> str | None:
    """The column that the user means by *name*."""
    if name is None:
        return None
    check_text(name, "a name in --columns")
    if columns is None:
        return fitted(name)
    column = find_column(name, columns)
    if column is None:
        raise _no_column(name, columns, position, file, table)
    return column


def _no_column(
    name: str, columns: Sequence[str], position: int, file: str, table: TableName
) -> CSVTransferError:
    return CSVTransferError(
        f"{file}: {no_such_column(table, name, columns)}; say where column {position} of the file"
        f' goes with --columns "{position}=COLUMN", or leave it out with --columns "{position}=" or'
        " --ignore-rest",
        file=file,
        column=name,
    )


def _check_free(
    column: str, found: list[str | None], position: int, columns: Sequence[str] | None, file: str
) -> None:
    """Make sure that *column* can take the values at *position*.

    :raises CSVTransferError: if another one has it, or PostgreSQL itself.
    """
    if column in found:
        raise CSVTransferError(
            f"{file}: columns {found.index(column) + 1} and {position} of the file both go to the"
            f' column "{shortened(column)}"; give one of them another, as in --columns'
            f' "{position}=COLUMN", or leave it out with --columns "{position}="',
            file=file,
            column=column,
        )
    if columns is None and column in SYSTEM_COLUMNS:
        raise CSVTransferError(
            f'{file}: PostgreSQL keeps the name "{column}" for itself; give the column another with'
            f' --columns "{position}=COLUMN"',
            file=file,
            column=column,
        )


def _at_least_one(found: list[str | None], file: str) -> list[str | None]:
    if not any(column is not None for column in found):
        raise CSVTransferError(
            f"{file}: no column of the file goes into the table; name one with --columns",
            file=file,
        )
    return found


def check_width(width: int, file: str) -> None:
    """Make sure that a table can have so many columns.

    :raises CSVTransferError: if it cannot.
    """
    if width <= MOST_COLUMNS:
        return
    found = f"{width:,}" if width <= MOST_VALUES else f"more than {MOST_VALUES:,}"
    raise CSVTransferError(
        f"{file}: the first record has {found} columns, and a table of PostgreSQL {MOST_COLUMNS:,}"
        " at most; is the delimiter right? Name it with --delimiter, or leave columns out with"
        ' --columns "NAME="',
        file=file,
        line=1,
    )


def with_unnamed(
    header: Sequence[str | None],
    rows: Sequence[Sequence[str | None]],
    mapping: Mapping[str, str | None],
    *,
    ignore_rest: bool,
    file: str,
    line: int,
) -> Sequence[str | None]:
    """*header* with None for each value that all of *rows*, those below, have more.

    :raises CSVTransferError: if there are some, and the user said nothing of them.
    """
    width = min((len(row) for row in rows if row != [None]), default=0)
    if width <= len(header):
        return header
    if not ignore_rest and not any(is_position(key) and int(key) > len(header) for key in mapping):
        raise CSVTransferError(
            f"{file}: the header has {len(header)} names, and the records below have {width}"
            " values; if the last ones are to be left out, as where each line ends in a delimiter,"
            " say --ignore-rest, and if it is the first that has no name, name them all with"
            f" --skip {line} --no-header --columns LIST",
            file=file,
            line=line,
        )
    return [*header, *([None] * (width - len(header)))]
