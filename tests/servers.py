"""The PostgreSQL servers of the test suite."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import psycopg
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from flask_pgmonkey.embedded import (
    LOCALE_OPTIONS,
    Cluster,
    Postmaster,
    find_account,
    find_binaries,
    leave_all,
    start_embedded,
)

from .ports import give_back_port, reserve_port

DOCKER_IMAGE = "postgres:17-alpine"
DOCKER_TIMEOUT = 180
DOCKER_PROBE = """
import sys, docker
engine = docker.from_env(timeout=20)
try:
    engine.images.get(sys.argv[1])
except docker.errors.ImageNotFound:
    engine.images.pull(sys.argv[1])
"""
PASSWORD = "no-secret-of-the-suite"
# For all that the workers of a run, and their pools, open at the same time.
MAX_CONNECTIONS = 500
UNSAFE_AND_FAST = {"fsync": "off", "full_page_writes": "off"}
"""Settings for servers that survive their own end, but not the machine's."""

IN_MEMORY = Path("/dev/shm")
ROOM = 4 << 30

MakeCluster = Callable[[Path], object]
"""Puts a cluster that no server has served yet in the place of a data directory."""


class Server:
    """The suite's PostgreSQL, as its superuser reaches it."""

    def __init__(self, connection_settings: dict[str, Any]) -> None:
        self.connection_settings = connection_settings

    def settings(self, dbname: str = "postgres", **more: Any) -> dict[str, Any]:
        """Return connection_settings for a database of this server."""
        return {**self.connection_settings, "dbname": dbname, **more}

    def connect(self, dbname: str = "postgres") -> psycopg.Connection:
        """Return a new connection in autocommit mode. Close it, or use it as a context manager."""
        return psycopg.connect(**self.settings(dbname), autocommit=True)

    @contextmanager
    def database(self) -> Iterator[str]:
        """Create an empty database; at the end drop it, and fail if a session was left at work."""
        name = f"test_{os.getpid()}_{time.monotonic_ns()}"
        identifier = sql.Identifier(name)
        with self.connect() as admin:
            # Copying needs two checkpoints, which cost nothing where nothing is synced.
            is_unsafe = admin.execute("SHOW fsync").fetchone() == ("off",)
            strategy = sql.SQL("STRATEGY FILE_COPY" if is_unsafe else "")
            admin.execute(sql.SQL("CREATE DATABASE {} {}").format(identifier, strategy))
        try:
            yield name
        finally:
            with self.connect() as admin:
                busy = self._await_sessions(admin, name)
                admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(identifier))
        assert not busy, f"The test left sessions at work on the server: {busy}"

    def _await_sessions(self, admin: psycopg.Connection, dbname: str) -> list[Any]:
        """Let sessions end, since DROP would sleep for 100 ms; gives those that are at work."""
        start = time.monotonic()
        while True:
            sessions = admin.execute(
                "SELECT pid, state, application_name, query FROM pg_stat_activity"
                " WHERE datname = %s",
                (dbname,),
            ).fetchall()
            busy = [
                each
                for each in sessions
                if each[1] is not None and each[1].startswith(("active", "idle in transaction"))
            ]
            patience = 1 if busy else 0.1
            if not sessions or time.monotonic() > start + patience:
                return busy
            time.sleep(0.002)


def choose_server() -> str:
    """Return ``docker``, ``embedded``, or the URI of a server.

    ``PGMONKEY_TEST_SERVER`` says which; otherwise Docker, where an engine answers that has the
    image or can pull it.
    """
    return os.environ.get("PGMONKEY_TEST_SERVER") or (
        "docker" if docker_can_run(DOCKER_IMAGE) else "embedded"
    )


def docker_can_run(image: str) -> bool:
    """Whether an engine answers that has the image or can pull it."""
    if "DOCKER_HOST" not in os.environ and not Path("/var/run/docker.sock").is_socket():
        return False
    probe = [sys.executable, "-c", DOCKER_PROBE, image]
    try:
        return subprocess.run(probe, capture_output=True, timeout=DOCKER_TIMEOUT).returncode == 0
    except subprocess.TimeoutExpired:
        return False


@contextmanager
def run_server(choice: str, make_cluster: MakeCluster | None = None) -> Iterator[Server]:
    """Run what :func:`choose_server` chose.

    :param make_cluster: for the embedded server, which otherwise creates its own.
    """
    if choice == "docker":
        with _docker_server() as server:
            yield server
    elif choice == "embedded":
        with _embedded_server(make_cluster) as server:
            yield server
    else:
        yield Server({"port": 5432, **conninfo_to_dict(choice)})


@contextmanager
def _embedded_server(make_cluster: MakeCluster | None) -> Iterator[Server]:
    folder = make_open_folder()
    if make_cluster is not None:
        make_cluster(folder / "data")
        with (folder / "data" / "postgresql.conf").open("a") as conf:
            conf.write(f"max_connections = {MAX_CONNECTIONS}\n")
    started = start_embedded(folder)
    needed = {name: started[name] for name in ("host", "port", "user")}
    server = Server({**needed, "password": PASSWORD})
    with server.connect() as admin:
        for setting in (*UNSAFE_AND_FAST, "synchronous_commit"):
            admin.execute(f"ALTER SYSTEM SET {setting} = off")
        admin.execute("SELECT pg_reload_conf()")
        admin.execute(f"ALTER ROLE postgres PASSWORD '{PASSWORD}'")
    try:
        yield server
    finally:
        leave_all()
        shutil.rmtree(folder)


@contextmanager
def _docker_server() -> Iterator[Server]:
    with _careless_about_sockets():
        from testcontainers.community.postgres import PostgresContainer
        from testcontainers.core.config import testcontainers_config
        from testcontainers.core.container import Reaper

        # The container is stopped below; the reaper is for runs that are killed.
        if not docker_can_run(testcontainers_config.ryuk_image):
            testcontainers_config.ryuk_disabled = True
        container = PostgresContainer(
            DOCKER_IMAGE, username="postgres", password=PASSWORD, dbname="postgres", driver=None
        ).with_command(
            f"postgres -c fsync=off -c full_page_writes=off -c max_connections={MAX_CONNECTIONS}"
        )
        container.start()
    try:
        yield Server(
            {
                "host": container.get_container_host_ip(),
                "port": int(container.get_exposed_port(5432)),
                "user": "postgres",
                "password": PASSWORD,
            }
        )
    finally:
        with _careless_about_sockets():
            container.stop()
            Reaper.delete_instance()


@contextmanager
def _careless_about_sockets() -> Iterator[None]:
    """Let testcontainers warn and leave sockets open, which would fail a test much later."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        gc.collect()


def make_open_folder(parent: Path | None = None) -> Path:
    """Create a temporary folder that every user may enter, unlike pytest's own.

    In memory, where there is room for the clusters of a run.
    """
    if parent is None and os.access(IN_MEMORY, os.W_OK):
        parent = IN_MEMORY if shutil.disk_usage(IN_MEMORY).free > ROOM else None
    folder = Path(tempfile.mkdtemp(prefix="pgmonkey-test-", dir=parent))
    folder.chmod(0o755)
    return folder


def create_cluster(data: Path, binaries: Path | None = None) -> None:
    """Create a cluster for tests, of the wheel's PostgreSQL or another."""
    locale = ("--locale=C.UTF-8",) if binaries else LOCALE_OPTIONS
    authentication = ("--auth-local=trust", "--auth-host=scram-sha-256")
    cluster_of(data, binaries).create(*authentication, "--no-sync", *locale)


def cluster_of(data: Path, binaries: Path | None = None, port: int = 5432) -> Cluster:
    """The cluster of a data directory."""
    account = find_account(data)
    return Cluster(data, binaries or find_binaries(account), account, port)


def servers_below(folder: Path) -> list[psutil.Process]:
    """The server processes with their data below *folder*."""
    return [
        process
        for process in psutil.process_iter(["name", "cmdline"])
        if process.info["name"] == "postgres"
        and f"-D {folder}" in " ".join(process.info["cmdline"] or ())
    ]


class PrivateServer:
    """A cluster of its own, to be hurt.

    The user ``app`` owns the database ``app`` and connects over TCP with a password; the superuser
    connects through the socket without one.
    """

    host = "127.0.0.1"
    superuser = "postgres"
    user = "app"
    password = PASSWORD

    def __init__(self, data: Path, binaries: Path | None = None) -> None:
        self.port = reserve_port()
        self._cluster = cluster_of(data, binaries, self.port)
        self._hba = data / "pg_hba.conf"
        self._original_hba = self._hba.read_text()
        self._altered = data / "postgresql.auto.conf"
        self._original_altered = self._altered.read_text()
        self.start()
        with self.connect() as admin:
            self._add_user_and_database(admin)

    def _add_user_and_database(self, admin: psycopg.Connection) -> None:
        admin.execute(f"CREATE ROLE app LOGIN PASSWORD '{PASSWORD}' IN ROLE pg_monitor")
        admin.execute("CREATE DATABASE app OWNER app")

    def settings(self, dbname: str = "app", **more: Any) -> dict[str, Any]:
        """Return connection_settings for the user ``app`` over TCP."""
        own = {"host": self.host, "port": self.port, "user": self.user, "password": self.password}
        return {**own, "dbname": dbname, **more}

    def connect(self, dbname: str = "postgres") -> psycopg.Connection:
        """Return the superuser's new connection, in autocommit mode, through the socket."""
        return psycopg.connect(
            host=str(self._postmaster().socket_folder),
            port=self.port,
            user=self.superuser,
            dbname=dbname,
            autocommit=True,
        )

    def start(self) -> None:
        """Start the server if it does not run, and wait until it is ready."""
        self._cluster.start(
            {
                "listen_addresses": self.host,
                **UNSAFE_AND_FAST,
                "shared_buffers": "16MB",
                "max_connections": "100",
            }
        )

    def stop(self, mode: str = "fast") -> None:
        """Stop the server; ``immediate`` is its own emergency exit."""
        if mode == "immediate":
            os.kill(self._postmaster().pid, signal.SIGQUIT)
            self._await_end()
        else:
            assert mode == "fast"
            self._cluster.stop()

    def restart(self) -> None:
        """Stop and start; every connection is closed."""
        self.stop()
        self.start()

    def kill(self) -> None:
        """Kill every process of the server at once (SIGKILL)."""
        self.pause()
        self._send_all(signal.SIGKILL)
        self._await_end()

    def pause(self) -> None:
        """Stop every process of the server in its tracks (SIGSTOP): the sockets stay open."""
        # The postmaster first: from then on it has no new children.
        os.kill(self._postmaster().pid, signal.SIGSTOP)
        self._send_all(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused server go on."""
        self._send_all(signal.SIGCONT)

    def set_password(self, user: str, password: str) -> None:
        """Change a user's password; sessions that exist stay."""
        with self.connect() as admin:
            admin.execute(
                sql.SQL("ALTER ROLE {} PASSWORD {}").format(
                    sql.Identifier(user), sql.Literal(password)
                )
            )

    def write_hba(self, lines: list[str]) -> None:
        """Put *lines* in the place of pg_hba.conf, under the line that lets us in, and load it."""
        self._hba.write_text("\n".join(["local all postgres trust", *lines, ""]))
        with self.connect() as admin:
            loaded = admin.execute("SELECT pg_conf_load_time(), pg_reload_conf()").fetchone()
        deadline = time.monotonic() + 5
        while True:
            with self.connect() as admin:
                if admin.execute("SELECT pg_conf_load_time()").fetchone()[0] > loaded[0]:  # type: ignore[index]
                    return
            assert time.monotonic() < deadline, "the server did not load pg_hba.conf"
            time.sleep(0.01)

    def heal(self) -> None:
        """Undo what a test has done: running, resumed, own pg_hba.conf and password."""
        if self._cluster.postmaster() is not None:
            self.resume()
        self.start()
        if self._hba.read_text() != self._original_hba:
            self.write_hba([self._original_hba])
            self._hba.write_text(self._original_hba)
        self.set_password(self.user, self.password)

    def start_over(self) -> None:
        """Undo also what a test may leave to others of its module: databases, roles, settings."""
        self.heal()
        if self._altered.read_text() != self._original_altered:
            self._altered.write_text(self._original_altered)
            self.restart()
        with self.connect() as admin:
            for (name,) in admin.execute(
                "SELECT datname FROM pg_database WHERE datname NOT LIKE 'template_'"
                " AND datname <> 'postgres'"
            ).fetchall():
                admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
            for (name,) in admin.execute(
                "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_' AND rolname <> 'postgres'"
            ).fetchall():
                role = sql.Identifier(name)
                admin.execute(sql.SQL("DROP OWNED BY {}").format(role))  # and what it was granted
                admin.execute(sql.SQL("DROP ROLE {}").format(role))
            self._add_user_and_database(admin)

    def close(self) -> None:
        """Stop the server for good."""
        self.heal()
        self.stop()
        give_back_port(self.port)

    def _postmaster(self) -> Postmaster:
        running = self._cluster.postmaster()
        assert running is not None, "the private server does not run"
        return running

    def _send_all(self, which: signal.Signals) -> None:
        postmaster = psutil.Process(self._postmaster().pid)
        for process in (*postmaster.children(recursive=True), postmaster):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(which)

    def _await_end(self) -> None:
        deadline = time.monotonic() + 10
        while self._cluster.postmaster() is not None:
            assert time.monotonic() < deadline, "the private server goes on"
            time.sleep(0.01)
