"""File locks (``flock``), which the kernel lets go of when the process that holds them is killed.

A forked child holds a lock too, through the descriptor that it inherited.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from ..errors import EmbeddedServerError
from .ownership import opened_folder

if sys.platform != "win32":
    import fcntl

HELD_TIMEOUT = 60.0
POLL_INTERVAL = 0.01


def open_lock(path: Path) -> int:
    """A new descriptor of a lock file, which is made if it is missing.

    What root makes belongs to the folder's owner, who may want to go on without root.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
    with opened_folder(path.parent) as folder:
        descriptor = os.open(path.name, flags, 0o600, dir_fd=folder)
        owner = os.fstat(folder)
    give(descriptor, owner.st_uid, owner.st_gid)
    return descriptor


def give(descriptor: int, uid: int, gid: int) -> None:
    """Let a lock file that root has made belong to another."""
    status = os.fstat(descriptor)
    if os.geteuid() != 0 or status.st_uid != 0 or uid == 0:
        return
    # Somebody could have put another name of a file of root's in its place.
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_size == 0:
        os.fchown(descriptor, uid, gid)


def share_lock(descriptor: int, path: Path) -> None:
    """Hold the lock *path* together with others who share it.

    :raises EmbeddedServerError: when another has held it exclusively for a minute.
    """
    if not wait_for_lock(descriptor, HELD_TIMEOUT, is_shared=True):
        raise _held(path)


def try_lock(descriptor: int, is_shared: bool = False) -> bool:
    """Take a lock exclusively, unless anybody holds it; or together with others who share it."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_for_lock(descriptor: int, timeout: float, is_shared: bool = False) -> bool:
    """:func:`try_lock` for at most *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while not try_lock(descriptor, is_shared):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_INTERVAL)
    return True


def unlock(descriptor: int) -> None:
    """Let go of a lock and close its descriptor."""
    # Closing alone would not do: a process forked meanwhile holds a duplicate.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _held(path: Path) -> EmbeddedServerError:
    return EmbeddedServerError(
        f"Another process has held {path} for {HELD_TIMEOUT:.0f} s. It may be suspended, as by "
        f"Ctrl-Z: let it go on with `fg`, or end it."
    )


@contextlib.contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """A block in which no other process or thread is that takes the same lock.

    :raises EmbeddedServerError: when another has held it for a minute.
    """
    descriptor = open_lock(path)
    try:
        if not wait_for_lock(descriptor, HELD_TIMEOUT):
            raise _held(path)
        yield
    finally:
        unlock(descriptor)
