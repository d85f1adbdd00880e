"""Settings that begin with a transaction and end with it, as a function of the app's says."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import date
from decimal import Decimal
from enum import Enum
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias
from uuid import UUID

import psycopg
from psycopg import errors
from psycopg.generators import fetch_many, send
from psycopg.pq import ConnStatus, ExecStatus

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGresult

GivesSettings: TypeAlias = Callable[[], "Mapping[str, Any] | None"]
"""Gives names and values for the transaction that begins, or None for none."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_$]*(\.[A-Za-z_][A-Za-z0-9_$]*)*")
_REFUSALS = (ExecStatus.FATAL_ERROR, ExecStatus.PIPELINE_ABORTED)

_is_asking: ContextVar[bool] = ContextVar("_is_asking", default=False)


class LocalSettings(NamedTuple):
    """Names and values, as they are sent.

    :ivar parts: a name, its value, the next name and so on. None is the setting's default.
    """

    parts: tuple[str | None, ...]

    def message(self, encoding: str) -> tuple[bytes, list[bytes | None]]:
        """What sets them until the end of the transaction: a query and its parameters."""
        calls = b", ".join(
            b"pg_catalog.set_config($%d, $%d, true)" % (place, place + 1)
            for place in range(1, len(self.parts), 2)
        )
        parameters = [None if part is None else part.encode(encoding) for part in self.parts]
        return b"SELECT " + calls, parameters


FindSettings: TypeAlias = "Callable[[], LocalSettings | None]"
"""Gives those of the transaction that is about to begin. It may query, so no lock must be held."""


def ask(function: GivesSettings) -> LocalSettings | None:
    """The settings that *function* gives. What it queries itself, has none.

    :raises TypeError: for what is no mapping, and for a value that is no single one.
    :raises ValueError: for a name that no setting can have, and for a text with a NUL.
    """
    if _is_asking.get():
        return None
    token = _is_asking.set(True)
    try:
        given = function()
    finally:
        _is_asking.reset(token)
    if given is None:
        return None
    if not isinstance(given, Mapping):
        if iscoroutine(given):
            given.close()
        raise TypeError(
            "the function of session_settings gives a mapping such as {'app.user_id': 1}, or None,"
            f" and not an object of type {type(given).__name__}"
        )
    parts: list[str | None] = []
    for name, value in given.items():
        parts += _checked(name), _text_of(name, value)
    return LocalSettings(tuple(parts)) if parts else None


def _checked(name: object) -> str:
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    raise ValueError(
        f"session_settings: {name!r} is no name of a setting: write one of PostgreSQL's, or one of"
        " your own with a prefix, such as 'app.user_id'"
    )


def _text_of(name: str, value: object) -> str | None:
    if isinstance(value, Enum):
        value = value.value
    if value is None:
        return None
    if isinstance(value, str):
        if "\0" in value:
            raise ValueError(f"session_settings: the value of {name!r} has a NUL character in it")
        return str(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float, Decimal, UUID, date)):
        return str(value)
    raise TypeError(
        f"session_settings: the value of {name!r} is of type {type(value).__name__}, and a setting"
        " is a text: write str(…) or json.dumps(…) around it"
    )


def begin_gen(conn: Any, begin: bytes, settings: LocalSettings) -> PQGen[PGresult | None]:
    """Begin a transaction with *settings*, in one round trip. Gives the result of *begin*."""
    pgconn = conn.pgconn
    if conn._pipeline is not None:
        raise needs_transaction("a pipeline")
    message, parameters = settings.message(pgconn._encoding)
    pgconn.enter_pipeline_mode()
    pgconn.send_query_params(begin, None)
    pgconn.send_query_params(message, parameters)
    pgconn.pipeline_sync()
    yield from send(pgconn)
    began: PGresult | None = None
    refused: PGresult | None = None
    try:
        while results := (yield from fetch_many(pgconn)):
            (answer,) = results
            if answer.status == ExecStatus.PIPELINE_SYNC:
                break
            began = began or answer
            if answer.status in _REFUSALS:
                refused = refused or answer
    except psycopg.OperationalError:
        # Where the server has said why it ends the connection, that is the error.
        if refused is None:
            raise
    if pgconn.status == ConnStatus.OK:
        pgconn.exit_pipeline_mode()
    if refused is not None:
        raise errors.error_from_result(refused, encoding=pgconn._encoding)
    return began


def needs_transaction(what: str) -> psycopg.ProgrammingError:
    """The error for what cannot bring settings along."""
    return psycopg.ProgrammingError(
        f"{what} outside of a transaction has no place for the settings of session_settings: put it"
        " into a block of 'with db.transaction():', which begins with them"
    )
