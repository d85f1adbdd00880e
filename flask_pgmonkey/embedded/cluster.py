"""A PostgreSQL data directory: its creation, and its server's start and stop.

Beside the directory ``data`` lies ``server.lock``, which the server's own processes hold: while
they do, no second server starts on these data, though the first be in another container, where its
process id means nothing here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ..errors import EmbeddedServerError
from .locks import POLL_INTERVAL, give, open_lock, try_lock, unlock
from .ownership import (
    Account,
    environment,
    make_private_folder,
    name_of,
    opened_folder,
    read_own_file,
    remove_folder,
    running_as,
    uid_of,
    who_could_replace,
)
from .programs import ROOTS_FOLDER, can_enter, find_account, find_binaries
from .sockets import has_private_socket, prepare_socket_folder, remove_socket_folder

# The same everywhere, whatever locales the machine has; since PostgreSQL 17.
LOCALE_OPTIONS = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")

START_TIMEOUT = 60.0
LET_GO_TIMEOUT = 10.0
FAST_STOP_TIMEOUT = 4.0
IMMEDIATE_STOP_TIMEOUT = 1.0


class StillStartingError(EmbeddedServerError):
    """The development server was not ready in time, and goes on starting."""


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
            self._remove(abandoned)
        unfinished = make_private_folder(self.account, "initdb-", self.data.parent)
        command: list[str | Path] = [self.binaries / "initdb", "-D", unfinished, "-U", "postgres"]
        command += ["--encoding=UTF8", *initdb_options]
        try:
            with subprocess.Popen(
                command,
                cwd=unfinished,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
                **running_as(self.account),
            ) as initdb:
                try:
                    output, _ = initdb.communicate()
                except BaseException:
                    os.killpg(initdb.pid, signal.SIGKILL)  # with the postgres that it runs
                    raise
            if initdb.returncode != 0:
                raise EmbeddedServerError(f"initdb failed for {self.data}:\n{output.strip()}")
            with opened_folder(self.data.parent) as place:
                os.rename(unfinished.name, self.data.name, src_dir_fd=place, dst_dir_fd=place)
        finally:
            self._remove(unfinished)

    def postmaster(self) -> Postmaster | None:
        """The server of this data directory, if it lives, whoever launched it."""
        try:
            with opened_folder(self._real_data, uid_of(self.account)) as data:
                lines = read_own_file(data, "postmaster.pid").split(b"\n")
        except FileNotFoundError:
            return None
        # A crash of the machine can leave anything in the file.
        pid = int(lines[0]) if re.fullmatch(rb"[0-9]{1,10}", lines[0]) else 0
        if not self._is_postmaster(pid):
            return None
        ready = len(lines) > 7 and lines[7].strip() == b"ready"
        return Postmaster(pid, Path(os.fsdecode(lines[4]) if ready else ""), ready)

    def has_crashed(self) -> bool:
        """Whether its server has ended without a shutdown: the next start recovers the data."""
        with opened_folder(self._real_data, uid_of(self.account)) as data:
            try:
                os.stat("postmaster.pid", dir_fd=data)
            except FileNotFoundError:
                return False
        return self.postmaster() is None

    def start(self, settings: Mapping[str, str]) -> Postmaster:
        """The server, ready for connections; launched unless it runs already.

        :param settings: server settings for its command line.
        :raises EmbeddedServerError: when it ends at once, runs where this process cannot see it, or
            cannot read the data, since another major version of PostgreSQL made them.
        :raises StillStartingError: when it is not ready within a minute.
        """
        begin = time.monotonic()
        log = self.data / "server.log"
        old_log_size = log.lstat().st_size if log.exists() else 0
        launched = 0
        try:
            while True:
                running = self.postmaster()
                if running is None and not self._is_postmaster(launched):
                    if launched:
                        raise self._does_not_start(log, old_log_size)
                    launched = self._launch(settings)
                    if not launched and time.monotonic() > begin + LET_GO_TIMEOUT:
                        raise self._runs_out_of_sight()
                elif running is not None and running.ready:
                    if has_private_socket(running.socket_folder, self.port, self.account):
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
        remove_socket_folder(self._real_data, self.account)

    def _launch(self, settings: Mapping[str, str]) -> int:
        """Launch the server and return its process id, without a wait for its readiness.

        Gives 0 and does nothing while a process of a server of this data directory lives.
        """
        lock = open_lock(self._lock_file)
        try:
            if self.account is not None:  # the data may be used without root as well
                give(lock, *self.account)
            if not try_lock(lock):
                return 0
            self._check_version()
            return self._run_in_background(settings, lock)
        finally:
            os.close(lock)

    def _run_in_background(self, settings: Mapping[str, str], lock: int) -> int:
        options = [f"--{name}={value}" for name, value in settings.items()]
        socket_folder = prepare_socket_folder(self._real_data, self.account, self.port)
        options += [f"--port={self.port}", f'--unix_socket_directories="{socket_folder}"']
        # PostgreSQL would refuse to start if the process id of the dead server was used again.
        # The shell leaves the server to init, so that no app has a child that it did not ask for;
        # the new session keeps a terminal's Ctrl-C away from it.
        shell = subprocess.run(
            [
                "/bin/sh",
                "-c",
                'rm -f postmaster.pid; "$0" "$@" </dev/null >>server.log 2>&1 & echo $!',
                self.binaries / "postgres",
                "-D",
                self.data,
                *options,
            ],
            cwd=self.data,
            env=environment(),
            stdout=subprocess.PIPE,
            check=True,
            start_new_session=True,
            umask=0o077,
            pass_fds=[lock],
            **running_as(self.account),
        )
        return int(shell.stdout)

    def check_ownership(self) -> None:
        """Make sure that the data are the account's, and that nobody has put them there.

        :raises EmbeddedServerError: with what to do.
        """
        if find_account(self.data) != self.account:
            raise EmbeddedServerError(f"{self.data} has changed hands just now: try again.")
        if not self.data.exists():
            return
        status = self.data.stat()
        if status.st_uid != uid_of(self.account):
            raise EmbeddedServerError(
                f"{self.data} belongs to {name_of(status.st_uid)}, who could read all that is "
                f"written there. Run as the user who made it, or choose another instance folder."
            )
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise EmbeddedServerError(
                f"Others may write in {self.data}: `chmod 700 {shlex.quote(str(self.data))}`, "
                f"if it holds nothing that you have not put there."
            )
        if self.account is not None:
            stranger = who_could_replace(self._real_data, self.account)
            if stranger is not None:
                raise EmbeddedServerError(
                    f"Root uses no data in {self.data}: {stranger.who}, so that others could put "
                    f"false ones in their place. As root, `{stranger.remedy}`."
                )

    @property
    def _real_data(self) -> Path:
        return Path(os.path.realpath(self.data))

    def _remove(self, folder: Path) -> None:
        """Remove a folder into which a process that was killed may still have been writing."""
        deadline = time.monotonic() + IMMEDIATE_STOP_TIMEOUT
        while os.path.lexists(folder) and time.monotonic() < deadline:
            remove_folder(self.account, folder)
            time.sleep(POLL_INTERVAL)

    @property
    def _lock_file(self) -> Path:
        return self.data.parent / "server.lock"

    def _is_held(self) -> bool:
        """Whether a process of a server of this data directory lives, seen from here or not."""
        lock = open_lock(self._lock_file)
        try:
            return not try_lock(lock)
        finally:
            unlock(lock)

    def _runs_out_of_sight(self) -> EmbeddedServerError:
        return EmbeddedServerError(
            f"The server of {self.data} runs already, where this process cannot reach it: in "
            f"another container, on another host, or under the path that the folder had before it "
            f"was moved; or it was killed, and a long query of it still runs. Its processes hold "
            f"{self._lock_file}. Use the embedded server in one place at a time, or configure a "
            f"server that both can reach."
        )

    def _check_version(self) -> None:
        """Make sure that the programs can read the data, before anything in there changes.

        :raises EmbeddedServerError: when another major version of PostgreSQL made the data.
        """
        with contextlib.suppress(FileNotFoundError):  # PostgreSQL itself says what is missing
            with opened_folder(self._real_data, uid_of(self.account)) as data:
                made_by = read_own_file(data, "PG_VERSION").decode(errors="replace").strip()
            ours = self._major_version()
            if made_by != ours:
                raise EmbeddedServerError(
                    f"PostgreSQL {made_by} made the data in {self.data}, and the embedded server "
                    f"is PostgreSQL {ours}, which cannot read them. Nothing in there was changed. "
                    f"To keep them, move the folder {self.data.parent} away, dump it with the "
                    f"programs of PostgreSQL {made_by}, and load the dump with "
                    f"`flask pgmonkey psql`: the page Upgrading in the documentation has the "
                    f"commands. To begin afresh, delete the folder."
                )

    def _major_version(self) -> str:
        answer: subprocess.CompletedProcess[str] = subprocess.run(
            [self.binaries / "postgres", "--version"],
            cwd="/",
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            **running_as(self.account),
        )
        return answer.stdout.split()[2].partition(".")[0]

    def _does_not_start(self, log: Path, old_log_size: int) -> EmbeddedServerError:
        """The error with what a server that ended at once wrote into its log."""
        with opened_folder(self._real_data, uid_of(self.account)) as data:
            reason = read_own_file(data, log.name, old_log_size).decode(errors="replace").strip()
        return EmbeddedServerError(f"PostgreSQL does not start. It says in {log}:\n{reason}")

    def _end(self, pid: int, how: signal.Signals, timeout: float) -> None:
        """Signal a server, unless it has ended, and wait for its end."""
        if self._is_postmaster(pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)
        deadline = time.monotonic() + timeout
        while self._is_postmaster(pid) and time.monotonic() < deadline:
            time.sleep(POLL_INTERVAL)

    def _is_postmaster(self, pid: int) -> bool:
        if pid <= 0 or _user_of(pid) != uid_of(self.account):
            return False  # Anybody can start a program under any name.
        return f"/postgres -D {self.data} --" in _command_line(pid)


def find_cluster(folder: Path) -> Cluster:
    """The cluster whose data lie in *folder*, which need not exist yet.

    Where the user who runs PostgreSQL for root cannot reach *folder*, because a parent of it is
    closed to others as ``/root`` is, or where others could put something else in its place, they
    lie in ``/var/lib/flask-pgmonkey/<digest of its path>``.
    No permission of a folder that was there before is changed.
    """
    roots_folder = Path(os.path.realpath(ROOTS_FOLDER))
    for place in (folder, roots_folder / hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]):
        data = place / "data"
        account = find_account(data)
        if account is not None and not data.exists() and who_could_replace(place, account):
            continue
        if can_enter(account, next(path for path in (place, *place.parents) if path.is_dir())):
            return Cluster(data, find_binaries(account), account)
    raise EmbeddedServerError(
        f"PostgreSQL refuses to run as root, and the user who would run it in its place reaches "
        f"neither {folder} nor {ROOTS_FOLDER}, or others could put false data there."
    )


def _user_of(pid: int) -> int | None:
    """The user as whom a process runs; None for a dead process."""
    if sys.platform == "linux":
        try:
            status = Path(f"/proc/{pid}/status").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            return None
        uids = re.search(rb"^Uid:\s+\d+\s+(\d+)", status, re.MULTILINE)
        return int(uids[1]) if uids else None
    ps = subprocess.run(["ps", "-o", "uid=", "-p", str(pid)], capture_output=True)
    return int(ps.stdout) if ps.stdout.strip() else None


def _command_line(pid: int) -> str:
    """The words of a process's command line, joined by spaces; empty for a dead process."""
    if sys.platform == "linux":
        try:
            return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):
            return ""
    ps = subprocess.run(["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True)
    return os.fsdecode(ps.stdout)
