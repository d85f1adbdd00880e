"""Who uses a server: the first process starts it, and the last to leave stops it.

The server's *folder* holds ``data`` (the cluster) and its lock files. ``users.lock`` is held shared
by each process that uses the server, from its first use to its end. Whoever leaves closes its
descriptor and then asks for the lock exclusively on a new one: who gets it was the last and stops
the server. A forked child is a user too, for it inherited the descriptor. ``start.lock`` lets one
process at a time start or stop the server.
"""

from __future__ import annotations

import atexit
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from ..errors import EmbeddedServerError
from ..owned_lock import OwnedLock
from .cluster import (
    IMMEDIATE_STOP_TIMEOUT,
    LOCALE_OPTIONS,
    Cluster,
    Postmaster,
    StillStartingError,
)
from .locks import exclusive_lock, open_lock, share_lock, try_lock, unlock, wait_for_lock
from .ownership import make_folder

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

_JOINS_WITHIN = (
    "the embedded server was asked for while this very thread starts it: __del__ and handlers of"
    " signals must not query"
)
_joining_or_leaving = OwnedLock(_JOINS_WITHIN)
# The descriptor of users.lock of each server that this process uses.
_users_locks: dict[Cluster, int] = {}
_is_exiting = False


def join(cluster: Cluster, settings: Mapping[str, str]) -> Postmaster:
    """The server of *cluster*, of which this process is a user from now on; it runs.

    :param settings: further server settings for its command line, if it does not run yet.
    :raises EmbeddedServerError: when it does not start, or this process is exiting.
    """
    folder = cluster.data.parent
    with _joining_or_leaving:
        if _is_exiting:
            raise EmbeddedServerError(
                "This process is exiting, so it starts no embedded server any more."
            )
        make_folder(folder, cluster.account)
        with exclusive_lock(folder / "start.lock"):
            if is_new := cluster not in _users_locks:
                _users_locks[cluster] = open_lock(folder / "users.lock")
            try:
                if is_new:
                    share_lock(_users_locks[cluster], folder / "users.lock")
                cluster.check_ownership()
                is_made = not cluster.data.exists()
                if is_made:
                    cluster.create("--auth=trust", *LOCALE_OPTIONS)
                    cluster.check_ownership()
                has_crashed = cluster.has_crashed()
                server = cluster.start(
                    {**settings, "listen_addresses": "", "unix_socket_permissions": "0700"}
                )
            except StillStartingError:
                if is_new:
                    os.close(_users_locks.pop(cluster))
                raise
            except BaseException:
                _leave(cluster)
                raise
    if is_made:
        logger.warning(
            "Made a PostgreSQL for development, not for production. Its data lie in %s",
            cluster.data,
        )
    elif has_crashed:
        logger.warning(
            "The embedded PostgreSQL had ended without a shutdown and runs again, its data"
            " recovered. They lie in %s",
            cluster.data,
        )
    elif is_new:
        logger.info("Embedded PostgreSQL for development, not for production, in %s", folder)
    return server


@atexit.register
def _leave_for_good() -> None:
    global _is_exiting
    _is_exiting = True
    leave_all()


def leave_all() -> None:
    """Stop using every server, as this process does at its end by itself.

    Blocks for a second where another process or thread starts or stops a server, and for at most
    5 s for each server that is to stop.
    """
    # A thread that still starts a server holds this; the kernel then lets go for it.
    if not _joining_or_leaving.acquire(timeout=IMMEDIATE_STOP_TIMEOUT):
        return
    try:
        for cluster in list(_users_locks):
            if not cluster.data.exists():
                # Without its data the server stops by itself within a minute.
                os.close(_users_locks.pop(cluster))
                continue
            start_lock = open_lock(cluster.data.parent / "start.lock")
            try:
                if wait_for_lock(start_lock, IMMEDIATE_STOP_TIMEOUT):
                    _leave(cluster)
                else:
                    # Whoever starts the server is a user of it, and stops it.
                    os.close(_users_locks.pop(cluster))
            finally:
                unlock(start_lock)
    finally:
        _joining_or_leaving.release()


def stop_unused(cluster: Cluster) -> None:
    """Stop the server of *cluster* if no process uses it, and this one does not start it."""
    if cluster.postmaster() is None:
        return
    start_lock = open_lock(cluster.data.parent / "start.lock")
    try:
        if wait_for_lock(start_lock, IMMEDIATE_STOP_TIMEOUT):
            _stop_if_last(cluster)
    finally:
        unlock(start_lock)


def is_used(folder: Path) -> bool:
    """Whether a process uses the server whose data lie in *folder*."""
    descriptor = open_lock(folder / "users.lock")
    try:
        return not try_lock(descriptor)
    finally:
        os.close(descriptor)


def leave_running() -> None:
    """Stop using every server, and stop none: the last of its next users does."""
    with _joining_or_leaving:
        while _users_locks:
            os.close(_users_locks.popitem()[1])


def _leave(cluster: Cluster) -> None:
    """Stop the server if no other process uses it. The caller holds ``start.lock``."""
    # Never LOCK_UN nor a conversion here: a forked process shares the lock of this descriptor.
    os.close(_users_locks.pop(cluster))
    _stop_if_last(cluster)


def _stop_if_last(cluster: Cluster) -> None:
    descriptor = open_lock(cluster.data.parent / "users.lock")
    try:
        if try_lock(descriptor):
            cluster.stop()
    finally:
        os.close(descriptor)


def _renew_in_child() -> None:
    global _joining_or_leaving
    _joining_or_leaving = OwnedLock(_JOINS_WITHIN)


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_renew_in_child)
