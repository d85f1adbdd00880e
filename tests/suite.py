"""One run of the suite: what its processes share, be it one process or pytest-xdist's several.

The controller, or the only process, owns it: the folder with every cluster of the run, one of which
is copied for the others, and the server on which each test has a database. Workers ask the owner
for the server; at the end the owner sweeps away what a worker that crashed has left running.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any

from .servers import (
    UNSAFE_AND_FAST,
    PrivateServer,
    Server,
    create_cluster,
    make_open_folder,
    run_server,
    servers_below,
)


class Suite:
    """A run of the suite, as each of its processes sees it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def server(self) -> Server:
        """The suite's PostgreSQL, started when a test first needs it."""
        with Client(self._address) as owner:
            owner.send("server")
            answer = owner.recv()
        if isinstance(answer, BaseException):
            raise answer
        return Server(answer)

    def copy_cluster(self, data: Path) -> None:
        """Put a cluster that no server has served yet at *data*, and make its folder."""
        original = self.folder / "original" / "data"
        with (self.folder / "original.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not original.exists():
                original.parent.mkdir()
                create_cluster(original)
                with (original / "postgresql.conf").open("a") as conf:
                    conf.writelines(
                        f"{name} = {value}\n" for name, value in UNSAFE_AND_FAST.items()
                    )
        data.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", original, data], check=True)

    def make_open_folder(self) -> Path:
        """Create a folder that every user may enter; the run's end removes it at the latest."""
        return make_open_folder(self.folder)

    @contextmanager
    def run_private_server(self, binaries: Path | None = None) -> Iterator[PrivateServer]:
        """Run a cluster of its own, of the wheel's PostgreSQL or another, until the block ends."""
        folder = self.make_open_folder()
        if binaries is None:
            self.copy_cluster(folder / "data")
        else:
            create_cluster(folder / "data", binaries)
        server = PrivateServer(folder / "data", binaries)
        try:
            yield server
        finally:
            server.close()
            shutil.rmtree(folder)

    @property
    def _address(self) -> str:
        return str(self.folder / "owner.socket")


class OwnSuite(Suite):
    """A run of the suite, as the process sees it that owns what the run shares.

    :param choice: what :func:`~tests.servers.choose_server` chose.
    """

    def __init__(self, choice: str) -> None:
        super().__init__(make_open_folder())
        self.choice = choice
        self._lock = threading.Lock()
        self._resources = ExitStack()
        self._running: Server | None = None
        self._answering: threading.Thread | None = None

    def server(self) -> Server:
        with self._lock:
            if self._running is None:
                self._running = self._resources.enter_context(
                    run_server(self.choice, self.copy_cluster)
                )
            return self._running

    def answer_workers(self) -> None:
        """Begin to answer workers that ask for the server."""
        if self._answering is None:
            listener = Listener(self._address)
            self._answering = threading.Thread(target=self._answer, args=[listener], daemon=True)
            self._answering.start()

    def _answer(self, listener: Listener) -> None:
        with listener:
            while True:
                with listener.accept() as worker, suppress(EOFError, ConnectionError):
                    if worker.recv() != "server":
                        return
                    worker.send(self._server_or_error())

    def _server_or_error(self) -> dict[str, Any] | BaseException:
        try:
            return self.server().connection_settings
        except Exception as error:
            return error

    def close(self) -> None:
        """Stop the server, and whatever else still runs in the folder; remove it all."""
        if self._answering is not None:
            with Client(self._address) as ourselves:
                ourselves.send("end")
            self._answering.join(10)
        try:
            self._resources.close()
        finally:
            for left in servers_below(self.folder):
                left.kill()
            for link in self.folder.rglob("sockets"):
                shutil.rmtree(link.readlink(), ignore_errors=True)
            shutil.rmtree(self.folder)
