"""TCP ports that stay one's own while nobody listens on them."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import socket
import tempfile
from contextlib import suppress
from pathlib import Path

# Below those from which the kernel takes the ports of clients, and of servers that ask for any.
_RANGE = range(20_000, 32_000)
_reserved: set[int] = set()
_file = -1


def reserve_port() -> int:
    """A free port of 127.0.0.1 that no test gets in any process, until it is given back.

    A server that is stopped and started finds its port free, whoever runs tests at the same time.
    """
    for port in random.Random().sample(_RANGE, len(_RANGE)):
        if port not in _reserved and _lock(port):
            _reserved.add(port)
            if _is_free(port):
                return port
            give_back_port(port)
    raise AssertionError(f"no port of {_RANGE} is free")


def give_back_port(port: int) -> None:
    """Let others have what :func:`reserve_port` gave; at its end a process gives back all."""
    _reserved.discard(port)
    fcntl.lockf(_file, fcntl.LOCK_UN, 1, port)


def _lock(port: int) -> bool:
    """Lock the byte of a port, in a file that all tests of this machine know."""
    global _file
    if _file < 0:
        name = f"pgmonkey-test-ports-{os.geteuid()}"
        _file = os.open(Path(tempfile.gettempdir(), name), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.lockf(_file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def _is_free(port: int) -> bool:
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False
