"""What the sessions of a server do, and who holds up whom."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

import psycopg
import pytest

from flask_pgmonkey.activity import LONG_TRANSACTION, Activity, Session, read_activity

from .servers import PrivateServer


@pytest.fixture
def connect(database: dict[str, Any]) -> Iterator[Callable[..., psycopg.Connection[Any]]]:
    """Opens sessions named by their ``application_name``, which end with the test."""
    with ExitStack() as sessions:

        def connect_as(name: str, **more: Any) -> psycopg.Connection[Any]:
            settings = {**database, "application_name": name, **more}
            return sessions.enter_context(psycopg.connect(**settings, autocommit=True))

        yield connect_as


@pytest.fixture
def observer(connect: Callable[..., psycopg.Connection[Any]]) -> psycopg.Connection[Any]:
    return connect("observer")


def sessions_of(observer: psycopg.Connection[Any]) -> dict[str, Session]:
    """Those of the test's database, by their application."""
    here = observer.info.dbname
    sessions = read_activity(observer).sessions
    return {each.application: each for each in sessions if each.database == here}


def wait_for_block(observer: psycopg.Connection[Any], name: str) -> Session:
    """The session of that name once it waits for another."""
    deadline = time.monotonic() + 10
    while not (session := sessions_of(observer)[name]).blocked_by:
        assert time.monotonic() < deadline, f"{name} does not wait"
        time.sleep(0.01)
    return session


def run_aside(conn: psycopg.Connection[Any], query: str) -> threading.Thread:
    thread = threading.Thread(target=conn.execute, args=(query,))
    thread.start()
    return thread


def test_a_session_is_what_it_does_and_since_when(
    connect: Callable[..., psycopg.Connection[Any]], observer: psycopg.Connection[Any]
) -> None:
    connect("idle").execute("SELECT 'last'")
    in_transaction = connect("at work")
    in_transaction.execute("BEGIN")
    in_transaction.execute("SELECT 5")
    found = sessions_of(observer)
    assert found.keys() == {"idle", "at work"}
    idle, at_work = found["idle"], found["at work"]
    assert (idle.state, idle.query, idle.transaction_seconds) == ("idle", "SELECT 'last'", None)
    assert (idle.user, idle.kind, idle.wait) == (observer.info.user, "client backend", None)
    assert not idle.is_in_transaction
    assert at_work.state == "idle in transaction"
    assert at_work.is_in_transaction
    assert not at_work.is_long
    assert at_work.pid == in_transaction.info.backend_pid
    assert at_work.transaction_seconds is not None
    assert at_work.state_seconds is not None
    assert at_work.session_seconds is not None
    assert 0 <= at_work.state_seconds <= at_work.transaction_seconds < at_work.session_seconds
    assert replace(at_work, transaction_seconds=LONG_TRANSACTION).is_long
    in_transaction.execute("COMMIT")


def test_who_waits_for_a_lock_is_shown_with_whom_it_waits_for(
    connect: Callable[..., psycopg.Connection[Any]], observer: psycopg.Connection[Any]
) -> None:
    observer.execute("CREATE TABLE items (n integer)")
    first, second, third = (connect(name) for name in ("first", "second", "third"))
    first.execute("BEGIN")
    first.execute("LOCK TABLE items IN ACCESS EXCLUSIVE MODE")
    threads = [run_aside(second, "SELECT * FROM items")]
    waiting = wait_for_block(observer, "second")
    threads.append(run_aside(third, "DROP TABLE items"))
    last = wait_for_block(observer, "third")
    assert waiting.blocked_by == [first.info.backend_pid]
    assert (waiting.lock_mode, waiting.lock_on) == ("AccessShareLock", "items")
    assert waiting.wait == "Lock: relation"
    assert set(last.blocked_by) == {first.info.backend_pid, second.info.backend_pid}
    here = [
        (depth, session.application)
        for depth, session in read_activity(observer).by_urgency()
        if session.database == observer.info.dbname
    ]
    assert here == [(0, "first"), (1, "second"), (2, "third")]
    blockers = [
        (depth, session.application) for depth, session in read_activity(observer).blockers()
    ]
    assert [each for each in blockers if each in here] == here
    first.execute("COMMIT")
    for thread in threads:
        thread.join(10)


def test_a_prepared_transaction_that_blocks_is_process_0(private_server: PrivateServer) -> None:
    with private_server.connect() as admin:
        admin.execute("ALTER SYSTEM SET max_prepared_transactions = 5")
    private_server.restart()
    with private_server.connect() as holder, private_server.connect() as observer:
        holder.execute("CREATE TABLE items (n integer)")
        holder.execute("BEGIN")
        holder.execute("LOCK TABLE items")
        holder.execute("PREPARE TRANSACTION 'left'")
        with private_server.connect() as waiter:
            waiter.execute("SET application_name = 'waiter'")
            thread = run_aside(waiter, "SELECT * FROM items")
            assert wait_for_block(observer, "waiter").blocked_by == [0]
            observer.execute("ROLLBACK PREPARED 'left'")
            thread.join(10)
        observer.execute("DROP TABLE items")


def test_a_role_without_pg_monitor_is_told_what_it_may_not_see(
    connect: Callable[..., psycopg.Connection[Any]], observer: psycopg.Connection[Any]
) -> None:
    role = f"plain_{observer.info.backend_pid}"
    connect("other").execute("SELECT 'secret'")
    observer.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'no-secret'")
    try:
        with connect("plain", user=role, password="no-secret") as plain:
            other = sessions_of(plain)["other"]
            activity = read_activity(plain)
            assert activity.role == role
            assert "other" in [each.application for each in activity.of_clients_here()]
    finally:
        observer.execute(f"DROP ROLE {role}")
    assert other.is_hidden
    assert other.kind is None
    assert (other.state, other.wait, other.transaction_seconds) == (None, None, None)


def test_queries_in_other_encodings_are_shown(
    connect: Callable[..., psycopg.Connection[Any]], observer: psycopg.Connection[Any]
) -> None:
    name = f"{observer.info.dbname}_latin1"
    observer.execute(
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING latin1 LOCALE_PROVIDER libc LOCALE 'C'"
    )
    try:
        with connect("latin1", dbname=name) as conn:
            conn.execute("SELECT 'caf\xe9'")
            found = {each.application: each for each in read_activity(observer).sessions}
            assert found["latin1"].query in ("SELECT 'caf\ufffd'", "SELECT 'caf\xe9'")
    finally:
        observer.execute(f"DROP DATABASE {name} WITH (FORCE)")


def session(pid: int, **more: Any) -> Session:
    empty = dict.fromkeys(Session.__dataclass_fields__)
    return Session(**{**empty, "pid": pid, "blocked_by": [], "state": "idle", **more})


def by_urgency(*sessions: Session) -> list[tuple[int, int]]:
    activity = Activity(datetime.now(timezone.utc), "shop", 100, "app", list(sessions))
    return [(depth, each.pid) for depth, each in activity.by_urgency()]


def test_what_is_urgent_stands_first() -> None:
    assert by_urgency(
        session(1),
        session(2, state="idle in transaction", transaction_seconds=5.0),
        session(3, state="active", transaction_seconds=1.0),
        session(4, state="active", transaction_seconds=2.0),
        session(5, state="idle in transaction (aborted)", transaction_seconds=9.0),
        session(6, state="active", blocked_by=[1]),
    ) == [(0, 1), (1, 6), (0, 4), (0, 3), (0, 5), (0, 2)]


def test_blockers_are_those_who_block_and_those_who_wait() -> None:
    sessions = [session(1), session(2, state="active"), session(3, state="active", blocked_by=[1])]
    activity = Activity(datetime.now(timezone.utc), "shop", 100, "app", sessions)
    assert [(depth, each.pid) for depth, each in activity.blockers()] == [(0, 1), (1, 3)]


def test_each_session_is_given_once_in_a_deadlock_too() -> None:
    deadlock = session(1, blocked_by=[2]), session(2, blocked_by=[1]), session(3, blocked_by=[1, 2])
    assert by_urgency(*deadlock) == [(0, 1), (1, 2), (2, 3)]
    assert by_urgency(session(4, blocked_by=[0]), session(5, blocked_by=[99])) == [(0, 4), (0, 5)]
