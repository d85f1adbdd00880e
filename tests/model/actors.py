"""Who does what: generators, so that a seed decides in which order their steps are taken.

Each runs in a context of its own, as a thread would; the driver takes turns.
"""

from __future__ import annotations

import os
import signal
import warnings
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, suppress
from typing import Any

import psycopg

from .world import INSERT, LEAVE_STATE, STATE_OF_SESSION, RefusedError, Work, World, require_clean

Steps = Generator[None, None, None]


def single_queries(world: World) -> Steps:
    """An app context with queries outside a transaction: each is durable when it returns."""
    db = world.db
    with world.app.app_context():
        for _ in range(world.random.randint(1, 4)):
            with Work(world, is_ending=True) as work:
                db.execute(INSERT, [work.number()])
            yield
            with Work(world):
                if world.happens(0.2):
                    with suppress(psycopg.errors.DivisionByZero):
                        db.fetch_value("SELECT 1/0")
                if world.happens(0.2):
                    db.release()
                if world.happens(0.2):
                    db.cursor().execute("SELECT generate_series(1, 3)")


def batch(world: World) -> Steps:
    """Rows that are written with one call, one of which may be refused: all of them or none."""
    with world.app.app_context():
        with Work(world, is_ending=True) as work:
            rows = [[work.number()] for _ in range(3)]
            if world.happens(0.7):
                _write_all(world, rows)
            else:
                work.numbers.clear()
                with suppress(psycopg.errors.UniqueViolation):
                    _write_all(world, [*rows, rows[0]])
        yield


def _write_all(world: World, rows: list[list[int]]) -> None:
    if world.happens(0.5):
        world.db.execute_many(INSERT, rows)
        return
    with world.db.batch() as b:
        for row in rows:
            b.execute(INSERT, row)


def transaction(world: World) -> Steps:
    """An app context with a transaction: all of it, or nothing."""
    with world.app.app_context():
        with Work(world) as work, world.db.transaction() as tx:
            for _ in range(world.random.randint(1, 3)):
                world.random.choice([tx, world.db]).execute(INSERT, [work.number()])
                yield
                if world.happens(0.4):
                    begin = world.random.choice([tx.transaction, world.db.transaction])
                    yield from _savepoint(world, work, begin)
            if world.happens(0.3):
                raise RefusedError
            work.is_ending = True
        yield


def _savepoint(
    world: World, outer: Work, begin: Callable[[], AbstractContextManager[object]]
) -> Steps:
    own = world.number()
    with suppress(RefusedError):
        with begin():
            world.db.execute(INSERT, [own])
            yield
            if world.happens(0.3):
                raise RefusedError
            if world.happens(0.3):
                with suppress(psycopg.errors.DivisionByZero), world.db.transaction():
                    world.db.fetch_value("SELECT 1/0")
        outer.numbers.append(own)


def swallowed_error(world: World) -> Steps:
    """A transaction whose body catches the server's error and goes on as if nothing was."""
    with world.app.app_context():
        with suppress(psycopg.errors.InFailedSqlTransaction), Work(world) as work:
            with world.db.transaction() as tx:
                tx.execute(INSERT, [work.number()])
                yield
                with suppress(psycopg.errors.DivisionByZero):
                    tx.execute("SELECT 1/0")
                yield
            raise AssertionError("a transaction that has failed ended without an error")
        with Work(world, is_ending=True) as after:
            world.db.execute(INSERT, [after.number()])
        yield


def stream(world: World) -> Steps:
    """A stream beside queries; it is read to its end, closed early, dropped, or read later."""
    with Work(world):
        with world.app.app_context():
            rows = world.db.stream("SELECT generate_series(1, 50)", batch_size=7)
            yield from _read(world, rows)
            with Work(world, is_ending=True) as work:
                world.db.execute(INSERT, [work.number()])
            yield
        yield from _read(world, rows)


def _read(world: World, rows: Any) -> Steps:
    for number, _ in enumerate(rows):
        if number % 10 == 0:
            yield
        if world.happens(0.02):
            rows.close()
        elif world.happens(0.02):
            return


def stream_in_transaction(world: World) -> Steps:
    """A stream that is a guest in a transaction, which writes on."""
    with world.app.app_context():
        with Work(world) as work, world.db.transaction() as tx:
            for number, _ in enumerate(world.db.stream("SELECT generate_series(1, 9)", None)):
                if number % 3 == 0:
                    tx.execute(INSERT, [work.number()])
                    yield
            work.is_ending = True


def pool_blocks(world: World) -> Steps:
    """A block of the pool around another one, each left normally or by an error."""
    with world.app.app_context():
        pool = world.db.pool
    with Work(world) as outer, pool as conn:
        conn.execute(INSERT, [outer.number()])
        yield
        with Work(world) as inner, pool as other:
            assert other is not conn
            other.execute(INSERT, [inner.number()])
            yield
            if world.happens(0.3):
                raise RefusedError
            inner.is_ending = True
        conn.execute(INSERT, [outer.number()])
        if world.happens(0.3):
            raise RefusedError
        outer.is_ending = True
    yield


def held_connection(world: World) -> Steps:
    """What ``connection()`` gives, with a commit of its own in between."""
    with world.app.app_context():
        pool = world.db.pool
    with Work(world) as second, pool.connection() as conn:
        with Work(world) as first:
            conn.execute(INSERT, [first.number()])
            yield
            first.is_ending = True
            conn.commit()
        conn.execute(INSERT, [second.number()])
        yield
        if world.happens(0.3):
            raise RefusedError
        second.is_ending = True


def normal_block(world: World) -> Steps:
    """A block of the one connection of type ``normal``. Nobody else may come in between."""
    with world.app.app_context():
        with Work(world) as work:
            with world.db.get_connection("normal") as conn:
                conn.execute(INSERT, [work.number()])
                if world.happens(0.3):
                    raise RefusedError
                work.is_ending = True
        yield


def left_state(world: World) -> Steps:
    """State of a session that must not be there for whoever borrows it next."""
    with world.app.app_context():
        with Work(world):
            world.db.execute(world.random.choice(LEAVE_STATE))
        yield
    with world.app.app_context():
        with Work(world):
            require_clean(world.db.fetch_one(STATE_OF_SESSION))
        yield


def fork(world: World) -> Steps:
    """A child process that queries while the parent's transaction goes on."""
    with world.app.app_context():
        with Work(world) as work, world.db.transaction():
            world.db.execute(INSERT, [work.number()])
            yield from _child(world)
            world.db.execute(INSERT, [work.number()])
            work.is_ending = True


def _child(world: World) -> Steps:
    work = Work(world, is_ending=True)
    number = work.number()
    of_parent = world.sessions()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the parent has threads
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(30)
            if world.db.fetch_value("SELECT pg_backend_pid()") in of_parent:
                os._exit(2)
            world.db.execute(INSERT, [number])
            world.db.clear_cache()
            status = 0
        finally:
            os._exit(status)
    try:
        yield
    finally:  # also of a driver that drops us
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with work:
            assert status != 2, "a forked child queries on a session of its parent"
            if status != 0:
                world.unknown.add(number)
                raise psycopg.OperationalError("in the forked child")


def kills(world: World) -> Steps:
    """The server ends some sessions."""
    world.kill_some(most=3)
    yield


def reloads(world: World) -> Steps:
    """Somebody opens everything anew, or closes it."""
    with world.app.app_context():
        with Work(world):
            if world.happens(0.5):
                world.db.get_connection("pool", force_reload=True)
            else:
                world.db.clear_cache()
        yield
