"""psycopg's Connection as this package opens it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg import capabilities, waiting
from psycopg.errors import QueryCanceled
from psycopg.pq import TransactionStatus
from psycopg.rows import tuple_row

from ..config import Config
from ..config.login import Login
from ..errors import QueryTimeoutError, ServerSilentError
from ..owned_lock import OwnedLock
from ..signals import query_executed
from . import configuring
from .blocks import calling_frame
from .connect_errors import copy_for_waiter
from .copying import read_out
from .cursor import Cursor, ServerCursor
from .login_attempts import PAUSE, LoginAttempt
from .query_timeout import (
    LONGEST_SILENCE,
    WAKE_UP_EVERY,
    DeadlineError,
    QueryLimit,
    time_limit,
    timeout_of_block,
    until,
)
from .record import ConnectionRecord
from .server_connection_base import (
    QUERY_WITHIN_QUERY,
    REFUSES_WRITES,
    BaseServerConnection,
    Configure,
    clearing_statements,
    forget_what_was_heard,
    is_refusal,
    parent_process_has_it,
    put_back_plain_attributes,
    refuse,
    set_all,
    unanswered,
    wants_writable,
    warn_of_pooler,
)
from .transaction import Transaction, has_failed
from .watching import Call, PipelineWatch

if TYPE_CHECKING:
    from contextlib import _GeneratorContextManager
    from types import TracebackType

    from psycopg import Pipeline
    from psycopg.abc import PQGen
    from psycopg.pq.abc import PGconn
    from psycopg.rows import RowFactory
    from typing_extensions import Self

    from .known_types import KnownTypes
    from .protocols import Opener, Source

T = TypeVar("T")

INTERRUPTS = (KeyboardInterrupt, SystemExit)


class ServerConnection(BaseServerConnection, psycopg.Connection[Any]):
    """psycopg's Connection with our record, of no use to a forked child."""

    record: ConnectionRecord[Source[ServerConnection]]

    def __init__(self, pgconn: PGconn, *args: Any, **kwargs: Any) -> None:
        super().__init__(pgconn, *args, **kwargs)
        self.lock: Any = OwnedLock(QUERY_WITHIN_QUERY.format(caller="thread"))

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        if self.owner_pid != os.getpid():
            raise parent_process_has_it()
        if args or kwargs:  # notifies(), which waits as long as its caller wants
            return psycopg.Connection.wait(self, gen, *args, **kwargs)
        try:
            if self.query_timeout or time_limit.get() is not None:
                limit = QueryLimit(self.query_timeout, timeout_of_block(), self.bounded_by)
                if limit.timeout:
                    return self._wait_within(limit, gen)
            return waiting.wait(gen, self.pgconn.socket, WAKE_UP_EVERY)
        except INTERRUPTS:
            if self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                with suppress(psycopg.Error, DeadlineError):
                    self._cancel_query(gen)
            raise
        except psycopg.Error as error:
            self.record.note_failure(self, error)
            if self.record.is_copy_left:
                self.record.is_copy_left = False
                self.end_copy(error)
            raise
        except Exception:  # of a handler of signals, if a query goes on
            if self.is_at_work():
                with suppress(psycopg.Error, DeadlineError):
                    self._cancel_query(gen)
            raise

    def end_copy(self, because: psycopg.Error | None = None) -> None:
        """End the COPY that is under way, whatever it does; the caller holds the lock.

        Where the server does not do so within a second, the connection is closed.
        """
        if self.is_inherited:
            return
        if self.pgconn.pipeline_status:
            self.pgconn.finish()  # libpq gets out of it by nothing else
        if not self.is_at_work():
            return
        try:
            self._cancel_query(read_out(self.pgconn))
        except psycopg.Error as error:
            self.record.note_failure(self, error)
            if because is not None and has_failed(self.pgconn):
                self.record.failed_by = copy_for_waiter(because)
        except DeadlineError:
            pass  # the connection is closed, which the next statement says

    def _wait_within(self, limit: QueryLimit, gen: PQGen[T]) -> T:
        deadline = monotonic() + limit.timeout
        fileno = self.pgconn.socket
        wake_up_every = min(WAKE_UP_EVERY, limit.timeout)
        was_cancelled = self.record.is_copy_cancelled
        self.record.is_copy_cancelled = False
        try:
            result = waiting.wait(until(deadline, gen), fileno, wake_up_every)
        except QueryCanceled as error:
            if was_cancelled:
                raise limit.canceled(error) from error
            raise
        except DeadlineError:
            pass
        else:
            if was_cancelled and self.is_at_work():
                raise limit.canceled(None)
            return result
        try:
            result = self._cancel_query(gen)
        except QueryCanceled as error:
            raise limit.canceled(error) from error
        except DeadlineError as error:
            raise limit.unanswered() from error.__cause__
        # It ended before it could be cancelled. But the end of a COPY is waited for apart.
        self.record.is_copy_cancelled = self.is_at_work()
        return result

    def _cancel_query(self, gen: PQGen[T]) -> T:
        """Have the server cancel what *gen* waits for, and wait for its end.

        :raises psycopg.Error: what the server says then, in general QueryCanceled.
        :raises DeadlineError: if it says nothing for a second; then the connection is closed.
        """
        give_up_at = monotonic() + LONGEST_SILENCE
        is_asked = False
        try:
            self._ask_to_cancel()
            is_asked = True
            fileno = self.pgconn.socket
            return waiting.wait(until(give_up_at, gen), fileno, WAKE_UP_EVERY)
        except BaseException as error:
            if is_asked and isinstance(error, psycopg.Error):
                raise
            self.shut_down()
            self.pgconn.finish()
            if isinstance(error, psycopg.Error):  # the request did not get through
                raise DeadlineError from error
            raise

    def _ask_to_cancel(self) -> None:
        if capabilities.has_cancel_safe():
            self.cancel_safe(timeout=LONGEST_SILENCE)
            return
        # Before libpq 17 nothing bounds it.
        asking = threading.Thread(target=self.cancel_quietly, daemon=True)
        asking.start()
        asking.join(LONGEST_SILENCE)
        if asking.is_alive():
            raise DeadlineError

    def commit(self) -> None:
        with Call(self.record):
            super().commit()

    def rollback(self) -> None:
        with Call(self.record):
            super().rollback()

    def pipeline(self) -> _GeneratorContextManager[Pipeline]:
        block = super().pipeline()
        if query_executed.receivers and self.record.pipelined is None:
            return self._watched(block)
        return block

    @contextmanager
    def _watched(self, block: _GeneratorContextManager[Pipeline]) -> Iterator[Pipeline]:
        with PipelineWatch(self):
            with block as pipeline:
                yield pipeline

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[Transaction]:
        """psycopg's own, which ends with an error where nothing was committed."""
        transaction = Transaction(self, savepoint_name, force_rollback)
        with Call(self.record):
            if self._pipeline is None:
                with transaction:
                    yield transaction
            else:
                with self.pipeline(), transaction, self.pipeline():
                    yield transaction

    def __enter__(self) -> Self:
        block = self.transaction()
        block.__enter__()
        self.record.blocks.append((calling_frame(), block))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> Any:
        # A transaction, and no end of the connection: that is whoever's it was borrowed from.
        return self.record.leave_block(calling_frame()).__exit__(exc_type, exc_val, exc_tb)

    def close(self) -> None:
        self.note_close()
        super().close()

    @classmethod
    def open(
        cls,
        opener: Opener,
        configure: Configure | None,
        row_factory: RowFactory[Any] | None,
    ) -> Self:
        """Connect for *opener*, apply its config's settings, run *configure*. In autocommit still.

        :raises psycopg.OperationalError: with the server's words where it cannot connect.
        :raises ConfigError: for a setting that the server refuses.
        """
        configuring.require_plain(configure)
        config = opener.config
        conn, login = cls._log_in(config, row_factory)
        try:
            conn.server_cursor_factory = ServerCursor
            if opener.find_tag is not None:
                from . import tagged_cursor  # what few apps use

                conn.cursor_factory = tagged_cursor.TaggedCursor
                conn.server_cursor_factory = tagged_cursor.TaggedServerCursor
            if config.prepared_max is not None:
                conn.prepared_max = config.prepared_max
            conn.record = ConnectionRecord(conn, opener, configure)
            conn.record.login_expiry = login.expiry if login is not None else None
            if settings := config.sync_settings:
                with conn.bounded_as_opening():
                    conn._apply(config, settings)
            if opener.types is not None:
                if opener.types.claim_look():
                    with conn.bounded_as_opening():
                        conn.ask_for_types(opener.types)
                conn.take_types(opener.types)
            conn.query_timeout = config.pool.query_timeout
            conn._make_ready()
        except BaseException:
            conn.close()
            raise
        return conn

    def _make_ready(self) -> None:
        configure = self.record.configure
        if configure:
            with self.bounded_as_opening():
                configuring.run(configure, self)
        self.record.note_ready(self)

    @classmethod
    def _log_in(
        cls, config: Config, row_factory: RowFactory[Any] | None
    ) -> tuple[Self, Login | None]:
        attempt = LoginAttempt(config)
        try:
            while not attempt.may_begin():
                sleep(PAUSE)
            login = config.ask_login()
            conn = None
            while conn is None:
                try:
                    conn = cls.connect(
                        **config.connect_kwargs(login),
                        autocommit=True,
                        row_factory=row_factory,
                        cursor_factory=Cursor,
                    )
                except psycopg.OperationalError as error:
                    if not attempt.may_ask_again(error):
                        raise
                    another = config.ask_another_login(login)
                    if another is None:
                        raise
                    login = another
        except BaseException as error:
            attempt.end(error)
            raise
        attempt.end()
        return conn, login

    def _apply(self, config: Config, settings: Mapping[str, str]) -> None:
        try:
            cursor = self.execute(*set_all(settings), prepare=False)
            warn_of_pooler(config, "sync_settings", self, cursor.pgresult)
        except (QueryTimeoutError, ServerSilentError) as error:
            raise unanswered(config, "sync_settings", self.query_timeout) from error
        except psycopg.DatabaseError as error:
            if not is_refusal(self, error):
                raise
            for name, value in settings.items():
                try:
                    self.execute(*set_all({name: value}), prepare=False)
                except psycopg.DatabaseError as refusal:
                    if not is_refusal(self, refusal):
                        raise
                    refuse(config, "sync_settings", name, refusal)
            raise

    def ask_for_types(self, types: KnownTypes) -> None:
        """Ask the catalogue for *types*."""
        try:
            cursor = self.cursor(row_factory=tuple_row)
            cursor.execute(*types.question, prepare=False)
            ((answer,),) = cursor.fetchall()
            types.learn(self, answer)
        except (QueryTimeoutError, ServerSilentError) as error:
            config = self.record.opener.config
            raise unanswered(config, "types", self.query_timeout) from error
        except psycopg.DatabaseError as error:
            if not is_refusal(self, error):
                raise
            types.note_refusal(error)

    def put_back_attributes(self) -> None:
        """Undo what the borrower changed on this object. Costs no round trip.

        Autocommit is left to the next borrow, which sets it as it needs it.
        """
        self.isolation_level, self.read_only, self.deferrable, *plain = self.record.attributes
        put_back_plain_attributes(self, plain)

    def reset_session(self) -> None:
        """Clear what the borrower left on the server and make the session ready again: one round
        trip, and those of ``configure``.

        What was registered on this object, and the notifications that nobody read, go too.
        """
        record = self.record
        settings = record.opener.config.sync_settings
        record.is_seen = False  # until it is ready again
        self.autocommit = True
        if record.has_prepared:
            record.forget_prepared(self)
        with self.bounded_as_release():
            with self.pipeline():
                for statement in clearing_statements(record):
                    self.execute(statement, prepare=False)
                if settings:
                    self.execute(*set_all(settings), prepare=False)
        forget_what_was_heard(self)
        record.has_prepared = False
        if record.configure:
            record.forget_configure(self)
        try:
            self._make_ready()
        except psycopg.Error:
            raise
        except Exception as error:
            # Whoever gives the connection back has nothing to do with it.
            raise psycopg.ProgrammingError(f"configure, after a reset: {error!r}") from error

    def was_demoted(self) -> bool:
        """Whether the server became read-only although one that takes writes was demanded.

        Asks it, in a round trip, outside of any transaction: one that was to be read-only is over.
        """
        if not wants_writable(self):
            return False
        self.autocommit = True
        cursor = self.cursor(row_factory=tuple_row)
        with self.bounded_as_release():
            row = cursor.execute(REFUSES_WRITES, prepare=False).fetchone()
        return bool(row and row[0])
