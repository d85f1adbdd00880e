"""Forks for the programs: what a child found out comes back through a pipe."""

from __future__ import annotations

import ctypes
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeVar, cast

T = TypeVar("T")


def raw_fork() -> int:
    """Fork as uWSGI does: Python and its ``os.register_at_fork`` hear nothing of it."""
    # Python's own lock must not be on its way from thread to thread: the child would wait for it
    # for ever. So the threads of the pool come to rest first.
    time.sleep(0.3)
    return cast(int, ctypes.PyDLL(None).fork())


FORKS: dict[str, Callable[[], int]] = {"fork": os.fork, "raw_fork": raw_fork}
EXITS: dict[str, Callable[[int], Any]] = {"os._exit": os._exit, "sys.exit": sys.exit}


def in_child(
    body: Callable[[], T],
    leave: Callable[[int], Any] = os._exit,
    fork: Callable[[], int] = os.fork,
) -> T:
    """What *body* returns in a forked child, which ends with *leave*.

    ``sys.exit`` goes up through the blocks of the caller, and through ``atexit``.
    """
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        try:
            os.close(reader)
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(body(), pipe)
        except SystemExit:
            raise  # of a child of this one
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        leave(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        answer = pipe.read()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with {os.waitstatus_to_exitcode(status)}"
    return cast(T, pickle.loads(answer))  # noqa: S301


def in_grandchild(body: Callable[[], T], **how: Any) -> T:
    """:func:`in_child` of a child, as a daemon begins."""
    return in_child(lambda: in_child(body, **how), **how)
