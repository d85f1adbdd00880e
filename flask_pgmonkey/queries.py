"""Queries, given connections to run them on.

A single query is durable when it returns: connections are borrowed in autocommit, so that it costs
one round trip. ``transaction()`` groups several.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from time import sleep
from types import FunctionType
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast, overload

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import Row, scalar_row, tuple_row

from . import after_commit
from .connections.cursor import Cursor, is_stale_plan
from .mistakes import (
    explain_missing_names,
    explain_parameters,
    isolation_level_of,
    require_row_factory,
)
from .retries import MAY_PASS, Retries, refuse_awaitable, within_transaction
from .rows import instead_of, require_one_row, row_into, rows_into, value_into

if TYPE_CHECKING:
    from psycopg.abc import Params, Query, QueryNoTemplate
    from psycopg.rows import RowFactory
    from typing_extensions import TypeVarTuple, Unpack

    from .batches import Batch
    from .connections.server_connection import ServerConnection
    from .plans import Plan

    Arguments = TypeVarTuple("Arguments")

T = TypeVar("T")
IsolationLevel: TypeAlias = psycopg.IsolationLevel

_IDLE = TransactionStatus.IDLE


class Queries(ABC, Generic[Row]):
    """The queries of everything that has a source of connections."""

    @abstractmethod
    def _begin_use(self) -> ServerConnection:
        """A connection in autocommit, or in the transaction that the query joins."""

    @abstractmethod
    def _end_use(self, conn: ServerConnection) -> None:
        """The query is over."""

    @overload
    def fetch_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowFactory[T],
        into: None = None,
    ) -> T | None: ...
    @overload
    def fetch_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: type[T],
    ) -> T | None: ...
    @overload
    def fetch_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: None = None,
    ) -> Row | None: ...
    def fetch_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowFactory[Any] | None = None,
        into: type[Any] | None = None,
    ) -> Any:
        """The first row of the result, or None if there is none.

        :param query: a string, a :mod:`psycopg.sql` object, or on Python 3.14 a template string.
        :param params: the values of its placeholders.
        :param row_factory: how to make the row, as psycopg has it; the database's own without it.
        :param into: the class of the row instead: see *Rows of your own classes* in the docs.
        :raises RowMismatchError: where the columns do not fit *into*.
        """
        factory = row_factory if into is None else instead_of(row_factory, tuple_row)
        conn = self._begin_use()
        try:
            cursor = _run(conn, query, params, factory)
            row = cursor.fetchone()
            return row if into is None else row_into(into, cursor, row)
        finally:
            self._end_use(conn)

    @overload
    def fetch_exactly_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowFactory[T],
        into: None = None,
    ) -> T: ...
    @overload
    def fetch_exactly_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: type[T],
    ) -> T: ...
    @overload
    def fetch_exactly_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: None = None,
    ) -> Row: ...
    def fetch_exactly_one(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowFactory[Any] | None = None,
        into: type[Any] | None = None,
    ) -> Any:
        """The row of a result that has one row. Parameters as for :meth:`fetch_one`.

        :raises NoRowError: if there is none.
        :raises SeveralRowsError: if there are more; what the query wrote is not undone.
        """
        factory = row_factory if into is None else instead_of(row_factory, tuple_row)
        conn = self._begin_use()
        try:
            cursor = _run(conn, query, params, factory)
            row = cursor.fetchone()
            require_one_row(cursor)
            return row if into is None else row_into(into, cursor, row)
        finally:
            self._end_use(conn)

    @overload
    def fetch_all(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowFactory[T],
        into: None = None,
    ) -> list[T]: ...
    @overload
    def fetch_all(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: type[T],
    ) -> list[T]: ...
    @overload
    def fetch_all(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: None = None,
    ) -> list[Row]: ...
    def fetch_all(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowFactory[Any] | None = None,
        into: type[Any] | None = None,
    ) -> Any:
        """All rows of the result. Parameters as for :meth:`fetch_one`."""
        factory = row_factory if into is None else instead_of(row_factory, tuple_row)
        conn = self._begin_use()
        try:
            cursor = _run(conn, query, params, factory)
            rows = cursor.fetchall()
            return rows if into is None else rows_into(into, cursor, rows)
        finally:
            self._end_use(conn)

    @overload
    def fetch_value(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowFactory[T],
        into: None = None,
    ) -> T | None: ...
    @overload
    def fetch_value(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: type[T],
    ) -> T | None: ...
    @overload
    def fetch_value(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: None = None,
        into: None = None,
    ) -> Any: ...
    def fetch_value(
        self,
        query: Query,
        params: Params | None = None,
        *,
        row_factory: RowFactory[Any] | None = None,
        into: type[Any] | None = None,
    ) -> Any:
        """The first column of the first row, or None if there is no row.

        Parameters as for :meth:`fetch_one`; with a *row_factory*, what it makes is the value, and
        with *into* the value is of that type: as it is, or by a call with it.
        """
        factory: RowFactory[Any] = (
            row_factory or scalar_row if into is None else instead_of(row_factory, scalar_row)
        )
        conn = self._begin_use()
        try:
            value = _run(conn, query, params, factory).fetchone()
            return value if into is None else value_into(into, value)
        finally:
            self._end_use(conn)

    def fetch_json(self, query: Query, params: Params | None = None) -> bytes:
        """All rows of the result as a JSON array of objects, in UTF-8, which PostgreSQL makes.

        ``[]`` if there is none. Parameters as for :meth:`fetch_one`. How it writes numbers, times
        and the rest: see *JSON and CSV* in the docs.

        :raises psycopg.errors.SyntaxError: for a statement that is no query, and for several.
        """
        conn = self._begin_use()
        try:
            return _fetch_json(conn, query, params)
        finally:
            self._end_use(conn)

    def execute(self, query: Query, params: Params | None = None) -> int:
        """Run a statement, for its effect and not for its rows.

        :return: the number of rows it affected; 0 for a command that affects none.
        """
        conn = self._begin_use()
        try:
            return max(0, _run(conn, query, params, None).rowcount)
        finally:
            self._end_use(conn)

    def execute_many(self, query: Query, params_seq: Iterable[Params]) -> int:
        """Run a query with each set of parameters, all of them or none.

        :return: the number of rows affected in all.
        """
        # At once: a generator that queries would wait for the connection that executemany holds.
        params_list = list(params_seq)
        conn = self._begin_use()
        try:
            is_outermost = conn.pgconn.transaction_status == TransactionStatus.IDLE
            try:
                return _execute_many(conn, query, params_list)
            except psycopg.Error as error:
                if not (is_outermost and is_stale_plan(error) and not error.diag.context):
                    raise
            return _execute_many(conn, query, params_list)
        finally:
            self._end_use(conn)

    def batch(self) -> Batch[Row]:
        """A block that collects queries: they go to the server at its end, in one round trip, all
        or nothing, and an exception in it sends none.

        In a transaction they are part of that, else they are one of their own.
        """
        from .batches import Batch  # what many apps never use

        return Batch(self._begin_use, self._end_use)

    def explain(self, query: Query, params: Params | None = None, *, analyze: bool = False) -> Plan:
        """How PostgreSQL would run a query: its plan, whose ``str()`` is a text.

        :param analyze: run it too, to measure what it does. That happens in a transaction that is
            rolled back, in a savepoint where one is open; what transactions do not undo, such as
            the next value of a sequence, stays done.
        :raises psycopg.errors.SyntaxError: for a statement that has no plan, and for several.
        """
        conn = self._begin_use()
        try:
            with _transaction_to_explain(conn, analyze):
                return _explain(conn, query, params, analyze)
        finally:
            self._end_use(conn)


explain_missing_names(Queries)


class Transaction(Queries[Row]):
    """What ``transaction()`` gives: the same queries, within the transaction.

    :ivar connection: the psycopg connection that the transaction is on.
    """

    def __init__(self, conn: ServerConnection) -> None:
        self._conn: ServerConnection | None = conn
        self._after_commit = conn.record.after_commit

    def __repr__(self) -> str:
        return f"<Transaction {'over' if self._conn is None else 'open'}>"

    @property
    def connection(self) -> psycopg.Connection[Row]:
        """The psycopg connection that the transaction is on."""
        return self._hand_out()

    def cursor(self, *args: Any, **kwargs: Any) -> psycopg.Cursor[Any]:
        """A cursor; takes what :meth:`psycopg.Connection.cursor` takes."""
        return cast("psycopg.Cursor[Any]", self._hand_out().cursor(*args, **kwargs))

    @contextmanager
    def transaction(self) -> Iterator[Transaction[Row]]:
        """A savepoint: an exception in its block undoes what the block did."""
        with nested_transaction(self._begin_use()) as nested:
            yield nested

    def on_commit(self, fn: Callable[[], object]) -> None:
        """Have *fn* called when all is committed: after the COMMIT of the outermost block.

        Those of a transaction are called in their order, outside of it. What is rolled back, with
        its savepoint too, takes its functions along. One that raises is logged, and keeps no other
        from being called.

        :raises RuntimeError: where the outermost transaction was begun by hand.
        """
        self._begin_use()
        after_commit.add(self._after_commit, fn, takes_coroutines=False)

    def _hand_out(self) -> ServerConnection:
        conn = self._begin_use()
        conn.record.is_handed_out = True
        return conn

    def _begin_use(self) -> ServerConnection:
        if self._conn is None:
            raise RuntimeError("this transaction is over: use it within its block")
        return self._conn

    def _end_use(self, conn: ServerConnection) -> None:
        pass

    def _end(self) -> None:
        self._conn = None


class TransactionalQueries(Queries[Row]):
    """Queries of what may begin a transaction."""

    @abstractmethod
    def transaction(
        self, isolation_level: IsolationLevel | str | None = None, read_only: bool | None = None
    ) -> AbstractContextManager[Transaction[Row]]:
        """A block whose queries are committed together, or rolled back on an exception."""

    @abstractmethod
    def _is_in_transaction(self) -> bool:
        """Whether a transaction is open that a query here would join."""

    def run_transaction(
        self,
        fn: Callable[[Transaction[Row], Unpack[Arguments]], T],
        *args: Unpack[Arguments],
        isolation_level: IsolationLevel | str | None = None,
        read_only: bool | None = None,
        retries: int = 3,
    ) -> T:
        """What *fn* gives with the transaction and *args*, once that is committed.

        It is called again, in a transaction of its own, where one ends with SQLSTATE 40001 or 40P01
        (serialization failure, deadlock), be it at COMMIT. Before that it waits: up to 10 ms at
        first, twice as much each time, and a second at most.

        :param retries: how many times it is called again. None of them begins when the time of a
            ``db.timeout()`` around it is up.
        :return: None where *fn* raises :exc:`psycopg.Rollback`.
        :raises psycopg.Error: that of the last time.
        :raises RuntimeError: within a transaction.
        """
        if self._is_in_transaction():
            raise within_transaction()
        allowed = Retries(fn, retries)
        while True:
            value: Any = None  # where the block swallows a Rollback
            try:
                with self.transaction(isolation_level, read_only) as transaction:
                    value = fn(transaction, *args)
                    refuse_awaitable(value, fn)
                return cast("T", value)
            except MAY_PASS as error:
                pause = allowed.pause_after(error)
                if pause is None:
                    raise
            sleep(pause)


@contextmanager
def outermost_transaction(
    conn: ServerConnection, isolation_level: IsolationLevel | str | None, read_only: bool | None
) -> Iterator[Transaction[Any]]:
    """A transaction on a connection that is in none.

    Isolation level and access mode go with BEGIN, so they cost no round trip.
    """
    level = isolation_level_of(isolation_level)
    # Not where it was begun by hand.
    conn.record.after_commit = [] if conn.pgconn.transaction_status == _IDLE else None
    before = conn.isolation_level, conn.read_only
    if level is not None:
        conn.isolation_level = level
    if read_only is not None:
        conn.read_only = read_only
    try:
        with nested_transaction(conn) as transaction:
            yield transaction
    finally:
        conn.record.after_commit = None
        if not conn.closed and before != (conn.isolation_level, conn.read_only):
            conn.isolation_level, conn.read_only = before


def refuse_options_of_nested(
    isolation_level: IsolationLevel | str | None, read_only: bool | None
) -> None:
    """Raise an error where a nested ``transaction()`` is given what only BEGIN can set."""
    if isolation_level is not None or read_only is not None:
        raise psycopg.ProgrammingError(
            "isolation_level and read_only belong to the outermost transaction()"
        )


@contextmanager
def nested_transaction(conn: ServerConnection) -> Iterator[Transaction[Any]]:
    """A transaction, or a savepoint where one is open."""
    with conn.transaction() as block:
        transaction: Transaction[Any] = Transaction(conn)
        try:
            yield transaction
        except psycopg.Rollback as rollback:
            if cast("object", rollback.transaction) is transaction:
                rollback.transaction = block
            raise
        finally:
            transaction._end()


def _run(
    conn: ServerConnection,
    query: Query,
    params: Params | None,
    row_factory: RowFactory[Any] | None,
) -> psycopg.Cursor[Any]:
    if row_factory is None:
        row_factory = conn.row_factory
    elif type(row_factory) is not FunctionType:
        require_row_factory(row_factory)
    # As conn.cursor() makes it, without what execute() checks again.
    cursor = conn.cursor_factory(conn, row_factory=row_factory)
    try:
        # The signature wants template strings apart, which take no parameters.
        return cursor.execute(query, params)  # type: ignore[arg-type]
    except TypeError:
        explain_parameters(params)
        raise


def _execute_many(conn: ServerConnection, query: Query, params_list: list[Params]) -> int:
    with conn.transaction(), conn.cursor() as cursor:
        try:
            cursor.executemany(query, params_list)
        except TypeError:
            for params in params_list:
                explain_parameters(params)
            raise
        return max(0, cursor.rowcount)


def _fetch_json(conn: ServerConnection, query: Query, params: Params | None) -> bytes:
    from .connections.enclosing import enclosing_cursor  # what not every app uses
    from .json_rows import enclosure_for_json, read_json

    cursor = enclosing_cursor(conn, enclosure_for_json(conn.pgconn))
    try:
        cursor.execute(cast("QueryNoTemplate", query), params)
    except TypeError:
        explain_parameters(params)
        raise
    if cursor.pgresult is None:
        cursor.fetchone()  # in a pipeline, the result is there when a row is asked for
    return read_json(conn.pgconn, cursor.pgresult)


def _transaction_to_explain(
    conn: ServerConnection, analyze: bool
) -> AbstractContextManager[object]:
    # Also for settings of transactions, whatever cursor asks for the plan.
    if analyze or conn.record.find_settings is not None:
        return conn.transaction(force_rollback=True)
    return nullcontext()


def _explain(conn: ServerConnection, query: Query, params: Params | None, analyze: bool) -> Plan:
    from .plans import explaining, note_refusal, read_plan  # few explain

    query = explaining(query, analyze)
    cursor = conn.cursor(row_factory=tuple_row)
    if isinstance(cursor, psycopg.ClientCursor):
        # It would send several statements as one query, and EXPLAIN stands before the first alone.
        query, params = cast("Query", cursor.mogrify(cast("QueryNoTemplate", query), params)), None
        cursor = Cursor(conn, row_factory=tuple_row)
    try:
        # Nor does psycopg send several in the protocol for binary results.
        cursor.execute(cast("QueryNoTemplate", query), params, prepare=False, binary=True)
    except psycopg.errors.SyntaxError as error:
        note_refusal(error)
        raise
    except TypeError:
        explain_parameters(params)
        raise
    cursor.fetchone()
    return read_plan(cursor.pgresult)
