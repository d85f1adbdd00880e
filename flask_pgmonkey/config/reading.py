"""Reading small files that somebody else named: nothing that blocks, and nothing without end."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

#: Bytes that a config, or the file of a secret, may have.
LARGEST_FILE = 256 * 1024


def _open_without_waiting(path: str, flags: int) -> int:
    # A named pipe would wait for somebody to write.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_small_file(
    file: Path, opener: Callable[[str, int], int] = _open_without_waiting
) -> tuple[bytes, int]:
    """The content of a regular file, and its mode.

    :param opener: opens it, as that of :func:`open` does, without waiting for a pipe.
    :raises OSError: if it cannot be read, is anything else than a file, or larger than 256 KiB.
    """
    with open(file, "rb", opener=opener) as stream:
        mode = os.fstat(stream.fileno()).st_mode
        if not stat.S_ISREG(mode):
            kind = "a named pipe" if stat.S_ISFIFO(mode) else "a device"
            raise OSError(errno.EINVAL, f"it is {kind}, not a file", str(file))
        content = stream.read(LARGEST_FILE + 1)
    if len(content) > LARGEST_FILE:
        size = f"{LARGEST_FILE // 1024} KiB"
        raise OSError(errno.EFBIG, f"it is larger than {size}", str(file))
    return content, mode
