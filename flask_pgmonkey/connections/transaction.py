"""Transactions that end in one of two ways: committed, or with an error.

PostgreSQL answers the COMMIT of a failed transaction with a rollback, and psycopg says nothing of
it, nor of a transaction whose connection died while its body ended normally.
"""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import errors
from psycopg.abc import ConnectionType
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.transaction import BaseTransaction

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn

    from .record import ConnectionRecord


class _OwnTransaction(BaseTransaction[ConnectionType]):
    """What our two transactions share: what neither blocks nor awaits."""

    def _exit_gen(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> PQGen[bool]:
        if exc_val is None and not self.force_rollback and has_failed(self.pgconn):
            error = error_of_failed(self._conn)
            yield from super()._exit_gen(type(error), error, None)
            raise error
        return (yield from super()._exit_gen(exc_type, exc_val, exc_tb))

    def _end_dead(self, exc_val: BaseException | None) -> bool:
        """End with a connection that is dead: True if the exception goes no further."""
        self.status = self.Status.FAILED
        if exc_val is None and not self.force_rollback:
            raise psycopg.OperationalError(
                "the connection was lost within the transaction: nothing of it is committed"
            )
        return ends_quietly(exc_val, self)


class Transaction(_OwnTransaction["psycopg.Connection[Any]"], psycopg.Transaction):
    """psycopg's Transaction, with an error where nothing was committed."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool:
        if self.pgconn.status != ConnStatus.OK:
            return self._end_dead(exc_val)
        return super().__exit__(exc_type, exc_val, exc_tb)


class AsyncTransaction(_OwnTransaction["psycopg.AsyncConnection[Any]"], psycopg.AsyncTransaction):
    """psycopg's AsyncTransaction, with an error where nothing was committed."""

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool:
        if self.pgconn.status != ConnStatus.OK:
            return self._end_dead(exc_val)
        return await super().__aexit__(exc_type, exc_val, exc_tb)


def ends_quietly(exc: BaseException | None, ending: object = None) -> bool:
    """Whether *exc* only asks the block that ends, of the transaction *ending*, to roll back."""
    return isinstance(exc, psycopg.Rollback) and (
        exc.transaction is None or exc.transaction is ending
    )


def has_failed(pgconn: PGconn) -> bool:
    """Whether the transaction that is open has failed, so that nothing of it can be committed."""
    return bool(pgconn.transaction_status == TransactionStatus.INERROR)


def error_of_failed(conn: Any) -> errors.InFailedSqlTransaction:
    """The error for who would commit a transaction that has failed, its first one the cause."""
    record: ConnectionRecord[Any] = conn.record
    error = errors.InFailedSqlTransaction(
        "the transaction has failed, so nothing of it is committed. Where a statement may fail,"
        " put it into a nested transaction(), and catch its error around that"
    )
    error.__cause__, record.failed_by = record.failed_by, None
    return error
