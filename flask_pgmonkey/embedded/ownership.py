"""Whose a folder is, and how root acts in one that another user may change.

Where root starts a server, a part of its path may belong to the account that runs the server, who
may put a link in the place of anything there at any moment. So root opens folders one by one from
the file system's own, never through a link, and acts below their descriptors; what lies in a
folder of the account's own, the account itself removes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import EmbeddedServerError

if sys.platform != "win32":
    import grp
    import pwd

AS_FOLDER = getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
# Of a folder on the way to another, the permission to pass it is enough.
AS_PLACE = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0)
LARGEST_READ = 1 << 20
"""Bytes: more than is read of any file here, whatever somebody has put in its place."""
PASSED_ON = ("PATH", "TZ", "TMPDIR", "LD_LIBRARY_PATH")


class Account(NamedTuple):
    """The user as whom root runs PostgreSQL."""

    uid: int
    gid: int


def uid_of(account: Account | None) -> int:
    """The user id of *account*; ours if it is None, as for everybody but root."""
    return os.geteuid() if account is None else account.uid


def has_name(uid: int) -> bool:
    """Whether the system knows the user."""
    return name_of(uid) != str(uid)


def name_of(uid: int) -> str:
    """The name of a user, or the number where the system knows none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


class Stranger(NamedTuple):
    """Somebody who could put something else in the place of a path."""

    who: str
    """A clause for an error."""
    remedy: str
    """A command of root's."""


def who_could_replace(path: Path, account: Account | None) -> Stranger | None:
    """Who beside root and *account* could put something else in the place of *path*, if anybody.

    A user or group without a name is nobody of this system: in a container, the folders that are
    mounted from outside belong to such.

    :param path: without links in it. What of it does not exist yet is left out.
    """
    for folder in (*reversed(path.parents), path):
        try:
            status = folder.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        if status.st_uid not in (0, uid_of(account)) and has_name(status.st_uid):
            return Stranger(
                f"{folder} belongs to {name_of(status.st_uid)}",
                f"chown {name_of(uid_of(account))} {shlex.quote(str(folder))}",
            )
        if status.st_mode & stat.S_ISVTX or not stat.S_ISDIR(status.st_mode):
            continue  # With the sticky bit others may add, but neither rename nor remove.
        if status.st_mode & stat.S_IWOTH:
            return Stranger(
                f"everybody may write in {folder}", f"chmod o-w {shlex.quote(str(folder))}"
            )
        if status.st_mode & stat.S_IWGRP and (group := _others_in(status.st_gid, uid_of(account))):
            return Stranger(
                f"the group {group} may write in {folder}", f"chmod g-w {shlex.quote(str(folder))}"
            )
    return None


def _others_in(gid: int, uid: int) -> str | None:
    """The name of a group, unless it is root's or the private one of a user, named like him."""
    if gid == 0:
        return None
    try:
        group = grp.getgrgid(gid)
    except KeyError:
        return None
    is_private = group.gr_name == name_of(uid) and {*group.gr_mem} <= {group.gr_name}
    return None if is_private else group.gr_name


def owners_above(path: Path) -> set[int]:
    """The users with a name, other than root, who own *path* or a folder above it."""
    owners = set()
    for folder in (*reversed(path.parents), path):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            owners.add(folder.lstat().st_uid)
    return {uid for uid in owners if uid != 0 and has_name(uid)}


@contextlib.contextmanager
def opened_folder(path: Path, owner: int | None = None) -> Iterator[int]:
    """The descriptor of a folder; for root one that no link has led to.

    :param owner: the user to whom it must belong.
    :raises OSError: if it is missing or, for root, a part of *path* is a link.
    :raises EmbeddedServerError: if it belongs to another.
    """
    if os.geteuid() != 0:
        descriptor = os.open(path, AS_PLACE)
    else:
        descriptor = os.open(path.anchor, AS_PLACE)
        for name in path.parts[1:]:
            above = descriptor
            try:
                descriptor = os.open(name, AS_PLACE | AS_FOLDER, dir_fd=above)
            except OSError as error:
                error.filename = str(path)
                raise
            finally:
                os.close(above)
    try:
        if owner is not None and (found := os.fstat(descriptor).st_uid) != owner:
            raise EmbeddedServerError(f"{path} belongs to {name_of(found)} now: try again.")
        yield descriptor
    finally:
        os.close(descriptor)


def make_folder(folder: Path, account: Account | None) -> None:
    """Create *folder* for us alone, and its missing parents, whatever the umask.

    Those that root makes can be passed, and belong to *account* below a folder that does.
    """
    while not folder.exists():
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        if not missing:
            return  # Another process was faster.
        path = missing[-1]
        try:
            with opened_folder(path.parent) as parent:
                is_accounts = account is not None and os.fstat(parent).st_uid == account.uid
                owner = account if is_accounts else None
                mode = 0o755 if path != folder else 0o700 if is_accounts or not account else 0o711
                _put_in_place(_make_aside(parent, f"{path.name}-", mode, owner), path.name, parent)
        except FileNotFoundError:
            # Another process has put a parent of its own, which is the same, in the place of ours.
            if not path.parent.exists():
                raise


def _put_in_place(made: str, name: str, parent: int) -> None:
    """Give a folder, which is finished, its name, unless another has it and is in use."""
    try:
        os.rename(made, name, src_dir_fd=parent, dst_dir_fd=parent)
    except OSError as error:
        os.rmdir(made, dir_fd=parent)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def make_private_folder(account: Account | None, prefix: str, parent: Path) -> Path:
    """A new folder in *parent* that *account* alone may enter."""
    with opened_folder(parent) as above:
        return parent / _make_aside(above, prefix, 0o700, account)


def _make_aside(parent: int, prefix: str, mode: int, owner: Account | None) -> str:
    """The name of a new folder; *owner*'s, if given.

    :raises EmbeddedServerError: when somebody has put another folder in its place.
    """
    while True:
        name = f"{prefix}{secrets.token_hex(4)}"
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            continue
        descriptor = os.open(name, os.O_RDONLY | AS_FOLDER, dir_fd=parent)
        try:
            if os.fstat(descriptor).st_uid != os.geteuid() or os.listdir(descriptor):
                raise EmbeddedServerError(
                    f"Somebody has put another folder in the place of {name!r} as it was made."
                )
            os.fchmod(descriptor, mode)
            if owner is not None:
                os.fchown(descriptor, *owner)
        finally:
            os.close(descriptor)
        return name


def read_own_file(folder: int, name: str, begin: int = 0) -> bytes:
    """What stands in a file of an open folder from its byte *begin* on, a mebibyte at most.

    :raises FileNotFoundError: if there is no such file, but perhaps a link or a pipe of that name.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(name, flags, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FileNotFoundError(error.errno, "not a file", name) from error
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileNotFoundError(0, "not a file", name)
        file.seek(begin)
        return file.read(LARGEST_READ)


def remove_folder(account: Account | None, folder: Path) -> None:
    """Remove a folder of *account* with all that is in it, as far as that can be done."""
    if account is None:
        shutil.rmtree(folder, ignore_errors=True)
        return
    subprocess.run(
        ["/bin/rm", "-rf", "--", folder],
        cwd="/",
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        **running_as(account),
    )
    # In a folder of root's, the account can only empty it.
    with contextlib.suppress(OSError), opened_folder(folder.parent) as parent:
        os.rmdir(folder.name, dir_fd=parent)


def running_as(account: Account | None) -> dict[str, Any]:
    """The arguments with which :mod:`subprocess` runs a program as *account*."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def environment() -> dict[str, str]:
    """The environment of the programs, which the user who runs them can read: nothing secret."""
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ} | {"LC_ALL": "C"}
