"""``flask pgmonkey test``: does every connection type of every database work?"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from queue import Empty, SimpleQueue
from threading import Thread
from time import monotonic, perf_counter, sleep
from typing import Any, NoReturn, TypeAlias

import click
import psycopg
from psycopg.rows import tuple_row

from ..config import CONNECTION_TYPES, Config
from ..config.libpq import is_elsewhere
from ..connections import NormalConnection
from ..connections.connect_errors import can_pass, notes_of
from ..connections.server_connection import ServerConnection
from ..connections.server_connection_async import AsyncServerConnection
from ..embedded import leave_all
from ..errors import ConfigError
from ..manager import PGConnectionManager
from ..printable import one_line
from .errors import in_one_line
from .seconds import Seconds
from .targets import Target, find_options, find_targets
from .terminal import print_table, say_aside, say_sentence

DIRECT = "direct"
TYPES = (*CONNECTION_TYPES, DIRECT)
PAUSE = 0.5
"""Seconds between two looks whether a server is up."""


@dataclass(frozen=True)
class PoolSize:
    """The bounds of a pool, and how many of its connections were borrowed at once."""

    min_size: int
    max_size: int
    borrowed: int


@dataclass(frozen=True)
class Row:
    """What became of one connection type of one database."""

    bind: str
    type: str
    passed: bool = False
    error: str | None = None
    server_version: str | None = None
    tls: str | None = None
    """Protocol and cipher; "ended before the server" where the server knows of none."""
    authentication: str | None = None
    connect_ms: float | None = None
    query_ms: float | None = None
    unsafe: str | None = None
    """The host to which a password went without TLS, if that is another machine."""
    login_expires: str | None = None
    """When the login ends, if what gave it says so."""
    types: dict[str, str | None] | None = None
    """The types that it is to know, each with what is wrong with it."""
    pool: PoolSize | None = None

    @property
    def is_announcement(self) -> bool:
        """Whether it only says that a row of this bind and type will come."""
        return not self.passed and self.error is None


@click.command("test")
@find_options
@click.option(
    "--type",
    "connection_type",
    type=click.Choice(TYPES),
    help="Test this connection type only; direct is a normal one by direct_settings.",
)
@click.option(
    "--timeout",
    type=Seconds(),
    default=10.0,
    show_default=True,
    help="Seconds for everything; what is not done by then has failed.",
)
@click.option(
    "--wait",
    type=Seconds(),
    help="Before that, seconds in which a server may come up, as beside a container.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def try_connections(
    connection_type: str | None, timeout: float, wait: float | None, as_json: bool, **options: Any
) -> None:
    """Connect and query with every connection type of every database.

    Where there are direct_settings, they are tried too. From each pool one connection more than
    min_size is borrowed at once, as far as max_size allows. Exit code 0 if all passed, 1 if any
    failed, 2 if a config cannot be used.

    \b
      flask --app shop pgmonkey test
      flask --app shop pgmonkey test --bind reports --type pool
      flask pgmonkey test --config database.yaml --json
      flask --app shop pgmonkey test --wait 60 && exec gunicorn shop:app
    """
    start = monotonic()
    targets = find_targets(**options)
    waiting = wait_for_servers(targets, start + wait) if wait is not None else []
    deadline = (start if wait is None else monotonic()) + timeout
    types = CONNECTION_TYPES if connection_type is None else (connection_type,)
    unfinished = f"not finished within the {timeout:g} s of --timeout"
    rows = {
        (target.name, type_): Row(target.name, type_, error=unfinished)
        for target in targets
        for type_ in types
    }
    # Threads that may be left behind: no timeout of psycopg's holds against every server.
    results: SimpleQueue[Row] = SimpleQueue()
    unusable: dict[str, ConfigError] = {}
    threads = [
        Thread(target=probe_types, args=(target, types, timeout, results, unusable), daemon=True)
        for target in targets
    ]
    for thread in threads:
        thread.start()
    awaited = set(rows)
    while awaited:
        try:
            row = results.get(timeout=max(0.0, deadline - monotonic()))
        except Empty:
            break
        key = row.bind, row.type
        if row.is_announcement:
            awaited.add(key)
            rows[key] = replace(row, error=unfinished)
        else:
            awaited.discard(key)
            rows[key] = row
    if len(unusable) < len(targets):
        names = [target.name for target in targets]
        in_order = sorted(rows, key=lambda key: (names.index(key[0]), TYPES.index(key[1])))
        print_rows([rows[key] for key in in_order], as_json)
    else:
        for error in unusable.values():
            say_aside(f"Error: {one_line(error)}")
    exit_code = 2 if unusable else int(not all(row.passed for row in rows.values()))
    for thread in threads:
        thread.join(max(0.0, deadline - monotonic()))
    if any(thread.is_alive() for thread in (*waiting, *threads)):
        leave_threads_behind(exit_code)
    click.get_current_context().exit(exit_code)


def wait_for_servers(targets: Sequence[Target], until: float) -> list[Thread]:
    """Wait for the servers of *targets*, at most *until*, by ``time.monotonic``.

    Gives the threads that wait, which a server that never answers may hold up.
    """
    threads = [
        Thread(target=wait_for_server, args=(target, until), daemon=True) for target in targets
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - monotonic()))
    return threads


def wait_for_server(target: Target, until: float) -> None:
    """Wait until a connection comes about, or fails by what no waiting mends."""
    is_told = False
    while True:
        try:
            ServerConnection.open(NormalConnection(target.config), None, None).close()
            return
        except Exception as error:  # What it is, the rows say.
            if not can_pass(error) or monotonic() + PAUSE > until:
                return
            if not is_told:
                is_told = True
                say_aside(f"Waiting for the server of {target.name}: {words_of(error)}")
        sleep(PAUSE)


def leave_threads_behind(exit_code: int) -> NoReturn:
    """End the process at once; the interpreter's own end could wait for a stuck connection."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        leave_all()  # As the interpreter's own end would.
    finally:
        os._exit(exit_code)


def probe_types(
    target: Target,
    types: Sequence[str],
    timeout: float,
    results: SimpleQueue[Row],
    unusable: dict[str, ConfigError],
) -> None:
    """Put a row for each of *types* into *results*; the error of a config goes to *unusable* too.

    With all types go the ``direct_settings``, if there are any: that a row for them will come is
    announced by one without a result.

    One after the other, so that the types do not take each other's places on a small server. Where
    the first fails the rest will hardly get a place, and where it takes over a tenth of *timeout*
    they would not be done in time, since pools connect twice: then they run at once.
    """
    try:
        config = target.config
    except Exception as error:  # An embedded server that does not start, for one.
        if isinstance(error, ConfigError):
            unusable[target.name] = error
        for type_ in types:
            results.put(Row(target.name, type_, error=one_line(error)))
        return
    if types == CONNECTION_TYPES and config.unresolved.has_direct_settings:
        results.put(Row(target.name, DIRECT))  # before any other, or it would not be awaited
        types = TYPES
    start = monotonic()
    first, *rest = types
    row = probe_type(target, config, first)
    results.put(row)
    if not row.passed or monotonic() - start > timeout / 10:
        probe_at_once(target, config, rest, results)
        return
    for type_ in rest:
        results.put(probe_type(target, config, type_))


def probe_at_once(
    target: Target, config: Config, types: Sequence[str], results: SimpleQueue[Row]
) -> None:
    threads = [
        Thread(target=lambda one=type_: results.put(probe_type(target, config, one)), daemon=True)
        for type_ in types
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def probe_type(target: Target, config: Config, type_: str) -> Row:
    """The row of one type, passed or not."""
    row = Row(target.name, type_)
    manager = PGConnectionManager(configure=target.configure, types=target.classes)
    try:
        if type_ == DIRECT:
            config = config.direct()
        known = manager.types_for(config)
        if known is not None:
            known.warns = False  # the row says it
        if type_.startswith("async"):
            row = asyncio.run(probe_async(manager, config, row))
        else:
            row = probe_sync(manager, config, row)
        if known is None:
            return row
        types = {str(named): known.problems.get(str(named)) for named in known.wanted}
        return replace(row, types=types)
    except Exception as error:  # Not psycopg's only: the app's own `configure` runs in there.
        return replace(row, error=words_of(error))
    except SystemExit as end:
        return replace(row, error=f"the app's configure called sys.exit({end.code!r})")


def words_of(error: Exception) -> str:
    """The text of *error* and its notes, and the server's words where those are its cause."""
    if not isinstance(error, psycopg.Error):
        return " ".join([one_line(error), *notes_of(error)])
    words = " ".join([in_one_line(error), *notes_of(error)])
    cause = error.__cause__
    return f"{words} ({in_one_line(cause)})" if isinstance(cause, psycopg.Error) else words


def probe_sync(manager: PGConnectionManager, config: Config, row: Row) -> Row:
    """Fill in *row*.

    :raises psycopg.Error: whatever went wrong.
    """
    start = perf_counter()
    try:
        connection = manager.connection_for(config, "normal" if row.type == DIRECT else row.type)
        connected = perf_counter()
        with connection as conn:
            cursor = conn.cursor(row_factory=tuple_row)
            (facts,) = cursor.execute(facts_query(conn)).fetchall()
            asked = perf_counter()
            conn.execute("SELECT 1")
            answered = perf_counter()
            row = with_facts(row, conn, facts, connected - start, answered - asked)
        if row.type == "pool":
            size = size_to_try(config, row.type)
            with ExitStack() as stack:
                for _ in range(size.borrowed):
                    stack.enter_context(connection.connection())
            row = replace(row, pool=size)
    finally:
        manager.clear_cache()
    return replace(row, passed=True)


async def probe_async(manager: PGConnectionManager, config: Config, row: Row) -> Row:
    """:func:`probe_sync` for the async types."""
    start = perf_counter()
    try:
        connection = await manager.connection_for(config, row.type)
        connected = perf_counter()
        async with connection as conn:
            cursor = conn.cursor(row_factory=tuple_row)
            (facts,) = await (await cursor.execute(facts_query(conn))).fetchall()
            asked = perf_counter()
            await conn.execute("SELECT 1")
            answered = perf_counter()
            row = with_facts(row, conn, facts, connected - start, answered - asked)
        if row.type == "async_pool":
            size = size_to_try(config, row.type)
            async with AsyncExitStack() as stack:
                for _ in range(size.borrowed):
                    await stack.enter_async_context(connection.connection())
            row = replace(row, pool=size)
    finally:
        await manager.clear_cache_async()
    return replace(row, passed=True)


def size_to_try(config: Config, connection_type: str) -> PoolSize:
    settings = config.pool_settings(connection_type)
    borrowed = min(settings.min_size + 1, settings.max_size)
    return PoolSize(settings.min_size, settings.max_size, borrowed)


AnyConnection: TypeAlias = ServerConnection | AsyncServerConnection

SYSTEM_USER_SINCE = 160000


def facts_query(conn: AnyConnection) -> bytes:
    """A query for the TLS protocol and cipher, the client certificate's name and the system user.

    The system user begins with the authentication method; it is null where none was asked for.
    """
    system_user = "system_user" if conn.info.server_version >= SYSTEM_USER_SINCE else "NULL"
    return f"""
        SELECT nullif(concat_ws(' ', version, cipher), ''), client_dn, {system_user}
        FROM (VALUES (pg_backend_pid())) AS own (pid)
        LEFT JOIN pg_catalog.pg_stat_ssl USING (pid)
    """.encode()  # noqa: S608 - nothing of a user's is in it


def with_facts(
    row: Row,
    conn: AnyConnection,
    facts: Sequence[str | bytes | None],
    connect_seconds: float,
    query_seconds: float,
) -> Row:
    tls, certificate_name, system_user = map(text_of, facts)
    return replace(
        row,
        server_version=(conn.info.parameter_status("server_version") or "").partition(" ")[0],
        tls=tls or ("ended before the server" if conn.pgconn.ssl_in_use else None),
        authentication=authentication_of(conn, certificate_name, system_user),
        connect_ms=round(1000 * connect_seconds, 2),
        query_ms=round(1000 * query_seconds, 2),
        unsafe=host_told_without_tls(conn),
        login_expires=moment_of(conn.record.login_expiry),
    )


def host_told_without_tls(conn: AnyConnection) -> str | None:
    pgconn = conn.pgconn
    if not pgconn.used_password or pgconn.ssl_in_use or pgconn.used_gssapi:
        return None
    return conn.info.host if is_elsewhere(conn.info.hostaddr or conn.info.host) else None


def moment_of(expiry: float | None) -> str | None:
    """Seconds since 1970 as date and time, with the offset of this machine's time zone."""
    return datetime.fromtimestamp(expiry).astimezone().isoformat(" ", "seconds") if expiry else None


def text_of(value: str | bytes | None) -> str | None:
    """*value*, which psycopg gives as bytes where the client's encoding is SQL_ASCII."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def authentication_of(
    conn: AnyConnection, certificate_name: str | None, system_user: str | None
) -> str:
    if system_user is not None:
        return system_user.partition(":")[0]
    if conn.info.server_version >= SYSTEM_USER_SINCE:
        return "trust"
    if conn.pgconn.used_gssapi:
        return "gss"
    if conn.pgconn.used_password:
        return "password"
    return "certificate" if certificate_name else "none asked"


def print_rows(rows: Sequence[Row], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=2))
        return
    print_table(HEADERS, map(cells, rows))
    concerned: dict[str, list[Row]] = {}
    for row in rows:
        for remark in remarks_on(row):
            concerned.setdefault(remark, []).append(row)
    for remark, those in concerned.items():
        say_sentence(f"{named(those, rows)}: {remark}")
    for words in dict.fromkeys(line for row in rows for line in lines_on_types(row)):
        say_sentence(words)


def remarks_on(row: Row) -> Iterator[str]:
    if row.error is not None:
        yield row.error
        return
    if row.unsafe is not None:
        yield (
            f"warning: the password went to {row.unsafe} without TLS."
            " Set sslmode: verify-full, and require_auth: scram-sha-256"
        )
    if row.login_expires is not None:
        yield f"the login ends at {row.login_expires}"


def named(those: Sequence[Row], rows: Sequence[Row]) -> str:
    """Which of *rows* are *those*: binds, with types where it is not all of the bind's."""
    types: dict[str, list[str]] = {}
    for row in those:
        types.setdefault(row.bind, []).append(row.type)
    numbers = Counter(row.bind for row in rows)
    return "; ".join(
        bind if len(some) == numbers[bind] > 1 else f"{bind} {', '.join(some)}"
        for bind, some in types.items()
    )


def lines_on_types(row: Row) -> Iterator[str]:
    types = row.types or {}
    if found := [name for name, problem in types.items() if problem is None]:
        yield f"{row.bind}: types: {', '.join(found)}"
    for name, problem in types.items():
        if problem is not None:
            yield f"{row.bind}: warning: type {name}: {problem}"


HEADERS = ("Bind", "Type", "Result", "Server", "TLS", "Auth", "Connect", "Query", "Pool")


def cells(row: Row) -> list[str]:
    if not row.passed:
        return [row.bind, row.type, "FAILED", *[""] * 6]
    return [
        row.bind,
        row.type,
        "passed",
        row.server_version or "",
        row.tls or "none",
        row.authentication or "",
        f"{row.connect_ms:.1f} ms",
        f"{row.query_ms:.1f} ms",
        f"{row.pool.min_size}-{row.pool.max_size}" if row.pool else "",
    ]
