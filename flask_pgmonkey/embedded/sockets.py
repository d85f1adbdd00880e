"""The server's private socket: the folder that it lies in, and how clients are led to it."""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import tempfile
from pathlib import Path

from ..config import libpq
from ..errors import EmbeddedServerError
from .ownership import (
    Account,
    has_name,
    make_private_folder,
    name_of,
    opened_folder,
    remove_folder,
    uid_of,
    who_could_replace,
)
from .programs import can_enter

# sun_path holds 104 bytes on macOS and 108 on Linux, the closing NUL included.
_LONGEST_PATH = 103

# Keep what the environment or PGSERVICE says for other servers away from this one: what leads
# elsewhere, or is refused over a socket or for a connection without a password.
_SETTINGS_FOR_OTHERS = {
    "hostaddr": "",
    "require_auth": "",
    "channel_binding": "disable",
    "gssencmode": "disable",
    "sslnegotiation": "postgres",
    "sslcertmode": "disable",
    "ssl_max_protocol_version": "",
    "target_session_attrs": "any",
}


def connection_settings(folder: Path, port: int, account: Account | None) -> dict[str, str | int]:
    """What leads to the socket in *folder*, whatever the environment says of other servers.

    libpq refuses a server there that is not run by *account*.
    """
    uid = uid_of(account)
    return {
        "host": str(folder),
        "port": port,
        "user": "postgres",
        "dbname": "postgres",
        "requirepeer": name_of(uid) if has_name(uid) else "",  # libpq knows users by their name
        **{name: value for name, value in _SETTINGS_FOR_OTHERS.items() if name in libpq.KEYWORDS},
    }


def socket_file(folder: Path, port: int) -> Path:
    """Where PostgreSQL puts its socket."""
    return folder / f".s.PGSQL.{port}"


def has_private_socket(folder: Path, port: int, account: Account | None) -> bool:
    """Whether there is a socket of *account*'s in *folder*, which nobody else could replace."""
    try:
        status = socket_file(folder, port).lstat()
        is_private = _is_private(folder.lstat(), account)
    except OSError:
        return False
    is_socket = stat.S_ISSOCK(status.st_mode) and status.st_uid == uid_of(account)
    return is_socket and is_private and not who_could_replace(_real(folder), account)


def prepare_socket_folder(data: Path, account: Account | None, port: int) -> Path:
    """A private folder, without a socket in it, whose path is short enough for one.

    ``data/sockets`` links to it. After a crash it is the same again, so that whoever was connected
    can connect again. Its name says to which data directory it belongs, because a copy of that has
    the same link.

    :raises EmbeddedServerError: when no temporary folder is safe and has a path short enough.
    """
    link = data / "sockets"
    if (folder := _linked_folder(data, account)) is not None:
        with opened_folder(folder) as opened:
            if not _is_private(os.fstat(opened), account):
                raise EmbeddedServerError(f"Somebody has just changed {folder}: try again.")
            socket = socket_file(folder, port).name
            for name in (socket, f"{socket}.lock"):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=opened)
        return folder
    _unlink(link, account)
    prefix = _prefix(data)
    for parent in map(_real, (tempfile.gettempdir(), "/tmp")):  # noqa: S108
        longest = socket_file(parent / f"{prefix}12345678", port)
        if (
            len(os.fsencode(longest)) <= _LONGEST_PATH
            and not who_could_replace(parent, account)
            and can_enter(account, parent)
        ):
            folder = make_private_folder(account, prefix, parent)
            with opened_folder(data, uid_of(account)) as opened:
                os.symlink(folder, link.name, dir_fd=opened)
            return folder
    raise EmbeddedServerError(
        "The embedded server's socket needs a temporary folder with a short path that the "
        "user who runs PostgreSQL can reach, and in which nobody else can rename what is ours "
        "(`chmod +t` sees to that): set TMPDIR to one."
    )


def remove_socket_folder(data: Path, account: Account | None) -> None:
    """Remove the folder to which ``data/sockets`` links, if it is the server's own."""
    if (folder := _linked_folder(data, account)) is not None:
        remove_folder(account, folder)
        _unlink(data / "sockets", account)


def _unlink(link: Path, account: Account | None) -> None:
    if link.is_symlink():
        with opened_folder(link.parent, uid_of(account)) as folder:
            os.unlink(link.name, dir_fd=folder)


def _linked_folder(data: Path, account: Account | None) -> Path | None:
    """The folder to which ``data/sockets`` links, unless others could make or enter one there."""
    link = data / "sockets"
    if not link.is_symlink():
        return None
    folder = link.readlink()
    if not folder.name.startswith(_prefix(data)) or not folder.exists():
        return None
    is_safe = _is_private(folder.lstat(), account) and not who_could_replace(_real(folder), account)
    return folder if is_safe else None


def _real(path: Path | str) -> Path:
    return Path(os.path.realpath(path))


def _is_private(status: os.stat_result, account: Account | None) -> bool:
    return (
        stat.S_ISDIR(status.st_mode)
        and status.st_uid == uid_of(account)
        and stat.S_IMODE(status.st_mode) == 0o700
    )


def _prefix(data: Path) -> str:
    status = data.stat()
    identity = hashlib.sha256(f"{status.st_dev}:{status.st_ino}".encode()).hexdigest()[:8]
    return f"flask-pgmonkey-{identity}-"
