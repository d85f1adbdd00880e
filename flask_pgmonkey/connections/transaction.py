"""Transactions that end in one of two ways: committed, or with an error.

PostgreSQL answers the COMMIT of a failed transaction with a rollback, and psycopg says nothing of
it, nor of a transaction whose connection died while its body ended normally.

A block that generators end before one nested in it could neither be committed nor be rolled back by
itself. It is refused: the server is made to fail the transaction, so that it takes no statement
more, and the last block to end rolls it back.
"""

from __future__ import annotations

import asyncio
import threading
from abc import abstractmethod
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any

import psycopg
from psycopg import errors
from psycopg.abc import ConnectionType
from psycopg.pq import ConnStatus, TransactionStatus
from psycopg.transaction import BaseTransaction, OutOfOrderTransactionNesting

from .record import Refusal

if TYPE_CHECKING:
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn
    from typing_extensions import Self

    from ..after_commit import Callbacks
    from .local_settings import LocalSettings
    from .record import ConnectionRecord


# Fails any transaction, whatever state it is in.
_FAIL = b'ROLLBACK TO SAVEPOINT "transaction blocks ended out of order"'

_OUT_OF_ORDER = (
    "a block ended before one that was nested in it: both are rolled back, and all blocks around"
    " them"
)
_ENDED_ELSEWHERE = (
    "a generator was dropped within its block, which another thread or task had to end: it is"
    " rolled back with all that ran there since, and so are all blocks around it. Give the"
    " generator an end, with contextlib.closing() or aclosing()"
)


class _OwnTransaction(BaseTransaction[ConnectionType]):
    """What our two transactions share: what neither blocks nor awaits."""

    _began_in: object = None
    _callbacks_before: int = 0
    _settings: LocalSettings | None = None

    @staticmethod
    @abstractmethod
    def _runner() -> object:
        """What runs now: the thread, or the task."""

    def _enter_gen(self) -> PQGen[None]:
        self._began_in = self._runner()
        self._callbacks_before = len(self._conn.record.after_commit or ())  # type: ignore[attr-defined]
        if self.pgconn.transaction_status == TransactionStatus.IDLE:
            self._conn.record.failed_by = None  # type: ignore[attr-defined]
        if self._settings is None:
            yield from super()._enter_gen()
            return
        self.status = self.Status.ACTIVE
        self._push_savepoint()
        begin, *others = self._get_enter_commands()
        yield from self._conn._begin_gen(begin, self._settings)  # type: ignore[attr-defined]
        for command in others:
            yield from self._conn._exec_command(command)

    def _ask_for_settings(self) -> None:
        """Find those with which it is to begin, if it is the outermost. No lock must be held."""
        find_settings = self._conn.record.find_settings  # type: ignore[attr-defined]
        if find_settings is not None and self.pgconn.transaction_status == TransactionStatus.IDLE:
            self._settings = find_settings()

    def _exit_gen(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> PQGen[bool]:
        record: ConnectionRecord[Any] = self._conn.record  # type: ignore[attr-defined]
        if record.refusal is None and (reason := self._reason_to_refuse(exc_type)):
            record.refusal = Refusal(reason)
            record.failed_by = OutOfOrderTransactionNesting(reason)
            with suppress(errors.InvalidSavepointSpecification, errors.NoActiveSqlTransaction):
                yield from self._conn._exec_command(_FAIL)
        if record.refusal is not None:
            return (yield from self._end_refused_gen(record, record.refusal, exc_val))
        if exc_val is None and not self.force_rollback and has_failed(self.pgconn):
            error = error_of_failed(self._conn)
            yield from super()._exit_gen(type(error), error, None)
            raise error
        return (yield from super()._exit_gen(exc_type, exc_val, exc_tb))

    def _reason_to_refuse(self, exc_type: type[BaseException] | None) -> str | None:
        """Why this block, which ends, cannot end by itself."""
        if self._stack_index + 1 != self._conn._num_transactions:
            return _OUT_OF_ORDER
        if exc_type is not GeneratorExit or self._began_in is self._runner():
            return None
        # Without autocommit, the statements after a block belong with those in it.
        is_whole = self._outer_transaction and self._conn.autocommit
        return None if is_whole else _ENDED_ELSEWHERE

    def _end_refused_gen(
        self, record: ConnectionRecord[Any], refusal: Refusal, exc_val: BaseException | None
    ) -> PQGen[bool]:
        conn = self._conn
        self._drop_callbacks()
        conn._num_transactions -= 1
        self.status = self.Status.ROLLED_BACK_WITH_ERROR
        refusal.begun_by_block |= self._outer_transaction and self._conn.autocommit
        if not conn._num_transactions:
            record.refusal = None
            # What no block has begun is left, failed, to whoever has.
            if refusal.begun_by_block:
                yield from conn._rollback_gen()
        if exc_val is None and not self.force_rollback:
            raise OutOfOrderTransactionNesting(refusal.reason)
        return ends_quietly(exc_val, self)

    def _rollback_gen(self, exc_val: BaseException | None) -> PQGen[bool]:
        self._drop_callbacks()
        is_over = yield from super()._rollback_gen(exc_val)
        if not has_failed(self.pgconn):
            self._conn.record.failed_by = None  # type: ignore[attr-defined]
        return is_over

    def _drop_callbacks(self) -> None:
        """Forget what was to be called after the commit of what this block undoes."""
        callbacks: Callbacks | None = self._conn.record.after_commit  # type: ignore[attr-defined]
        if callbacks:
            del callbacks[self._callbacks_before :]

    def _end_dead(self, exc_val: BaseException | None) -> bool:
        """End with a connection that is dead: True if the exception goes no further."""
        self._drop_callbacks()
        self.status: BaseTransaction.Status = self.Status.FAILED
        if exc_val is None and not self.force_rollback:
            error = psycopg.OperationalError(
                "the connection was lost within the transaction: nothing of it is committed"
            )
            raise error from self._conn.record.failed_by  # type: ignore[attr-defined]
        return ends_quietly(exc_val, self)


class Transaction(_OwnTransaction["psycopg.Connection[Any]"], psycopg.Transaction):
    """psycopg's Transaction, with an error where nothing was committed."""

    @staticmethod
    def _runner() -> object:
        return threading.current_thread()

    def __enter__(self) -> Self:
        self._ask_for_settings()
        try:
            return super().__enter__()
        except BaseException as error:
            # Older versions of psycopg leave a block open that could not begin.
            if self.status == self.Status.ACTIVE and self.pgconn.status == ConnStatus.OK:
                with self._conn.lock:
                    self._conn.wait(self._exit_gen(type(error), error, None))
            raise

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool:
        if self.pgconn.status != ConnStatus.OK:
            return self._end_dead(exc_val)
        if exc_type is None:
            return super().__exit__(exc_type, exc_val, exc_tb)
        with self._conn.bounded_as_release():  # type: ignore[attr-defined]
            return super().__exit__(exc_type, exc_val, exc_tb)


class AsyncTransaction(_OwnTransaction["psycopg.AsyncConnection[Any]"], psycopg.AsyncTransaction):
    """psycopg's AsyncTransaction, with an error where nothing was committed."""

    @staticmethod
    def _runner() -> object:
        return asyncio.current_task()

    async def __aenter__(self) -> Self:
        self._ask_for_settings()
        try:
            return await super().__aenter__()
        except BaseException as error:
            # Older versions of psycopg leave a block open that could not begin.
            if self.status == self.Status.ACTIVE and self.pgconn.status == ConnStatus.OK:
                async with self._conn.lock:
                    await self._conn.wait(self._exit_gen(type(error), error, None))
            raise

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> bool:
        if self.pgconn.status != ConnStatus.OK:
            return self._end_dead(exc_val)
        if exc_type is None:
            return await super().__aexit__(exc_type, exc_val, exc_tb)
        with self._conn.bounded_as_release():  # type: ignore[attr-defined]
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
