"""Files that appear complete or not at all, and that no stranger's link leads astray.

Where others may write in a folder, anything in it may be theirs: a link is followed only if it is
ours or root's, or stands where nobody else could have put it, and folders are opened one by one, so
that what was looked at is what is used.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

if sys.platform != "win32":
    import fcntl
    import pwd

BLOCK_SIZE = 128 * 1024
MOST_LINKS = 40
"""As many as Linux follows in one path."""

_BINARY = getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)
_FOLDER = getattr(os, "O_DIRECTORY", 0)
# Of a folder on the way, the permission to pass it is enough.
_PLACE = getattr(os, "O_PATH", os.O_RDONLY) | _FOLDER
_HAS_DESCRIPTORS_OF_FOLDERS = os.open in os.supports_dir_fd and os.readlink in os.supports_dir_fd


class Place(NamedTuple):
    """Where the file of a path is, or is to be, all links followed."""

    folder: int | None
    """The descriptor of its folder; None where the system has none, and the name is a path."""
    name: str
    status: os.stat_result | None
    """Of what is there; None if nothing is."""
    is_strangers: bool
    """Whether it is somebody else's, in a folder where others may write."""
    is_open: bool = False
    """Whether it is no file of the folder but an open one, as in /proc/self/fd."""


@contextmanager
def opened_place(path: str | os.PathLike[str], *, follow: bool = True) -> Iterator[Place]:
    """The place to which *path* leads.

    :param follow: whether it may itself be a link; if not, the place is that of the link.
    :raises OSError: if a folder is missing, or a stranger's link stands in the way.
    """
    if not _can_be_path(path):
        raise OSError(errno.EINVAL, "has a character that no path can have", os.fspath(path))
    if not _HAS_DESCRIPTORS_OF_FOLDERS:  # Windows, where links are the administrator's
        name = os.path.realpath(path) if follow else os.fspath(path)
        yield Place(None, name, os.stat(name) if os.path.exists(name) else None, False)
        return
    given = Path(path)
    folder = os.open(given.anchor or ".", _PLACE)
    pending = [*reversed(given.parts[bool(given.anchor) :])] or ["."]
    name = ""
    links = 0
    try:
        while True:
            name = pending.pop()
            try:
                status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            except FileNotFoundError:
                if pending:
                    raise
                yield Place(folder, name, None, False)
                return
            is_strangers = _is_strangers(status, os.fstat(folder))
            if stat.S_ISLNK(status.st_mode) and (pending or follow):
                if is_strangers:
                    raise PermissionError(
                        errno.EACCES,
                        f"the link {name!r} in it belongs to {_name_of(status.st_uid)}, in a folder"
                        f" where others may write; name what it leads to instead",
                    )
                target = os.readlink(name, dir_fd=folder)
                if not pending and _is_open_file(name, folder, target):
                    yield Place(folder, name, os.stat(name, dir_fd=folder), False, True)
                    return
                if (links := links + 1) > MOST_LINKS:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
                leads_to = Path(target)
                if leads_to.anchor:
                    folder = _stepped(folder, leads_to.anchor, 0)
                pending += reversed(leads_to.parts[bool(leads_to.anchor) :])
                if not pending:  # The link leads to / or to the folder that it is in.
                    pending = ["."]
            elif pending:
                folder = _stepped(folder, name, _NO_LINK)
            else:
                yield Place(folder, name, status, is_strangers)
                return
    except OSError as error:
        if error.filename is None or error.filename == name:
            error.filename = os.fspath(path)
        raise
    finally:
        os.close(folder)


def _can_be_path(path: str | os.PathLike[str]) -> bool:
    try:
        return b"\0" not in os.fsencode(path)
    except UnicodeEncodeError:
        return False


def _stepped(folder: int, name: str, flags: int) -> int:
    below = os.open(name, _PLACE | flags, dir_fd=folder)
    os.close(folder)
    return below


def _is_strangers(status: os.stat_result, folder: os.stat_result) -> bool:
    friends = (0, os.geteuid())
    others_write = folder.st_mode & (stat.S_IWGRP | stat.S_IWOTH) or folder.st_uid not in friends
    return status.st_uid not in friends and bool(others_write)


def _is_open_file(name: str, folder: int, target: str) -> bool:
    """Whether a link leads to no path but to an open pipe or the like, as in /proc/self/fd."""
    if os.path.isabs(target) or ":[" not in target:
        return False
    with suppress(OSError):
        os.stat(name, dir_fd=folder)
        return True
    return False


def _name_of(uid: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return f"user {uid}"


def open_for_reading(path: str | os.PathLike[str]) -> BinaryIO:
    """The file *path*, unbuffered, a pipe or a device too; blocks until a pipe has a writer.

    :raises OSError: if it cannot be opened, or a stranger's link or pipe stands in the way.
    """
    with opened_place(path) as place, naming(path, place):
        return open(_opened(place, os.O_RDONLY | _BINARY), "rb", buffering=0)


def open_without_waiting(path: str, flags: int) -> int:
    """An opener for :func:`open` that waits for no pipe and follows no stranger's link."""
    with opened_place(path) as place, naming(path, place):
        return _opened(place, flags | _NO_WAIT)


@contextmanager
def new_file(
    path: str | os.PathLike[str], *, mode: int | None = None, replace: bool = True
) -> Iterator[BinaryIO]:
    """A file for writing that is there as *path* at the end of the block, complete or not at all.

    A link of ours stays, and what it leads to is replaced; a device or a pipe is written to as it
    is. Until the end, the bytes are in a file beside it that only we may read. If the block fails,
    or the process is told to end, *path* is as it was; what a killed process has left is removed by
    the next that writes a file of that name.

    :param mode: of the file; if None, that of the file that was there, or the usual one.
    :param replace: whether a file that is there is replaced.
    :raises FileExistsError: if something is there, a link to nothing too, and *replace* is false.
    :raises OSError: if it cannot be written, or a stranger's link or pipe stands in the way.
    """
    with opened_place(path, follow=replace) as place, naming(path, place):
        if place.status is not None and not stat.S_ISREG(place.status.st_mode):
            if not replace:
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), os.fspath(path))
            if stat.S_ISBLK(place.status.st_mode):
                raise OSError(errno.EINVAL, "is a disk, not a file", os.fspath(path))
            with open(_opened(place, os.O_WRONLY | _BINARY), "wb") as device:
                yield device
            return
        with _completed(place, _final_mode(place) if mode is None else mode, replace) as file:
            yield file


@contextmanager
def our_file(path: str | os.PathLike[str], *, mode: int | None = None) -> Iterator[BinaryIO]:
    """:func:`new_file` for a file that we have named ourselves: whatever is there is replaced.

    :raises OSError: if it cannot be written.
    """
    with opened_place(path, follow=False) as place, naming(path, place):
        with _completed(place, _final_mode(place) if mode is None else mode, True) as file:
            yield file


@contextmanager
def naming(path: str | os.PathLike[str], place: Place) -> Iterator[None]:
    """Let errors about the file name the path that the user has given."""
    try:
        yield
    except OSError as error:
        beside = isinstance(error.filename, str) and error.filename.endswith(".partial")
        if error.filename in (None, place.name) or isinstance(error.filename, int) or beside:
            error.filename, error.filename2 = os.fspath(path), None
        raise


def _opened(place: Place, flags: int) -> int:
    """The descriptor of what is at the place, and was when it was looked at."""
    _refuse_strangers_pipe(place)
    if place.status is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place.name)
    if place.folder is None:
        return os.open(place.name, flags)
    if stat.S_ISREG(place.status.st_mode):
        flags |= _NO_WAIT  # for who finds a pipe in its place
    if not place.is_open:
        flags |= _NO_LINK
    descriptor = os.open(place.name, flags, dir_fd=place.folder)
    if os.path.samestat(os.fstat(descriptor), place.status):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EAGAIN, "somebody has just replaced it; try again")


def _refuse_strangers_pipe(place: Place) -> None:
    if place.status is not None and place.is_strangers and not stat.S_ISREG(place.status.st_mode):
        raise PermissionError(
            errno.EACCES,
            f"is no ordinary file and belongs to {_name_of(place.status.st_uid)}, in a folder where"
            f" others may write",
        )


def _final_mode(place: Place) -> int:
    usual = 0o666 & ~_umask()
    if place.status is None or not stat.S_ISREG(place.status.st_mode):
        return usual
    mode = stat.S_IMODE(place.status.st_mode)
    return mode & usual if place.is_strangers else mode


def _umask() -> int:
    mask = os.umask(0o077)  # For a moment; a file that a thread makes meanwhile is closed to all.
    os.umask(mask)
    return mask


@contextmanager
def _completed(place: Place, mode: int, replace: bool) -> Iterator[BinaryIO]:
    _remove_what_a_kill_left(place)
    partial, descriptor = _open_partial(place)
    folder = place.folder
    try:
        with open(descriptor, "wb", buffering=BLOCK_SIZE) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), mode)
            # Before it is closed, and with it unlocked for who looks for leftovers.
            if sys.platform != "win32":
                _put_in_place(partial, place, replace)
        if sys.platform == "win32":
            _put_in_place(partial, place, replace)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(partial, dir_fd=folder)
        raise


def _put_in_place(partial: str, place: Place, replace: bool) -> None:
    folder = place.folder
    if replace:
        os.replace(partial, place.name, src_dir_fd=folder, dst_dir_fd=folder)
        return
    try:  # Of two who do this at once, one gets the error.
        # Where a neighbour has put a link in its place, not what that leads to.
        follow = os.link not in os.supports_follow_symlinks
        os.link(partial, place.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=follow)
        os.unlink(partial, dir_fd=folder)
    except FileExistsError:
        raise
    except OSError:  # A file system without hard links.
        with suppress(FileNotFoundError):
            os.stat(place.name, dir_fd=folder, follow_symlinks=False)
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
        os.replace(partial, place.name, src_dir_fd=folder, dst_dir_fd=folder)


def _open_partial(place: Place) -> tuple[str, int]:
    """The name and descriptor of a new file beside the place, which we alone may read, locked."""
    before, name = os.path.split(place.name)
    while True:
        partial = os.path.join(before, f".{secrets.token_hex(4)}.{_shortened(name)}.partial")
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | _BINARY
        descriptor = os.open(partial, flags, 0o600, dir_fd=place.folder)
        if _lock(descriptor) is not False:
            with suppress(FileNotFoundError):
                found = os.stat(partial, dir_fd=place.folder, follow_symlinks=False)
                if os.path.samestat(found, os.fstat(descriptor)):
                    return partial, descriptor
        os.close(descriptor)  # Taken for a leftover before it was locked.


def _shortened(name: str) -> str:
    return os.fsdecode(os.fsencode(name)[:200])


def _lock(descriptor: int) -> bool | None:
    """Whether nobody else holds the file; None where that cannot be known."""
    if sys.platform == "win32":
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None  # A file system without locks.
    return True


def _remove_what_a_kill_left(place: Place) -> None:
    """Remove the unfinished files of this name that no process holds any more."""
    before, name = os.path.split(place.name)
    left = re.compile(rf"\.[0-9a-f]{{8}}\.{re.escape(_shortened(name))}\.partial")
    for leftover in filter(left.fullmatch, _names_in(place.folder, before)):
        path = os.path.join(before, leftover)
        with suppress(OSError):
            if sys.platform == "win32":
                os.unlink(path)  # Is refused while the file is open.
                continue
            descriptor = os.open(path, os.O_RDWR | _NO_LINK | _NO_WAIT, dir_fd=place.folder)
            try:
                status = os.fstat(descriptor)
                is_ours = stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid()
                if is_ours and _lock(descriptor):
                    os.unlink(path, dir_fd=place.folder)
            finally:
                os.close(descriptor)


def _names_in(folder: int | None, path: str) -> list[str]:
    try:
        if folder is None:
            return os.listdir(path or ".")
        descriptor = os.open(".", os.O_RDONLY | _FOLDER, dir_fd=folder)
    except OSError:
        return []  # A folder that may be written but not read.
    try:
        return os.listdir(descriptor)
    finally:
        os.close(descriptor)
