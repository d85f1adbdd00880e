"""Exceptions that signal handlers raise cost a pool nothing for good, wherever they strike.

Celery's soft time limit and Ctrl-C are such. Only the main thread meets them.
"""

from __future__ import annotations

import gc
import linecache
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic
from types import FrameType
from typing import Any

import pytest
from psycopg_pool import PoolTimeout

from flask_pgmonkey.connections import PoolConnection

from .every_type import SyncCase

CONNECTION_TYPES = ("pool",)


INTERRUPTIONS = int(os.environ.get("STORM", "50"))
"""Of a storm of signals: a few here, any number by hand."""


class InterruptionError(Exception):
    pass


# At every step, one after the other


def interrupt_step(number: int, work: Callable[[], object], within: str = "") -> bool:
    """Run *work* and raise at the step of that number; False if it does not have so many.

    A step is a line, or the beginning or end of a function, outside of this file: there Python
    looks for signals. But not the line of a ``with``, which comes again before its end: between the
    last call of its body and that of ``__exit__`` Python does not look.

    :param within: count only what is done in files whose path contains this.
    """
    steps = 0
    was_raised = False

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal steps, was_raised
        file = frame.f_code.co_filename
        if file == __file__ or within not in file or event == "exception" or was_raised:
            return trace
        if any(each.f_code.co_name == "__del__" for each in callers(frame)):
            return trace  # what is raised there is swallowed
        text = linecache.getline(file, frame.f_lineno)
        if event == "line" and text.lstrip().startswith("with "):
            return trace
        steps += 1
        if steps == number:
            was_raised = True
            raise InterruptionError(f"{file}:{frame.f_lineno} {event}")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except InterruptionError:
        pass
    finally:
        sys.settrace(before)
    return was_raised


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    """*frame*, and those that wait for it."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def expect_whole(pool: PoolConnection, size: int) -> None:
    """All connections can be out at once, and nobody has to wait for long."""
    borrowed = [pool.borrow(timeout=10) for _ in range(size)]
    with pytest.raises(PoolTimeout):
        pool.borrow(timeout=0.01)
    for conn in borrowed:
        pool.release(conn)


def interrupt_everywhere(pool: PoolConnection, size: int, work: Callable[[], object]) -> None:
    """Interrupt *work* at each of its steps in turn; each time the pool is whole afterwards."""
    number = 1
    while interrupt_step(number, work):
        expect_whole(pool, size)
        number += 1
    assert number > 30


@contextmanager
def pause_tracing() -> Iterator[None]:
    before = sys.gettrace()
    sys.settrace(None)
    try:
        yield
    finally:
        sys.settrace(before)


def test_what_interrupts_a_borrow_or_release_costs_no_connection(case: SyncCase) -> None:
    def body() -> None:
        pool = case.open(None, {"max_size": 2, "timeout": 20})

        def borrow_and_release() -> None:
            pool.release(pool.borrow())

        interrupt_everywhere(pool, 2, borrow_and_release)
        case.expect_nothing_out(pool)

    case.run(body)


def test_what_interrupts_the_release_of_what_is_to_be_closed(case: SyncCase) -> None:
    def body() -> None:
        pool = case.open(None, {"max_size": 2, "timeout": 20})

        def release_broken() -> None:
            conn = pool.borrow()
            conn.pgconn.finish()
            pool.release(conn)

        def release_expired() -> None:
            conn = pool.borrow()
            conn._expire_at = 0.0
            pool.release(conn)

        interrupt_everywhere(pool, 2, release_broken)
        interrupt_everywhere(pool, 2, release_expired)
        case.expect_nothing_out(pool)

    case.run(body)


def test_what_interrupts_a_waiter_or_who_serves_it(case: SyncCase) -> None:
    def body() -> None:
        pool = case.open(None, {"max_size": 1, "timeout": 20})

        def release_soon(conn: Any) -> None:
            case.sleep(0.005)
            pool.release(conn)

        def wait_in_line() -> None:
            with pause_tracing():
                releasing = case.start(release_soon, pool.borrow())
            try:
                pool.release(pool.borrow())
            finally:
                with pause_tracing():
                    assert releasing.exception(30) is None

        def serve_the_line() -> None:
            with pause_tracing():
                conn = pool.borrow()
                outcomes.append(case.start(lambda: pool.release(pool.borrow())))
                deadline = monotonic() + 10
                while not pool.get_stats()["requests_waiting"]:
                    assert monotonic() < deadline
            pool.release(conn)

        outcomes: list[Any] = []
        interrupt_everywhere(pool, 1, wait_in_line)
        interrupt_everywhere(pool, 1, serve_the_line)
        assert [one.exception(30) for one in outcomes] == [None] * len(outcomes)
        case.expect_nothing_out(pool)

    case.run(body)


def test_what_interrupts_the_opening_holds_nobody_else_up(case: SyncCase) -> None:
    chance = random.Random(7)

    def body() -> None:
        pool = case.make(None, {"max_size": 1, "timeout": 20, "num_workers": 1})

        def open_and_borrow() -> None:
            with pause_tracing():
                pool.disconnect()
            pool.release(pool.borrow())

        number = 1
        # Not where threads are started: there Python itself does not bear it.
        while interrupt_step(number, open_and_borrow, within="flask_pgmonkey"):
            assert case.start(lambda: pool.release(pool.borrow())).exception(30) is None
            number += chance.randint(1, 20)
        expect_whole(pool, 1)
        pool.disconnect()
        gc.collect()

    case.run(body)


# By real signals, at any moment


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("error", [InterruptionError, KeyboardInterrupt])
def test_a_storm_of_signals_leaves_the_pool_whole(
    case: SyncCase, error: type[BaseException]
) -> None:
    chance = random.Random(7)
    interruptions = 0

    def interrupt(signum: int, frame: FrameType | None) -> None:
        nonlocal interruptions
        if any(each.f_code is be_interrupted.__code__ for each in callers(frame)):
            interruptions += 1
            raise error

    def work_beside() -> None:
        while not is_over.is_set():
            with pool.connection() as conn:
                conn.execute("SELECT 1")

    def be_interrupted() -> None:
        conn = None
        signal.setitimer(signal.ITIMER_REAL, chance.random() * 0.001 + 0.00001)
        try:
            conn = pool.borrow()
            conn.execute("SELECT 1")
        finally:
            if conn is not None:
                pool.release(conn)

    is_over = threading.Event()
    pool: Any = None

    def body() -> None:
        nonlocal pool
        pool = case.open(None, {"max_size": 3, "timeout": 20})
        beside = [case.start(work_beside) for _ in range(3)]
        try:
            deadline = monotonic() + 60
            while interruptions < INTERRUPTIONS:
                with suppress(error):
                    be_interrupted()
                assert monotonic() < deadline
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            is_over.set()
        assert [one.exception(30) for one in beside] == [None] * 3
        expect_whole(pool, 3)
        case.expect_nothing_out(pool)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        case.run(body)
    finally:
        signal.signal(signal.SIGALRM, before)
