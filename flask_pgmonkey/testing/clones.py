"""Clones of templates: one thread makes them ahead, another drops them later."""

from __future__ import annotations

import os
import re
import secrets
import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import count
from time import perf_counter
from typing import Any, TypeVar

import psycopg
from psycopg import errors, sql

from ..connections.liveness import Pulse, ping
from ..errors import EmbeddedServerError, FreshDatabaseError
from .server import Server

T = TypeVar("T")

SPARES = 2
KEPT_BEFORE_DROP = 4
"""DROP DATABASE sleeps for 100 ms where a session of it is still ending, so it comes later."""
_OURS = re.compile(r"pgmonkey_test_([0-9a-f]{12})_[0-9a-f_]+")
_MARK = "pgmonkey tests "


class Clones:
    """The databases of one process's tests.

    :ivar seconds: what each clone took to make.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self.run: str = secrets.token_hex(6)
        self.seconds: list[float] = []
        self._owner = os.getpid()
        self._is_closed = False
        self._numbers = count(1)
        # Two of them: a clone is made while another is dropped.
        self._maker = _AdminThread(server, self.run)
        self._dropper = _AdminThread(server, self.run)
        self._spares: dict[str, deque[Future[str]]] = {}
        self._ended: deque[str] = deque()
        self._kept: set[str] = set()
        self._lock = threading.Lock()

    def are_ours(self) -> bool:
        """Whether this process made them, and has the threads, which a forked child has not."""
        return os.getpid() == self._owner

    def take(self, template: str) -> str:
        """The name of a new clone of *template*; not in a forked child.

        :raises FreshDatabaseError: where the server makes none.
        """
        with self._lock:
            if not self._spares:
                self._dropper.submit(drop_databases_of_dead_runs)
            spares = self._spares.setdefault(template, deque())
            while len(spares) <= SPARES:
                spares.append(self._maker.submit(partial(self._clone, template)))
            taken = spares.popleft()
        try:
            return taken.result()
        except FreshDatabaseError:
            with self._lock:
                self._spares.pop(template, None)  # they would fail for the same reason
            raise

    def find_or_make(self, template: str, key: str) -> str:
        """The name of the clone that stands for *key* in this run, whichever process made it."""
        name = f"pgmonkey_test_{self.run}_{key}"
        with connect(self.server, self.run) as admin:
            admin.execute("SELECT pg_advisory_lock(hashtextextended(%s, 0))", [name])
            if not our_databases(admin, name):
                create(admin, name, template)
        return name

    def give_back(self, name: str, keep: bool = False) -> None:
        """Drop a clone some clones later; or *keep* it until the next run."""
        if keep:
            self._kept.add(name)
            return
        self._ended.append(name)
        if len(self._ended) > KEPT_BEFORE_DROP and self.are_ours():
            self._dropper.submit(partial(drop, name=self._ended.popleft()))

    def close(self) -> None:
        """Drop every database of this process; the threads end. May be called again."""
        if not self.are_ours() or self._is_closed:
            return
        self._is_closed = True
        with self._lock:
            for spares in self._spares.values():
                for spare in spares:
                    spare.cancel()
        self._maker.close()
        self._dropper.close()
        if self._spares:  # in this thread: at exit no other takes work any more
            with suppress(psycopg.Error, FreshDatabaseError):  # the next run clears up
                with connect(self.server, self.run) as admin:
                    self._drop_all(admin)

    def _drop_all(self, admin: psycopg.Connection[Any]) -> None:
        for name in our_databases(admin, f"pgmonkey_test_{self.run}_"):
            if name not in self._kept:
                drop(admin, name)

    def _clone(self, template: str, admin: psycopg.Connection[Any]) -> str:
        start = perf_counter()
        name = f"pgmonkey_test_{self.run}_{next(self._numbers)}"
        create(admin, name, template)
        self.seconds.append(perf_counter() - start)
        return name


class _AdminThread:
    """A thread with a connection of its own, which it opens when there is work."""

    def __init__(self, server: Server, run: str) -> None:
        self._server = server
        self._run = run
        self._admin: psycopg.Connection[Any] | None = None
        self._executor = ThreadPoolExecutor(1, "pgmonkey-clones")

    def submit(self, work: Callable[[psycopg.Connection[Any]], T]) -> Future[T]:
        return self._executor.submit(self._do, work)

    def close(self) -> None:
        self._executor.shutdown()
        if self._admin is not None:
            self._admin.close()

    def _do(self, work: Callable[[psycopg.Connection[Any]], T]) -> T:
        admin = self._connection()
        try:
            return work(admin)
        except psycopg.OperationalError:
            if not admin.closed:
                raise
        return work(self._connection())  # the server went away, and may be there again

    def _connection(self) -> psycopg.Connection[Any]:
        admin = self._admin
        if admin is not None and ping(admin.pgconn) is not Pulse.ALIVE:
            admin.close()
            admin = None
        if admin is None:
            self._admin = admin = connect(self._server, self._run)
        return admin


def connect(server: Server, run: str) -> psycopg.Connection[Any]:
    """A connection that marks the run as alive, in autocommit."""
    try:
        return psycopg.connect(
            **{
                "connect_timeout": 10,
                **server.find(),
                "application_name": _MARK + run,
                "autocommit": True,
                "prepare_threshold": None,
            }
        )
    except (psycopg.OperationalError, EmbeddedServerError) as error:
        raise FreshDatabaseError(
            f"The tests' server, {server.name}, cannot be reached: {_said(error)} {server.remedy()}"
        ) from None  # pytest shows the arguments of what is on the stack, and so the password


def create(admin: psycopg.Connection[Any], name: str, template: str = "template0") -> None:
    """Make a database, with the settings of its template."""
    strategy = " STRATEGY FILE_COPY" if admin.info.server_version >= 150000 else ""
    statement = sql.SQL("CREATE DATABASE {} TEMPLATE {}" + strategy).format(
        sql.Identifier(name), sql.Identifier(template)
    )
    try:
        admin.execute(statement)
        if template != "template0":
            _copy_settings(admin, template, name)
    except errors.InsufficientPrivilege as error:
        raise FreshDatabaseError(
            f"The role {admin.info.user} may not make databases for tests: {_said(error)}"
            f' A superuser can allow it: ALTER ROLE "{admin.info.user}" CREATEDB;'
        ) from error
    except errors.DiskFull as error:
        raise FreshDatabaseError(
            f"The tests' server has no room for another database: {_said(error)} Make room there,"
            " or name another server with PGMONKEY_TEST_SERVER."
        ) from error
    except psycopg.Error as error:
        if admin.closed:
            raise
        raise FreshDatabaseError(
            f"The tests' server made no database for this test: {_said(error)}"
        ) from error


def slim(settings: Mapping[str, Any], name: str) -> None:
    """Make a database smaller by a fifth of its files, and every clone of it quicker to make.

    Rewritten catalogs have no maps of their free space. Only catalogs: what else is there may have
    indexes over functions of the schema's own.
    """
    with psycopg.connect(**{**settings, "dbname": name, "autocommit": True}) as conn:
        tables = conn.execute(
            "SELECT string_agg(oid::regclass::text, ', ') FROM pg_class WHERE relkind = 'r'"
            " AND relnamespace = 'pg_catalog'::regnamespace AND NOT relisshared"
        ).fetchone()
        conn.execute(f"VACUUM (FULL) {tables and tables[0]}".encode())
    # The first session after that writes the file from which all others load what the catalogs say.
    with psycopg.connect(**{**settings, "dbname": name}) as conn:
        conn.execute("SELECT 1")


def drop(admin: psycopg.Connection[Any], name: str) -> None:
    """Drop a database, and end its sessions, if it is there."""
    statement = sql.SQL("DROP DATABASE IF EXISTS {}").format(sql.Identifier(name))
    try:
        admin.execute(statement + sql.SQL(" WITH (FORCE)"))
    except errors.InsufficientPrivilege:  # autovacuum is there; without FORCE it is sent away
        admin.execute(statement)


def our_databases(admin: psycopg.Connection[Any], prefix: str) -> list[str]:
    """The databases whose name begins so, which this role may drop; the newest first."""
    rows = admin.execute(
        "SELECT datname FROM pg_database WHERE starts_with(datname, %s)"
        " AND pg_has_role(datdba, 'USAGE') ORDER BY oid DESC",
        [prefix],
    )
    return [name for (name,) in rows]


def live_runs(admin: psycopg.Connection[Any]) -> set[str]:
    """The runs that are connected to the server, of whatever project."""
    rows = admin.execute(
        "SELECT application_name FROM pg_stat_activity WHERE starts_with(application_name, %s)",
        [_MARK],
    )
    return {name.removeprefix(_MARK) for (name,) in rows}


def drop_databases_of_dead_runs(admin: psycopg.Connection[Any]) -> None:
    """Drop what runs have left that were killed; no other names than ours, and of no live run."""
    alive = live_runs(admin)
    for name in our_databases(admin, "pgmonkey_test_"):
        match = _OURS.fullmatch(name)
        if match is not None and match[1] not in alive:
            drop(admin, name)


def _copy_settings(admin: psycopg.Connection[Any], template: str, name: str) -> None:
    """``ALTER DATABASE … SET``, which a clone does not have from its template.

    By way of the session: only so does a list such as ``search_path`` stay one.
    """
    rows = admin.execute(
        "SELECT setrole::regrole::text, setting FROM pg_db_role_setting, unnest(setconfig) setting"
        " WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = %s)",
        [template],
    ).fetchall()
    for role, setting in rows:
        key, _, value = setting.partition("=")
        admin.execute("SELECT set_config(%s, %s, false)", [key, value])
        database = sql.Identifier(name)
        option = sql.Identifier(*key.split("."))
        if role == "-":
            alter = sql.SQL("ALTER DATABASE {} SET {} FROM CURRENT").format(database, option)
        else:
            # regrole has quoted it where that is needed.
            alter = sql.SQL("ALTER ROLE {} IN DATABASE {} SET {} FROM CURRENT").format(
                sql.SQL(role), database, option
            )
        admin.execute(alter)
        admin.execute(sql.SQL("RESET {}").format(option))


def _said(error: Exception) -> str:
    primary = error.diag.message_primary if isinstance(error, psycopg.Error) else None
    said = " ".join((primary or str(error)).split())
    return said if said.endswith(".") else f"{said}."
