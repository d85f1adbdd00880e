"""What the two kinds of server connections share: how a session begins, and what a reset undoes.

The settings of the config are applied in one round trip, with bound parameters; then the user's
``configure`` runs; then the connection is remembered as it is, so that every release can put back
what a borrower changed.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from math import inf
from typing import TYPE_CHECKING, Any, NoReturn

import psycopg
from psycopg import postgres, sql
from psycopg._connection_base import BaseConnection
from psycopg.adapt import AdaptersMap
from psycopg.conninfo import timeout_from_conninfo
from psycopg.errors import ConnectionTimeout
from psycopg.pq import Format, TransactionStatus

from ..config import Config, is_secret_key
from ..errors import ConfigError
from ..signals import query_executed, transaction_ended
from . import local_settings
from .adapters import NotedAdapters
from .connect_errors import seconds
from .cursor import MarkingCursor
from .liveness import is_connected
from .login_steps import connect_in_steps
from .query_notes import noted_command
from .query_timeout import LONGEST_RELEASE
from .transaction import error_of_failed, has_failed
from .watching import watched_command

if TYPE_CHECKING:
    from psycopg.abc import PQGen, PQGenConn
    from psycopg.pq.abc import PGconn, PGresult
    from typing_extensions import LiteralString, Self

    from .known_types import KnownTypes
    from .liveness import Recorded
    from .local_settings import LocalSettings
    from .protocols import AnyConnection
    from .record import ConnectionRecord

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

QUERY_WITHIN_QUERY = (
    "a query within a query: this connection is in the middle of a query, a copy(), a stream() or a"
    " notifies() of this very {caller}, for whose end it would wait for ever. Query before or"
    " after it, or on another connection"
)

Configure = Callable[[Any], "Awaitable[None] | None"]
"""Called with every new psycopg connection, and again after its session was reset; may return an
awaitable for async connections."""

CLEAR_SESSION = (
    "CLOSE ALL",
    "SET SESSION AUTHORIZATION DEFAULT",  # also ends a SET ROLE, which RESET ALL leaves
    "RESET ALL",
    "SELECT pg_advisory_unlock_all()",
    "UNLISTEN *",
    "DISCARD TEMP",
    "DISCARD SEQUENCES",
)

# The classes of connection exceptions, too few resources, intervention and the system's errors.
_TROUBLE = ("08", "53", "57", "58")

REFUSES_WRITES = (
    "SELECT pg_is_in_recovery() OR current_setting('default_transaction_read_only')::boolean"
)

_SELECT = sql.SQL("SELECT ")
_SET_ONE = sql.SQL("pg_catalog.set_config(%s, %s, false)")
_WHO_ANSWERS = sql.SQL(", pg_catalog.pg_backend_pid()")

_UNFINISHED = (TransactionStatus.INTRANS, TransactionStatus.INERROR, TransactionStatus.ACTIVE)

_PLAIN_ATTRIBUTES = (
    "prepare_threshold", "prepared_max", "row_factory", "cursor_factory", "server_cursor_factory",
)  # fmt: skip


class BaseServerConnection(BaseConnection[Any]):
    """A psycopg connection with our record, of no use to a forked child.

    :ivar owner_pid: the process that opened it.
    :ivar registered: an entry for each adapter or type that was registered since it was ready.
    :ivar base_adapters: what it knows of types before anything is registered on it.
    :ivar query_timeout: seconds that a query may run; 0 is no limit.
    :ivar bounded_by: what says so, for the error.
    :ivar is_on_round_trip: whether the pipeline that is on, if one is, has sent all and waits for
        the answers.
    """

    base_adapters: AdaptersMap = postgres.adapters
    query_timeout: float = 0.0
    bounded_by: str = "query_timeout"
    is_on_round_trip: bool = False
    record: ConnectionRecord[Any]
    owner_pid: int = 0  # until it is made
    _adapters: AdaptersMap | None
    # psycopg_pool's name for the pool that lends it. Without it psycopg would warn when one is
    # dropped with its owner, or half made.
    _pool: Any = None

    def __init__(self, pgconn: PGconn, *args: Any, **kwargs: Any) -> None:
        super().__init__(pgconn, *args, **kwargs)
        self.owner_pid: int = os.getpid()
        self.registered: list[None] = []

    @property
    def is_inherited(self) -> bool:
        """Whether the parent process opened it, before a fork. Then it must be left alone here:
        both processes have the same socket."""
        return self.owner_pid != os.getpid()

    @property
    def adapters(self) -> AdaptersMap:
        # Global ones count until somebody asks, as with psycopg.
        if self._adapters is None:
            self._adapters = NotedAdapters(self.base_adapters, self.registered)
        return self._adapters

    def take_types(self, types: KnownTypes) -> None:
        """Have the adapters of *types*, and nothing of what was registered here before."""
        if types.adapters is not None:
            self.base_adapters = types.adapters
            self._adapters = None
            self.registered.clear()

    def renew(self) -> bool:
        """Drop what a migration may have made stale; False if it takes another connection.

        So it does where the types of the database are others now: what ``configure`` registered
        beside them stays with the connection.
        """
        self.record.prepare_anew(self)
        return self.has_types_of(self.record.opener.types)

    def has_types_of(self, types: KnownTypes | None) -> bool:
        """Whether its adapters are those of *types* as they are now."""
        return types is None or types.adapters is None or self.base_adapters is types.adapters

    @classmethod
    def _connect_gen(cls, conninfo: str = "", **kwargs: Any) -> PQGenConn[Self]:
        pgconn = yield from connect_in_steps(conninfo, **kwargs)
        return cls(pgconn)

    def _commit_gen(self) -> PQGen[None]:
        if has_failed(self.pgconn) and not self._num_transactions and not self._tpc:
            error = error_of_failed(self)
            yield from self._rollback_gen()
            raise error
        yield from super()._commit_gen()

    def _exec_command(
        self, command: Any, result_format: Format = Format.TEXT
    ) -> PQGen[PGresult | None]:
        gen = super()._exec_command(command, result_format)
        if isinstance(command, bytes):  # not those of a cursor, which has a query of its own
            gen = noted_command(command, gen)
        if query_executed.receivers or transaction_ended.receivers:
            return watched_command(self, command, gen)
        return gen

    def _begin_gen(self, command: bytes, settings: LocalSettings) -> PQGen[PGresult | None]:
        """Begin a transaction by *command*, with *settings*."""
        gen = noted_command(command, local_settings.begin_gen(self, command, settings))
        if query_executed.receivers or transaction_ended.receivers:
            return watched_command(self, command, gen)
        return gen

    def _rollback_gen(self) -> PQGen[None]:
        yield from super()._rollback_gen()
        self.record.failed_by = None

    def _tpc_prepare_gen(self) -> PQGen[None]:
        # PREPARE TRANSACTION is answered as COMMIT is.
        if has_failed(self.pgconn) and self._tpc and not self._tpc[1]:
            raise error_of_failed(self)
        yield from super()._tpc_prepare_gen()

    def note_close(self) -> None:
        """To be called before it closes."""
        if self.pgconn.transaction_status in _UNFINISHED and not self.is_inherited:
            self.record.closed_in_transaction = True

    @contextmanager
    def bounded(self, timeout: float, by: str) -> Iterator[None]:
        """A block in which each query may run for *timeout* seconds, as *by* says."""
        outer = self.query_timeout, self.bounded_by
        self.query_timeout, self.bounded_by = timeout, by
        try:
            yield
        finally:
            self.query_timeout, self.bounded_by = outer

    def bounded_as_opening(self) -> AbstractContextManager[None]:
        """A block in which each query may take as long as connecting may."""
        timeout = timeout_from_conninfo({**self.info.get_parameters()})
        return self.bounded(timeout, "connect_timeout")

    def bounded_as_release(self) -> AbstractContextManager[None]:
        """A block whose queries keep whoever is done with the connection for a short time only."""
        return self.bounded(min(self.query_timeout or inf, LONGEST_RELEASE), "the end of a block")

    @property
    def wants_commit(self) -> bool:
        """Whether a block that ends well has to commit, which is an error where it cannot."""
        return not self.closed or self.broken or self.record.closed_in_transaction

    @property
    def closed(self) -> bool:
        return self.is_inherited or super().closed

    def is_at_work(self) -> bool:
        """Whether a query or a COPY is under way, outside a pipeline that takes more."""
        pgconn = self.pgconn
        return pgconn.transaction_status == TransactionStatus.ACTIVE and (
            not pgconn.pipeline_status or self.is_on_round_trip
        )

    def cancel_quietly(self) -> None:
        """Ask the server to cancel the query that runs; it may not hear it."""
        with suppress(psycopg.Error):
            self.cancel()

    def shut_down(self) -> None:
        """Shut down the socket under whoever uses this connection: what it waits for fails."""
        with suppress(OSError, psycopg.OperationalError):  # closed already
            with socket.socket(fileno=os.dup(self.pgconn.socket)) as duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)


def set_all(settings: Mapping[str, str]) -> tuple[sql.Composed, list[str]]:
    """The query, and its parameters, that applies server settings to a session.

    Its last column is the process that answers, for :func:`warn_of_pooler`.
    """
    calls = sql.SQL(", ").join([_SET_ONE] * len(settings))
    return _SELECT + calls + _WHO_ANSWERS, [part for item in settings.items() for part in item]


def warn_of_pooler(
    config: Config, section: str, conn: AnyConnection, result: PGresult | None
) -> None:
    """Log, once for each server, that another process answers than libpq has connected to.

    :param result: that of :func:`set_all`'s query.
    """
    answering = result.get_value(0, result.nfields - 1) if result is not None else None
    if answering is not None and int(answering) != conn.pgconn.backend_pid:
        _warn_of_pooler(config.target, section)


@cache
def _warn_of_pooler(target: str, section: str) -> None:
    logger.warning(
        "Between this app and %s stands a pooler such as PgBouncer. Unless it pools whole sessions,"
        " %s get lost there and reach its other clients: set them with ALTER ROLE … SET, or in"
        " connection_settings.options as far as the pooler passes that on.",
        target,
        section,
    )


def is_refusal(conn: Recorded, error: psycopg.Error) -> bool:
    """Whether *error* is the server's opinion of a statement, and not the end of the connection.

    A pooler between says in a SQLSTATE too that it has lost the server.
    """
    sqlstate = error.sqlstate
    return sqlstate is not None and sqlstate[:2] not in _TROUBLE and is_connected(conn)


def refuse(config: Config, section: str, name: str, error: psycopg.Error) -> NoReturn:
    """Raise the ConfigError for a setting that the server refuses."""
    refusal = f"{config.origin}: {section}.{name}: the server refuses it"
    unresolved = config.unresolved
    if is_secret_key(name) or unresolved.is_resolved(unresolved.sections[section][name]):
        quiet = ConfigError(f"{refusal}: {type(error).__name__}")
        try:
            raise quiet from None
        finally:
            # The server's own words quote the value: hidden from tracebacks is not enough, since
            # tools that collect errors follow the context too.
            quiet.__context__ = None
    raise ConfigError(f"{refusal}: {error}") from error


def unanswered(config: Config, section: str, timeout: float) -> ConnectionTimeout:
    """The error for a server that lets in and then says nothing."""
    return ConnectionTimeout(
        f"{config.target}: {section}: the server let us in and did not answer within"
        f" {seconds(timeout)} (connect_timeout) what the config sets"
    )


def wants_writable(conn: AnyConnection) -> bool:
    """Whether *conn* was opened to a server that takes writes, as the config or the environment
    demanded."""
    for option in conn.pgconn.info:
        if option.keyword == b"target_session_attrs":
            return option.val in (b"read-write", b"primary")
    return False


def put_back_plain_attributes(conn: Any, values: Iterable[Any]) -> None:
    """Set those attributes of a psycopg connection that take no await to what they were."""
    *plain, notice_handlers, notify_handlers, _, _ = values
    record: ConnectionRecord[Any] = conn.record
    if not (is_marking(conn.cursor_factory) and is_marking(conn.server_cursor_factory)):
        record.is_marked = True  # nothing saw what these cursors left
    record.find_settings = None
    for name, value in zip(_PLAIN_ATTRIBUTES, plain, strict=True):
        setattr(conn, name, value)
    conn._notice_handlers[:] = notice_handlers
    conn._notify_handlers[:] = notify_handlers
    if conn.registered:
        conn.registered = []
        conn._adapters = record.adapters and NotedAdapters(record.adapters, conn.registered)


def is_marking(cursor_factory: object) -> bool:
    """Whether what such cursors leave on the session marks it."""
    return isinstance(cursor_factory, type) and issubclass(cursor_factory, MarkingCursor)


def clearing_statements(record: ConnectionRecord[Any]) -> Iterable[LiteralString]:
    """The statements that clear a session of what does not end with its transactions."""
    if record.has_prepared:
        return (*CLEAR_SESSION, "DEALLOCATE ALL")
    return CLEAR_SESSION


def forget_what_was_heard(conn: AnyConnection) -> None:
    """Drop the notifications that nobody read, after UNLISTEN."""
    while conn.pgconn.notifies():
        pass
    if conn._notifies_backlog:
        conn._notifies_backlog.clear()


def parent_process_has_it() -> psycopg.InterfaceError:
    """The error of a child process that uses its parent's connection."""
    return psycopg.InterfaceError(
        "this psycopg connection was opened by the parent process, which goes on using it: borrow"
        " one in this process"
    )
