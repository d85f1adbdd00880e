"""A TCP proxy that can delay, stall, drop, refuse and go deaf."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator

from .ports import give_back_port, reserve_port


class Proxy:
    """Passes bytes between clients on ``host``:``port`` and a server.

    :param target_host: a host name, or the folder of PostgreSQL's unix socket.
    :param delay: seconds by which what a client sends comes later: a round trip takes that longer.
    """

    host = "127.0.0.1"

    def __init__(self, target_host: str, target_port: int, delay: float = 0.0) -> None:
        self._target = (target_host, target_port)
        self._delay = delay
        self._flowing = threading.Event()
        self._flowing.set()
        self._deaf = False
        self._lost = 0  # so many of those accepted first are lost
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self.port = reserve_port()
        self.count = 0
        """How many connections were accepted so far."""
        self.accept()

    def stall(self) -> None:
        """Accept connections, old and new, but pass nothing on until :meth:`resume`."""
        self._flowing.clear()

    def resume(self) -> None:
        """Pass on again, what was held back first; hear new connections again."""
        self._deaf = False
        self._flowing.set()

    def deaf(self) -> None:
        """Accept new connections and never answer them; those that exist go on."""
        self._deaf = True

    def drop_all(self) -> None:
        """Close every connection; new ones are accepted."""
        with self._lock:
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def lose_flows(self) -> None:
        """Swallow all that existing connections send; new ones are served."""
        self._lost = self.count

    def refuse(self) -> None:
        """Refuse new connections; those that exist go on."""
        listener, self._listener = self._listener, None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            self._acceptor.join()

    def accept(self) -> None:
        """Accept new connections (again), on the same port."""
        if self._listener is None:
            self._listener = socket.create_server((self.host, self.port))
            self._acceptor = self._run(self._accept, self._listener)

    def close(self) -> None:
        """Close everything and wait for the threads."""
        self.refuse()
        self._flowing.set()
        self.drop_all()
        for thread in self._threads:
            thread.join(10)
        give_back_port(self.port)

    def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                try:
                    client, _ = listener.accept()
                except OSError:
                    return
                self.count += 1
                if self._deaf:
                    self._run(self._hold, client)
                else:
                    self._run(self._serve, client, self.count)

    def _hold(self, client: socket.socket) -> None:
        with self._tracked(client), contextlib.suppress(OSError):
            while client.recv(65536):
                pass

    def _serve(self, client: socket.socket, number: int) -> None:
        with self._tracked(client), contextlib.suppress(OSError):
            self._flowing.wait()
            with self._tracked(self._connect()) as server:
                back = self._run(self._pass_on, server, client, number, 0.0)
                self._pass_on(client, server, number, self._delay)
                back.join()

    def _pass_on(
        self, source: socket.socket, sink: socket.socket, number: int, delay: float
    ) -> None:
        with contextlib.suppress(OSError):
            sink.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(OSError):
            while block := source.recv(65536):
                if delay:
                    time.sleep(delay)
                self._flowing.wait()
                if number > self._lost:
                    sink.sendall(block)
        for one in (source, sink):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _connect(self) -> socket.socket:
        host, port = self._target
        if not host.startswith("/"):
            return socket.create_connection((host, port))
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(f"{host}/.s.PGSQL.{port}")
        except OSError:
            server.close()
            raise
        return server

    @contextlib.contextmanager
    def _tracked(self, one: socket.socket) -> Iterator[socket.socket]:
        with one:
            with self._lock:
                self._sockets.add(one)
            try:
                yield one
            finally:
                with self._lock:
                    self._sockets.discard(one)

    def _run(self, job: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=job, args=arguments, name="proxy", daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread
