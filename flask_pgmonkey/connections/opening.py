"""How a server connection of one config comes about, and what it carries with it.

The settings of the config are applied in one round trip, with bound parameters; then the user's
``configure`` runs; then the connection remembers its own attributes, so that every release can
put back what a borrower changed.
"""

from __future__ import annotations

import inspect
import os
import socket
import traceback
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from operator import attrgetter
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import psycopg
from psycopg import sql
from psycopg.pq import TransactionStatus

from ..config import Config, is_secret_key
from ..errors import ConfigError
from .liveness import socket_poll

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn
    from psycopg.rows import AsyncRowFactory, RowFactory
    from typing_extensions import Self

T = TypeVar("T")

Configure = Callable[[Any], "Awaitable[None] | None"]
"""Called with every new psycopg connection; may return an awaitable for async connections."""

_PLAIN_ATTRIBUTES = (
    "prepare_threshold", "prepared_max", "row_factory", "cursor_factory", "server_cursor_factory",
)  # fmt: skip
# What a borrower may change, in one step: each release looks at it.
get_attributes: Callable[[Any], tuple[Any, ...]] = attrgetter(
    "isolation_level", "read_only", "deferrable",
    "_prepared.prepare_threshold", "_prepared.prepared_max",  # faster than the properties
    "row_factory", "cursor_factory", "server_cursor_factory",
    "_tpc",
)  # fmt: skip

_FATAL_SHUTDOWN = ("57P01", "57P02", "57P03")


class Ledger:
    """What this package remembers of one server connection."""

    __slots__ = (
        "attributes",
        "borrowed_at",
        "borrower",
        "holder",
        "leak_logged",
        "lending",
        "notice_handlers",
        "notify_handlers",
        "opened_at",
        "owner",
        "poll_socket",
        "pool",
        "released_at",
        "shutdown_sqlstate",
        "stack",
    )

    def __init__(self, conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> None:
        self.attributes: tuple[Any, ...] = get_attributes(conn)
        self.poll_socket: Callable[[int], object] = socket_poll(conn.pgconn.socket)
        self.opened_at: float = monotonic()
        self.released_at: float = self.opened_at
        self.borrowed_at: float = 0.0
        self.owner: Any = None
        self.holder: Any = None
        self.pool: Any = None
        self.lending: Any = None
        self.borrower: str = ""
        self.stack: traceback.StackSummary | None = None
        self.leak_logged: bool = False
        self.shutdown_sqlstate: str | None = None
        self.notice_handlers: tuple[Callable[[psycopg.errors.Diagnostic], None], ...] = tuple(
            conn._notice_handlers
        )
        self.notify_handlers: tuple[Callable[[psycopg.Notify], None], ...] = tuple(
            conn._notify_handlers
        )
        conn.add_notice_handler(self.hear_notice)

    def hear_notice(self, diagnostic: psycopg.errors.Diagnostic) -> None:
        """Note why the server ends the connection."""
        if diagnostic.sqlstate in _FATAL_SHUTDOWN:
            self.shutdown_sqlstate = diagnostic.sqlstate


class ServerConnection(psycopg.Connection[Any]):
    """psycopg's Connection with our ledger, of no use to a forked child."""

    ledger: Ledger
    _pool: Any

    def __init__(self, pgconn: PGconn, *args: Any, **kwargs: Any) -> None:
        super().__init__(pgconn, *args, **kwargs)
        self.owner_pid: int = os.getpid()
        # As for every pooled connection: psycopg would warn when it is dropped with its owner.
        self._pool = None

    @property
    def is_inherited(self) -> bool:
        """Whether the parent process opened it, before a fork. Then it must be left alone here:
        both processes have the same socket."""
        return self.owner_pid != os.getpid()

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        if self.owner_pid != os.getpid():
            raise _of_parent_process()
        return psycopg.Connection.wait(self, gen, *args, **kwargs)

    @property
    def closed(self) -> bool:
        return self.is_inherited or super().closed

    def shut_down(self) -> None:
        """Shut down the socket under whoever uses this connection: what it waits for fails."""
        with suppress(OSError, psycopg.OperationalError):  # closed already
            with socket.socket(fileno=os.dup(self.pgconn.socket)) as duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)

    @classmethod
    def open(
        cls,
        config: Config,
        settings: Mapping[str, str],
        configure: Configure | None,
        row_factory: RowFactory[Any] | None,
    ) -> Self:
        """Connect, apply *settings*, run *configure*. In autocommit still.

        :raises psycopg.OperationalError: with the server's words where it cannot connect.
        :raises ConfigError: for a setting that the server refuses.
        """
        conn = cls.connect(**config.connect_kwargs(), autocommit=True, row_factory=row_factory)
        try:
            if settings:
                conn._apply(config, settings)
            if configure:
                configure(conn)
                _check_idle(conn, configure)
            conn.ledger = Ledger(conn)
        except BaseException:
            conn.close()
            raise
        return conn

    def _apply(self, config: Config, settings: Mapping[str, str]) -> None:
        try:
            self.execute(*_set_all(settings), prepare=False)
        except psycopg.DatabaseError as error:
            for name, value in settings.items():
                try:
                    self.execute(*_set_all({name: value}), prepare=False)
                except psycopg.DatabaseError as refusal:
                    _refuse(config, "sync_settings", name, refusal)
            raise error

    def put_back_attributes(self) -> None:
        """Undo what the borrower changed on this object. Costs no round trip.

        Autocommit is left to the next borrow, which sets it as it needs it.
        """
        self.isolation_level, self.read_only, self.deferrable, *plain, _ = self.ledger.attributes
        _set_plain_attributes(self, plain)

    def reset_session(self, settings: Mapping[str, str]) -> None:
        """Clear what the borrower left on the server and apply *settings* again: one round trip.

        Its handlers and the notifications that nobody read go too.
        """
        self.autocommit = True
        with self.pipeline():
            for statement in _CLEAR_SESSION:
                self.execute(statement, prepare=False)
            if settings:
                self.execute(*_set_all(settings), prepare=False)
        _hear_nothing_more(self, self.ledger)


class AsyncServerConnection(psycopg.AsyncConnection[Any]):
    """psycopg's AsyncConnection with our ledger, of no use to a forked child."""

    ledger: Ledger
    _pool: Any

    def __init__(self, pgconn: PGconn, *args: Any, **kwargs: Any) -> None:
        super().__init__(pgconn, *args, **kwargs)
        self.owner_pid: int = os.getpid()
        # As for every pooled connection: psycopg would warn when it is dropped with its owner.
        self._pool = None

    @property
    def is_inherited(self) -> bool:
        """Whether the parent process opened it, before a fork. Then it must be left alone here:
        both processes have the same socket."""
        return self.owner_pid != os.getpid()

    async def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        if self.owner_pid != os.getpid():
            raise _of_parent_process()
        return await psycopg.AsyncConnection.wait(self, gen, *args, **kwargs)

    @property
    def closed(self) -> bool:
        return self.is_inherited or super().closed

    @classmethod
    async def open(
        cls,
        config: Config,
        settings: Mapping[str, str],
        configure: Configure | None,
        row_factory: AsyncRowFactory[Any] | None,
    ) -> Self:
        """:meth:`ServerConnection.open`, on the running loop."""
        kwargs = await config.connect_kwargs_on_loop()
        conn = await cls.connect(**kwargs, autocommit=True, row_factory=row_factory)
        try:
            if settings:
                await conn._apply(config, settings)
            if configure:
                done = configure(conn)
                if inspect.isawaitable(done):
                    await done
                _check_idle(conn, configure)
            conn.ledger = Ledger(conn)
        except BaseException:
            conn.pgconn.finish()
            raise
        return conn

    async def _apply(self, config: Config, settings: Mapping[str, str]) -> None:
        try:
            await self.execute(*_set_all(settings), prepare=False)
        except psycopg.DatabaseError as error:
            for name, value in settings.items():
                try:
                    await self.execute(*_set_all({name: value}), prepare=False)
                except psycopg.DatabaseError as refusal:
                    _refuse(config, "async_settings", name, refusal)
            raise error

    async def put_back_attributes(self) -> None:
        """Undo what the borrower changed on this object. Costs no round trip.

        Autocommit is left to the next borrow, which sets it as it needs it.
        """
        isolation_level, read_only, deferrable, *plain, _ = self.ledger.attributes
        await self.set_isolation_level(isolation_level)
        await self.set_read_only(read_only)
        await self.set_deferrable(deferrable)
        _set_plain_attributes(self, plain)

    async def reset_session(self, settings: Mapping[str, str]) -> None:
        """:meth:`ServerConnection.reset_session`, on the running loop."""
        await self.set_autocommit(True)
        async with self.pipeline():
            for statement in _CLEAR_SESSION:
                await self.execute(statement, prepare=False)
            if settings:
                await self.execute(*_set_all(settings), prepare=False)
        _hear_nothing_more(self, self.ledger)


_CLEAR_SESSION = (
    "CLOSE ALL",
    "SET SESSION AUTHORIZATION DEFAULT",  # also ends a SET ROLE, which RESET ALL leaves
    "RESET ALL",
    "SELECT pg_advisory_unlock_all()",
    "UNLISTEN *",
    "DISCARD TEMP",
)


def _set_all(settings: Mapping[str, str]) -> tuple[sql.Composed, list[str]]:
    calls = sql.SQL(", ").join([_SET_ONE] * len(settings))
    return _SELECT + calls, [part for item in settings.items() for part in item]


_SELECT = sql.SQL("SELECT ")
_SET_ONE = sql.SQL("pg_catalog.set_config(%s, %s, false)")


def _of_parent_process() -> psycopg.InterfaceError:
    return psycopg.InterfaceError(
        "this psycopg connection was opened by the parent process, which goes on using it: borrow"
        " one in this process"
    )


def _refuse(config: Config, section: str, name: str, error: psycopg.Error) -> NoReturn:
    refusal = f"{config.origin}: {section}.{name}: the server refuses it"
    written = config.written
    if is_secret_key(name) or written.is_resolved(written.sections[section][name]):
        # The server's own words quote the value.
        raise ConfigError(f"{refusal}: {type(error).__name__}") from None
    raise ConfigError(f"{refusal}: {error}") from error


def _check_idle(
    conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], configure: Configure
) -> None:
    status = conn.pgconn.transaction_status
    if status != TransactionStatus.IDLE:
        raise psycopg.ProgrammingError(
            f"{configure!r} left a new connection in status {TransactionStatus(status).name};"
            " it must leave no transaction open"
        )


def _set_plain_attributes(conn: Any, values: Iterable[Any]) -> None:
    for name, value in zip(_PLAIN_ATTRIBUTES, values, strict=True):
        setattr(conn, name, value)


def _hear_nothing_more(
    conn: psycopg.Connection[Any] | psycopg.AsyncConnection[Any], ledger: Ledger
) -> None:
    """Undo what was added to hear the server, after UNLISTEN: also what was heard and not read."""
    conn._notice_handlers[:] = (*ledger.notice_handlers, ledger.hear_notice)
    conn._notify_handlers[:] = ledger.notify_handlers
    while conn.pgconn.notifies():
        pass
    if conn._notifies_backlog:
        conn._notifies_backlog.clear()
