"""The end of the process: everything that is open closes, within a few seconds in all."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable
from functools import cache
from time import monotonic
from typing import TYPE_CHECKING
from weakref import WeakSet

from . import loops

if TYPE_CHECKING:
    from typing import Protocol

    class ClosesAtExit(Protocol):
        """What is open without an event loop."""

        def close_at_exit(self, deadline: float) -> None:
            """Close what this process has open, by *deadline* (``time.monotonic``)."""


_SECONDS = 5.0


before_closing: list[Callable[[float], None]] = []
"""Called at exit with the deadline (by ``time.monotonic``), before anything is closed."""

_open: WeakSet[ClosesAtExit] = WeakSet()


def close_at_exit(opened: ClosesAtExit | None = None) -> None:
    """Have everything closed when the process exits, *opened* too.

    To be called when something opens: exit handlers run in reverse, so what registered at import,
    as the end of the embedded server did, still runs after this.
    """
    if opened is not None:
        _open.add(opened)
    _register_in(os.getpid())


@cache
def _register_in(pid: int) -> None:
    # In a forked child again: multiprocessing begins there without exit handlers.
    atexit.unregister(_close_all)
    atexit.register(_close_all)


def _close_all() -> None:
    deadline = monotonic() + _SECONDS
    for prepare in before_closing:
        prepare(deadline)
    for opened in list(_open):
        opened.close_at_exit(deadline)
    loops.close_at_exit(deadline)
