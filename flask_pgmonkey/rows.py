"""``into=``: rows as objects of a class, and values as objects of a type.

A class with fields (a dataclass, a NamedTuple, an msgspec struct, a pydantic model, an attrs class
or one with an ``__init__`` of its own) is called with the values of a row: in their order where the
columns are its first parameters, by name otherwise. Any other type takes the one column of a row.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import lru_cache
from itertools import starmap
from types import FunctionType
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from .errors import NoRowError, RowMismatchError, SeveralRowsError
from .mistakes import instead_of_class, require_class

T = TypeVar("T")
F = TypeVar("F")

if TYPE_CHECKING:
    import psycopg

    AnyCursor: TypeAlias = psycopg.Cursor[Any] | psycopg.AsyncCursor[Any]
    Rows: TypeAlias = Iterable[Sequence[Any]]

# Of dataclasses, NamedTuples, msgspec, pydantic and attrs.
_MARKS_OF_FIELDS = (
    "__dataclass_fields__",
    "_fields",
    "__struct_fields__",
    "__pydantic_fields__",
    "__attrs_attrs__",
)


def maker_into(into: type[T], cursor: AnyCursor) -> Callable[[Rows], list[T]]:
    """What makes objects of *into* of the rows of a result, which it takes as tuples.

    :raises RowMismatchError: where the columns of the result do not fit.
    """
    result = cursor.pgresult
    names = tuple(result.fname(i) or b"" for i in range(result.nfields)) if result else ()
    cls: Any = into  # mypy does not take every class for hashable
    maker: Callable[[Rows], list[T]] = _maker(cls, names, cursor.connection.info.encoding)
    return maker


def rows_into(into: type[T], cursor: AnyCursor, rows: Rows) -> list[T]:
    """Objects of *into*, given the rows of a result as tuples.

    :raises RowMismatchError: where the columns of the result do not fit, also if it has no rows.
    """
    return maker_into(into, cursor)(rows)


def row_into(into: type[T], cursor: AnyCursor, row: Sequence[Any] | None) -> T | None:
    """:func:`rows_into` for one row, or None."""
    made = rows_into(into, cursor, () if row is None else (row,))
    return made[0] if made else None


def instead_of(row_factory: object, plain: F) -> F:
    """The factory *plain* for the rows that *into* takes, where no *row_factory* is given as well.

    :raises TypeError: where one is.
    """
    if row_factory is not None:
        raise TypeError("give either row_factory or into: both say what a row becomes")
    return plain


def require_one_row(cursor: AnyCursor) -> None:
    """Refuse a result that does not have exactly one row.

    :raises NoRowError: if it has none.
    :raises SeveralRowsError: if it has more.
    """
    if cursor.rowcount == 0:
        raise NoRowError("the query gave no row, where exactly one is wanted")
    if cursor.rowcount > 1:
        raise SeveralRowsError(f"the query gave {cursor.rowcount} rows, where one is wanted")


def value_into(into: type[T], value: object) -> T | None:
    """*value* as it is where it is of the type *into* or None, else what calling *into* makes.

    :raises RowMismatchError: where the call fails; the message shows no value.
    """
    try:
        if value is None or isinstance(value, into):
            return value
    except TypeError:
        require_class(into)
        raise
    try:
        return into(value)  # type: ignore[call-arg]
    except (TypeError, ValueError, ArithmeticError) as error:
        raise RowMismatchError(
            f"a value of type {type(value).__name__} does not fit {into.__qualname__}:"
            f" calling it raised {type(error).__name__}"
        ) from error


@lru_cache(maxsize=512)
def _maker(into: type[T], names: tuple[bytes, ...], encoding: str) -> Callable[[Rows], list[T]]:
    require_class(into)
    columns = [name.decode(encoding) for name in names]
    if not _has_fields(into):
        if len(columns) != 1:
            raise RowMismatchError(
                f"{into.__qualname__} has no fields, so it takes one column, and the result has"
                f" {len(columns)}: {', '.join(columns)}{instead_of_class(into)}"
            )
        return lambda rows: [_required_value(into, columns[0], value) for (value,) in rows]
    positional, by_name, required, takes_any = _parameters(into)
    problems = [
        *(f"column {name!r} stands there twice" for name in _doubled(columns)),
        *(f"no column for {name!r}" for name in required if name not in columns),
        *(
            f"{name!r} is none of its parameters"
            for name in columns
            if not takes_any and name not in positional and name not in by_name
        ),
    ]
    if problems:
        raise RowMismatchError(
            f"the columns ({', '.join(columns)}) do not fit"
            f" {into.__qualname__}({', '.join([*positional, *by_name])}): {'; '.join(problems)}."
            " Name the columns in the query, with AS where need be"
        )
    if columns == positional[: len(columns)]:
        return lambda rows: list(starmap(into, rows))
    return lambda rows: [into(**dict(zip(columns, row, strict=True))) for row in rows]


def _required_value(into: type[T], column: str, value: object) -> T:
    made = value_into(into, value)
    if made is None:
        raise RowMismatchError(
            f"column {column!r} is NULL, which is no {into.__qualname__}: use fetch_value(), which"
            " gives None, or coalesce() in the query"
        )
    return made


def _has_fields(into: type[Any]) -> bool:
    if any(hasattr(into, mark) for mark in _MARKS_OF_FIELDS):
        return True
    is_of_python = into.__module__.partition(".")[0] in sys.stdlib_module_names
    return not is_of_python and not issubclass(into, Enum) and _initializes_itself(into)


def _initializes_itself(into: type[Any]) -> bool:
    return isinstance(inspect.getattr_static(into, "__init__"), FunctionType)


def _parameters(into: type[Any]) -> tuple[list[str], list[str], list[str], bool]:
    """Those that may be given by position, those by name alone, those that must be given, and
    whether any other name is taken too."""
    parameters = inspect.signature(into).parameters.values()
    kinds = inspect.Parameter
    named = [p for p in parameters if p.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)]
    return (
        [p.name for p in named if p.kind is not kinds.KEYWORD_ONLY],
        [p.name for p in named if p.kind is kinds.KEYWORD_ONLY],
        [p.name for p in named if p.default is kinds.empty],
        any(p.kind is kinds.VAR_KEYWORD for p in parameters),
    )


def _doubled(columns: list[str]) -> list[str]:
    return sorted({name for name in columns if columns.count(name) > 1})
