"""The steps of a login in which a server can hold libpq, each where it can be left behind.

The server chooses what SCRAM costs its client: up to two thousand million rounds, all in one call
of libpq that heeds no timeout and no signal. So such steps run in threads of their own. Whoever
connects waits for a pipe instead, as for a socket: with deadlines, interrupts and other tasks.
"""

from __future__ import annotations

import _thread
import os
import sys
from collections.abc import Callable, Generator
from contextlib import suppress
from functools import cache
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias

from psycopg import generators
from psycopg.conninfo import conninfo_to_dict, timeout_from_conninfo
from psycopg.errors import ConnectionTimeout
from psycopg.waiting import Wait

from .connect_errors import seconds
from .query_timeout import WAKE_UP_EVERY

if TYPE_CHECKING:
    from psycopg.abc import PQGenConn
    from psycopg.pq.abc import PGconn

_LONG = 1.0
"""Seconds after which a step is one that holds libpq. Usual are milliseconds."""

_Address: TypeAlias = tuple[int, str, str]  # the process, host and port

# What was under way for more than a moment when somebody looked, or left.
_held: dict[_Address, _Step] = {}


class _Step:
    """One step of *connecting*, psycopg's generator of a connection.

    :ivar awaited: what it gave, to be waited for; or *pgconn* at its end, or *error*.
    """

    def __init__(self, connecting: PQGenConn[PGconn]) -> None:
        self._connecting = connecting
        self.began_at: float = monotonic()
        self.address: _Address | None = None
        self.is_done = False
        self.awaited: Any = None
        self.pgconn: PGconn | None = None
        self.error: BaseException | None = None

    def run(self, ready: Any) -> None:
        try:
            self.awaited = self._connecting.send(ready)
        except StopIteration as end:
            self.pgconn = end.value
        except BaseException as error:
            self.error = error

    def run_apart(
        self, ready: Any, conninfo: str, give_up_at: Callable[[], float]
    ) -> Generator[tuple[int, Wait], Any, None]:
        """:meth:`run` in a thread, and what to wait for meanwhile.

        :raises ConnectionTimeout: if it is not done by *give_up_at* (by ``time.monotonic``).
        """
        reading_end, writing_end = os.pipe()
        try:
            _start_thread(self._run_and_tell, (ready, writing_end))
        except BaseException:
            os.close(reading_end)
            os.close(writing_end)
            raise
        try:
            while not self.is_done:
                if (yield reading_end, Wait.R) or self.is_done:
                    continue
                self._hold(conninfo)
                # One that has just begun is not why: it is psycopg's to say that time is up.
                if monotonic() > max(give_up_at(), self.began_at + WAKE_UP_EVERY):
                    raise ConnectionTimeout(f"{_who_holds(conninfo, self)}. {_REMEDY}")
        finally:
            os.close(reading_end)
            if not self.is_done:
                self._hold(conninfo)
                _let_process_end()

    def _run_and_tell(self, ready: Any, writing_end: int) -> None:
        self.run(ready)
        del self._connecting  # where nobody waits any more, the connection ends with it
        self.is_done = True
        self._release()
        with suppress(OSError):
            # Closing it would not do: a child forked meanwhile has it open.
            os.write(writing_end, b"\0")
        os.close(writing_end)

    def _hold(self, conninfo: str) -> None:
        self.address = _address(conninfo)
        _held.setdefault(self.address, self)
        if self.is_done:
            self._release()

    def _release(self) -> None:
        if self.address is not None and _held.get(self.address) is self:
            _held.pop(self.address, None)


def connect_in_steps(conninfo: str, **kwargs: Any) -> PQGenConn[PGconn]:
    """psycopg's generator of a connection, no step of which outlasts ``connect_timeout``.

    :raises ConnectionTimeout: also at once, while the server still holds libpq in another login.
    """
    if _held:
        _refuse_if_held(conninfo)
    began_at = monotonic()

    def give_up_at() -> float:
        # Before psycopg does, which would not say why.
        timeout = timeout_from_conninfo(conninfo_to_dict(conninfo))
        return began_at + timeout - WAKE_UP_EVERY

    connecting = generators.connect(conninfo, **kwargs)
    awaited = next(connecting)
    has_heard = False
    while True:
        ready = yield awaited
        is_heard = bool(ready) and awaited[1] == Wait.R
        step = _Step(connecting)
        # From its first answer nothing can be computed yet: only then libpq begins with SCRAM.
        if is_heard and has_heard:
            yield from step.run_apart(ready, conninfo, give_up_at)
        else:
            step.run(ready)
            has_heard = has_heard or is_heard
        if step.error is not None:
            try:
                raise step.error
            finally:
                del step  # it has this frame in its traceback
        if step.pgconn is not None:
            return step.pgconn
        awaited = step.awaited


_REMEDY = (
    "Either this machine is overloaded, or that is not the server which it should be: with"
    " sslmode=verify-full no other gets that far"
)


def _refuse_if_held(conninfo: str) -> None:
    step = _held.get(_address(conninfo))
    if step is not None and monotonic() - step.began_at > _LONG:
        raise ConnectionTimeout(
            f"{_who_holds(conninfo, step)}, in an earlier login: this process logs in there again"
            f" when that is over. {_REMEDY}"
        )


def _who_holds(conninfo: str, step: _Step) -> str:
    _, host, port = _address(conninfo)
    held_for = seconds(monotonic() - step.began_at)
    return (
        f"the server at {host}, port {port}, has had libpq compute for {held_for} to check a"
        " password"
    )


def _address(conninfo: str) -> _Address:
    options = conninfo_to_dict(conninfo)
    host = options.get("hostaddr") or options.get("host") or "the default host"
    return os.getpid(), str(host), str(options.get("port") or "the default one")


@cache
def _let_process_end() -> None:
    """Have this process end without the cleaning up of OpenSSL, amid which the thread that is left
    behind would crash it."""
    import ctypes

    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):  # glibc's
        libc.on_exit(libc._exit, None)


def _start_thread(function: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    # A greenlet of gevent's would hold all the others.
    monkey = sys.modules.get("gevent.monkey")
    start: Any = _thread.start_new_thread
    if monkey is not None:
        start = monkey.get_original("_thread", "start_new_thread")
    start(function, arguments)
