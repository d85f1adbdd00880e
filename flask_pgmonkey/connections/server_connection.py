"""psycopg's Connection as this package opens it."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import psycopg

from ..config import Config
from . import configuring
from .cursor import Cursor, ServerCursor
from .record import ConnectionRecord
from .server_connection_base import (
    CLEAR_SESSION,
    BaseServerConnection,
    Configure,
    hear_nothing_more,
    parent_process_has_it,
    refuse,
    set_all,
    set_plain_attributes,
    warn_of_pooler,
)

if TYPE_CHECKING:
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
            conn.record = ConnectionRecord(conn, opener)
            if settings := config.sync_settings:
                conn._apply(config, settings)
            if configure:
                configuring.run(configure, conn)
            conn.record.note_opened(conn)
        except BaseException:
            conn.close()
            raise
        return conn

    def _apply(self, config: Config, settings: Mapping[str, str]) -> None:
        try:
            cursor = self.execute(*set_all(settings), prepare=False)
            warn_of_pooler(config, "sync_settings", self, cursor.pgresult)
        except psycopg.DatabaseError as error:
            for name, value in settings.items():
                try:
                    self.execute(*set_all({name: value}), prepare=False)
                except psycopg.DatabaseError as refusal:
                    refuse(config, "sync_settings", name, refusal)
            raise error

    def put_back_attributes(self) -> None:
        """Undo what the borrower changed on this object. Costs no round trip.

        Autocommit is left to the next borrow, which sets it as it needs it.
        """
        self.isolation_level, self.read_only, self.deferrable, *plain, _ = self.record.attributes
        set_plain_attributes(self, plain)

    def reset_session(self) -> None:
        """Clear what the borrower left on the server and apply the settings again: one round trip.

        Its handlers and the notifications that nobody read go too.
        """
        settings = self.record.opener.config.sync_settings
        self.autocommit = True
        with self.pipeline():
            for statement in CLEAR_SESSION:
                self.execute(statement, prepare=False)
            if settings:
                self.execute(*set_all(settings), prepare=False)
        hear_nothing_more(self, self.record)
        self.record.is_marked = False
