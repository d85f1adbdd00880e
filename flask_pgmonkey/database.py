"""Databases outside Flask: queries over a pool."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload
from weakref import ref

from psycopg.rows import Row

from . import after_commit
from .config import Config, ConfigSource, read_config
from .connections import Configure
from .manager import PGConnectionManager
from .queries import (
    IsolationLevel,
    Transaction,
    TransactionalQueries,
    nested_transaction,
    outermost_transaction,
    refuse_options_of_nested,
)
from .signals import Origin

if TYPE_CHECKING:
    from psycopg.rows import RowFactory, TupleRow

    from .connections import PoolConnection
    from .connections.server_connection import ServerConnection

T = TypeVar("T")


class _OfThread(threading.local):
    """What a thread has of a database."""

    def __init__(self) -> None:
        # The one of its open transaction; under it a parent process's, after a fork within one.
        self.connections: list[ServerConnection] = []


class Database(TransactionalQueries[Row]):
    """Queries over a pool, outside Flask. Each call borrows a connection and gives it back; within
    :meth:`transaction`, those of the same thread join it.

    Opens its pool at the first query. Safe to share between threads and to hold across a fork.

    :param config: the path of a YAML file, a mapping, or a ``postgresql://`` URI.
    :param row_factory: how to make rows; tuples without it.
    :param configure: called with every new psycopg connection.
    :param types: further types of the database, as a mapping from the name of each to what it
        becomes: an Enum, a class with fields for a composite, or None for the type's own.
    :param resolve_env: resolve ``${VAR}``, ``from_env`` and ``from_file`` in the config.
    :param allow_sensitive_defaults: allow ``${VAR:-default}`` for secret keys too.
    :param direct: connect as ``direct_settings`` say, past a transaction pooler.
    :raises ConfigError: for a config that cannot be used.
    """

    @overload
    def __init__(
        self: Database[TupleRow],
        config: ConfigSource,
        *,
        row_factory: None = None,
        configure: Configure | None = None,
        types: Mapping[str, type[Any] | None] | None = None,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        direct: bool = False,
    ) -> None: ...
    @overload
    def __init__(
        self,
        config: ConfigSource,
        *,
        row_factory: RowFactory[Row],
        configure: Configure | None = None,
        types: Mapping[str, type[Any] | None] | None = None,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        direct: bool = False,
    ) -> None: ...
    def __init__(
        self,
        config: ConfigSource,
        *,
        row_factory: RowFactory[Any] | None = None,
        configure: Configure | None = None,
        types: Mapping[str, type[Any] | None] | None = None,
        resolve_env: bool = False,
        allow_sensitive_defaults: bool = False,
        direct: bool = False,
    ) -> None:
        read = read_config(
            config, resolve_env=resolve_env, allow_sensitive_defaults=allow_sensitive_defaults
        )
        self._config = read.direct() if direct else read
        self.manager: PGConnectionManager = PGConnectionManager(
            row_factory=row_factory,
            configure=configure,
            types=types,
            find_origin=partial(origin_of_database, ref(self)),
        )
        self._of_thread = _OfThread()

    def __repr__(self) -> str:
        return f"<Database {self._config.target}>"

    @property
    def pool(self) -> PoolConnection:
        """The pool; it opens when somebody borrows from it."""
        return self.manager.pool_for(self._config)

    @contextmanager
    def transaction(
        self, isolation_level: IsolationLevel | str | None = None, read_only: bool | None = None
    ) -> Iterator[Transaction[Row]]:
        """A block whose queries are committed together, or rolled back on an exception.

        Borrows one connection for the block, which the queries of this object join in the same
        thread. Nested, it is a savepoint, which takes no *isolation_level* and no *read_only*.

        :param isolation_level: psycopg's, or its SQL words, such as ``"serializable"``.
        """
        joined = self._joined()
        if joined is not None:
            refuse_options_of_nested(isolation_level, read_only)
            with nested_transaction(joined) as transaction:
                yield transaction
            return
        conn = self.pool.borrow(autocommit=True)
        # The block may end in another thread.
        connections = self._of_thread.connections
        try:
            with outermost_transaction(conn, isolation_level, read_only) as transaction:
                connections.append(conn)
                try:
                    yield transaction
                finally:
                    connections.remove(conn)  # before the end: nothing joins what ends
        finally:
            conn.record.source.release(conn)
        after_commit.call_all(transaction._after_commit)

    def refresh_types(self) -> None:
        """Ask the database again for the types that the config and *types* name, after a migration.

        By itself that is done when a connection is opened, at most once a minute, where types are
        missing or a migration was met.
        """
        self.pool.refresh_types()

    def close(self) -> None:
        """Close the pool; the next query opens it again."""
        self.manager.clear_cache()

    def _begin_use(self) -> ServerConnection:
        return self._joined() or self.pool.borrow(autocommit=True)

    def _end_use(self, conn: ServerConnection) -> None:
        if conn not in self._of_thread.connections:
            conn.record.source.release(conn)

    def _is_in_transaction(self) -> bool:
        return self._joined() is not None

    def _joined(self) -> ServerConnection | None:
        """The connection of this thread's open transaction."""
        connections = self._of_thread.connections
        return connections[-1] if connections and not connections[-1].is_inherited else None


def origin_of_database(database: Callable[[], object], config: Config) -> Origin | None:
    """The origin of the events of what *database* gives, if that is still there."""
    # The manager must not keep the database alive that has it.
    sender = database()
    return Origin(sender) if sender is not None else None
