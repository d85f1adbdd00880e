"""What the lower rooms ask of the higher ones: types alone, which nothing imports at run time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import psycopg
from psycopg.adapt import AdaptersMap
from psycopg.pq.abc import PGconn

from ..config import Config
from ..signals import FindOrigin
from .known_types import KnownTypes

AnyConnection: TypeAlias = psycopg.Connection[Any] | psycopg.AsyncConnection[Any]

ConnT = TypeVar("ConnT", bound=psycopg.Connection[Any])
AsyncConnT = TypeVar("AsyncConnT", bound=psycopg.AsyncConnection[Any])


Timer: TypeAlias = Callable[[str, str, float], None]
"""Takes the name of a pool, that of a time (``create_time``, ``wait_time``, ``use_time``) and a
number of seconds. It may be called under locks, so it neither queries nor waits."""


class NotedConnection(Protocol):
    """A psycopg connection that notes what is registered on it, each by an entry."""

    pgconn: PGconn
    registered: list[None]
    _adapters: AdaptersMap | None
    _notice_handlers: list[Callable[[psycopg.errors.Diagnostic], None]]
    _notify_handlers: list[Callable[[psycopg.Notify], None]]


class Opener(Protocol):
    """What opens connections.

    :ivar connection_type: that of configs, such as ``pool``.
    :ivar plans_changed: how often a connection of it met a prepared statement that a migration had
        made stale.
    :ivar types: what its connections know of the database's types, beside PostgreSQL's own.
    :ivar find_origin: says whose the events of its connections are.
    :ivar find_tag: gives the comment with which its connections end their statements.
    :ivar timers: hear how long its connections took to open and to borrow, and were used.
    :ivar known_as: what events and metrics call it, once somebody has asked.
    """

    connection_type: str
    plans_changed: int
    types: KnownTypes | None
    find_origin: FindOrigin | None
    find_tag: Callable[[], bytes] | None
    timers: Sequence[Timer]
    known_as: str | None

    @property
    def config(self) -> Config:
        """What its connections are opened with."""
        ...


class Source(Opener, Protocol[ConnT]):
    """Where connections are borrowed from, and given back to."""

    def borrow(self, timeout: float | None = None, autocommit: bool | None = None) -> ConnT:
        """A live psycopg connection that is the caller's until :meth:`release`."""
        ...

    def release(self, conn: ConnT) -> None:
        """Give back what :meth:`borrow` gave."""

    def abandon(self, conn: ConnT) -> None:
        """Give up a borrowed connection that another thread still uses."""


class AsyncSource(Opener, Protocol[AsyncConnT]):
    """:class:`Source` on an event loop."""

    async def borrow(
        self, timeout: float | None = None, autocommit: bool | None = None
    ) -> AsyncConnT:
        """A live psycopg connection that is the caller's until :meth:`release`."""
        ...

    async def release(self, conn: AsyncConnT) -> None:
        """Give back what :meth:`borrow` gave."""
