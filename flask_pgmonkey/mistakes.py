"""Errors for what people write by mistake, which say what to write instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any, NoReturn

import psycopg

_INSTEAD_OF_CLASS = {
    "dict": "for dictionaries write row_factory=psycopg.rows.dict_row",
    "tuple": "for tuples write row_factory=psycopg.rows.tuple_row",
    "list": "for lists write row_factory=psycopg.rows.tuple_row, and list(row) for each row",
}

_QUERY = "write db.fetch_all(…), db.fetch_one(…) or db.execute(…)"
_COMMIT = (
    "a query is committed when it returns; what belongs together stands in a block of"
    " 'with db.transaction():', whose end commits and whose exception rolls back"
)
_NO_MODELS = "there are no models here: write SQL, and into=… for rows of your own classes"
_SCHEMA = "write CREATE TABLE … and DROP TABLE … in SQL, with db.execute(…)"
_INSTEAD_OF_NAME = {
    "session": _QUERY,
    "engine": f"there is none: {_QUERY}",
    "engines": f"there are none: {_QUERY}",
    "query": _QUERY,
    "select": _QUERY,
    "text": "a query is a string: db.fetch_all('SELECT …')",
    "Model": _NO_MODELS,
    "Column": _NO_MODELS,
    "Table": _NO_MODELS,
    "relationship": _NO_MODELS,
    "metadata": _NO_MODELS,
    "create_all": _SCHEMA,
    "drop_all": _SCHEMA,
    "paginate": "write LIMIT and OFFSET in the query",
    "commit": _COMMIT,
    "rollback": _COMMIT,
    "begin": "write 'with db.transaction():'",
    "autocommit": _COMMIT,
    "fetchone": "write db.fetch_one('SELECT …'), which runs the query too",
    "fetchall": "write db.fetch_all('SELECT …'), which runs the query too",
    "fetchmany": "write db.fetch_all('SELECT … LIMIT …'), which runs the query too",
    "executemany": "write db.execute_many(…)",
    "cursor": f"queries need none: {_QUERY}",
    "conn": f"queries need none: {_QUERY}",
}  # fmt: skip


class MissingName:
    """An attribute that is not there, whose AttributeError says what serves instead.

    A ``__getattr__`` would cost every other attribute of its class 30 ns.
    """

    def __init__(self, name: str, instead: str) -> None:
        self._name = name
        self._instead = instead

    def __get__(self, instance: object, owner: type) -> NoReturn:
        raise AttributeError(
            f"{owner.__name__!r} object has no attribute {self._name!r}: {self._instead}",
            name=self._name,
            obj=instance,
        )


def explain_missing_names(cls: type[Any]) -> None:
    """Have *cls* say of names that it does not have what serves instead of them."""
    for name, instead in _INSTEAD_OF_NAME.items():
        setattr(cls, name, MissingName(name, instead))


def require_row_factory(row_factory: object) -> None:
    """Refuse what makes no rows.

    :raises TypeError: for a class whose objects cannot be called, such as ``dict``, and for what
        cannot be called itself.
    """
    if not isinstance(row_factory, type):
        if callable(row_factory):
            return
        instead = "give a function of psycopg.rows, such as dict_row"
        name = f"an object of type {type(row_factory).__name__}"
    else:
        if any("__call__" in vars(base) for base in row_factory.__mro__):
            return
        name = row_factory.__name__
        instead = _INSTEAD_OF_CLASS.get(name, f"for rows of that class write into={name}")
    raise TypeError(f"row_factory={name} makes no rows: {instead}")


def require_class(into: object) -> None:
    """Refuse what is no class.

    :raises TypeError: then; a function such as ``dict_row`` belongs elsewhere.
    """
    if not isinstance(into, type):
        name = getattr(into, "__name__", None) or f"an object of type {type(into).__name__}"
        raise TypeError(f"into={name} is no class: a function that makes rows is a row_factory=")


def instead_of_class(into: type[Any]) -> str:
    """What to write for rows of a class that has no fields; empty for most."""
    instead = _INSTEAD_OF_CLASS.get(into.__name__)
    return f"; {instead}" if instead else ""


def explain_parameters(params: object) -> None:
    """Say what to write where *params* cannot be a query's parameters.

    :raises TypeError: then; without their values.
    """
    name = type(params).__name__
    if isinstance(params, (str, bytes, bytearray)):
        pass  # sequences, but of no parameters
    elif params is None or isinstance(params, (Sequence, Mapping)):
        return
    if isinstance(params, Set):
        instead = "a set has no order: write a list"
    elif isinstance(params, Iterator):
        instead = "write list(…) around it"
    else:
        instead = "for one value write [value], or (value,) with its comma"
    raise TypeError(
        f"the parameters of a query are a sequence or a mapping, not an object of type {name}:"
        f" {instead}"
    )


def isolation_level_of(level: psycopg.IsolationLevel | str | None) -> psycopg.IsolationLevel | None:
    """The isolation level that *level* names in SQL's words, if it is a string.

    :raises ValueError: for other words.
    """
    if not isinstance(level, str):
        return level
    name = "_".join(level.upper().replace("_", " ").replace("-", " ").split())
    try:
        return psycopg.IsolationLevel[name]
    except KeyError:
        known = [repr(each.name.lower().replace("_", " ")) for each in psycopg.IsolationLevel]
    raise ValueError(f"there is no isolation level {level!r}: write one of {', '.join(known)}")
