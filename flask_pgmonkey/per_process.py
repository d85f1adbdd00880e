"""What each process has of its own: a forked child begins anew and leaves its parent's alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class PerProcess(dict[int, T]):
    """One object for each process id, made at its first use: ``states[os.getpid()]``.

    What another process made stays referenced and is never touched: closing it, or finalizing it,
    could hang or speak on the other's socket. Process ids, and no hooks at the fork, tell the
    processes apart, because some servers fork without running hooks.

    :param make: makes the object of a process that has none.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, pid: int) -> T:
        # Threads that come here at the same time get the same one.
        return self.setdefault(pid, self._make())

    def here(self) -> T:
        """The object of this process."""
        return self[os.getpid()]

    def elsewhere(self) -> list[T]:
        """The objects that other processes made before the fork."""
        return [made for pid, made in list(self.items()) if pid != os.getpid()]
