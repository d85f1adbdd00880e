"""psycopg's Connection as this package opens it."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg
from psycopg.rows import tuple_row

from ..config import Config
from . import configuring
from .cursor import Cursor, ServerCursor
from .record import ConnectionRecord
from .server_connection_base import (
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
    wants_writable,
    warn_of_pooler,
)
from .transaction import Transaction

if TYPE_CHECKING:
    from types import TracebackType

    from psycopg.abc import PQGen
    from psycopg.rows import RowFactory
    from typing_extensions import Self

    from .protocols import Opener, Source

T = TypeVar("T")


class ServerConnection(BaseServerConnection, psycopg.Connection[Any]):
    """psycopg's Connection with our record, of no use to a forked child."""

    record: ConnectionRecord[Source[ServerConnection]]

    def wait(self, gen: PQGen[T], *args: Any, **kwargs: Any) -> T:
        if self.owner_pid != os.getpid():
            raise parent_process_has_it()
        return psycopg.Connection.wait(self, gen, *args, **kwargs)

    def shut_down(self) -> None:
        """Shut down the socket under whoever uses this connection: what it waits for fails."""
        with suppress(OSError, psycopg.OperationalError):  # closed already
            with socket.socket(fileno=os.dup(self.pgconn.socket)) as duplicate:
                duplicate.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def transaction(
        self, savepoint_name: str | None = None, force_rollback: bool = False
    ) -> Iterator[Transaction]:
        """psycopg's own, which ends with an error where nothing was committed."""
        transaction = Transaction(self, savepoint_name, force_rollback)
        if self._pipeline is None:
            with transaction:
                yield transaction
        else:
            with self.pipeline(), transaction, self.pipeline():
                yield transaction

    def __enter__(self) -> Self:
        block = self.transaction()
        block.__enter__()
        self.record.blocks.append(block)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_val: BaseException | None,
        exc_tb: TracebackType | None,
    ) -> Any:
        # A transaction, and no end of the connection: that is whoever's it was borrowed from.
        return self.record.blocks.pop().__exit__(exc_type, exc_val, exc_tb)

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
        conn = cls.connect(
            **config.connect_kwargs(),
            autocommit=True,
            row_factory=row_factory,
            cursor_factory=Cursor,
        )
        try:
            conn.server_cursor_factory = ServerCursor
            if config.prepared_max is not None:
                conn.prepared_max = config.prepared_max
            conn.record = ConnectionRecord(conn, opener, configure)
            if settings := config.sync_settings:
                conn._apply(config, settings)
            conn._make_ready()
        except BaseException:
            conn.close()
            raise
        return conn

    def _make_ready(self) -> None:
        configure = self.record.configure
        if configure:
            configuring.run(configure, self)
        self.record.note_ready(self)

    def _apply(self, config: Config, settings: Mapping[str, str]) -> None:
        try:
            cursor = self.execute(*set_all(settings), prepare=False)
            warn_of_pooler(config, "sync_settings", self, cursor.pgresult)
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
        self.autocommit = True
        if record.has_prepared:
            record.forget_prepared(self)
        with self.pipeline():
            for statement in clearing_statements(record):
                self.execute(statement, prepare=False)
            if settings:
                self.execute(*set_all(settings), prepare=False)
        forget_what_was_heard(self)
        record.has_prepared = False
        if record.configure:
            record.forget_configure(self)
        self._make_ready()

    def was_demoted(self) -> bool:
        """Whether the server became read-only although one that takes writes was demanded.

        Asks it, in a round trip, outside of any transaction: one that was to be read-only is over.
        """
        if not wants_writable(self):
            return False
        self.autocommit = True
        cursor = self.cursor(row_factory=tuple_row)
        row = cursor.execute(REFUSES_WRITES, prepare=False).fetchone()
        return bool(row and row[0])
