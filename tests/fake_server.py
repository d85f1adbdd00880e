"""A server that speaks PostgreSQL's protocol and means no good."""

from __future__ import annotations

import socket
import threading
from base64 import b64encode
from collections.abc import Callable
from contextlib import suppress
from struct import error, pack, unpack
from typing import TypeAlias

MOST_ROUNDS = 2**31 - 1
"""What libpq takes for a number of SCRAM's rounds, at most. It computes them for half an hour."""

_SSL_REQUEST, _GSS_REQUEST = 80877103, 80877104

_NOTICE = b"N\0\0\0\x17SNOTICE\0C00000\0Mx\0\0"

Act: TypeAlias = "Callable[[Client], None]"


class Client:
    """Somebody who has sent a startup message; who asks for TLS before is denied it.

    :ivar passwords: what was sent when the server asked for a password or its hash.
    """

    def __init__(self, connection: socket.socket, passwords: list[str]) -> None:
        self.passwords = passwords
        self._connection = connection
        self._file = connection.makefile("rb")
        while int.from_bytes(self._read_body()[:4], "big") in (_SSL_REQUEST, _GSS_REQUEST):
            connection.sendall(b"N")

    def _read_body(self) -> bytes:
        (size,) = unpack("!I", self._file.read(4))
        return self._file.read(size - 4)

    def receive(self) -> bytes:
        """The body of the next message."""
        self._file.read(1)
        return self._read_body()

    def send(self, kind: bytes, body: bytes) -> None:
        self._connection.sendall(kind + pack("!I", len(body) + 4) + body)

    def authenticate(self, code: int, body: bytes = b"") -> None:
        self.send(b"R", pack("!I", code) + body)

    def let_in(self) -> None:
        self.authenticate(0)
        for name, value in ((b"server_version", b"17.0"), (b"client_encoding", b"UTF8")):
            self.send(b"S", b"%b\0%b\0" % (name, value))
        self.send(b"Z", b"I")

    def refuse(self) -> None:
        self.send(b"E", b"SFATAL\0C28P01\0Mwrong password\0\0")
        self.wait_for_its_end()

    def send_notices(self) -> None:
        while True:
            self._connection.sendall(_NOTICE * 1000)

    def wait_for_its_end(self) -> None:
        while self._file.read(4096):
            pass


def demand_scram_rounds(client: Client) -> None:
    """Have libpq compute for half an hour."""
    client.authenticate(10, b"SCRAM-SHA-256\0\0")
    nonce = client.receive().rpartition(b"r=")[2]
    salt = b64encode(b"salt" * 4)
    client.authenticate(11, b"r=%b!,s=%b,i=%d" % (nonce, salt, MOST_ROUNDS))
    client.wait_for_its_end()


def demand_clear_password(client: Client) -> None:
    """Ask for the password in clear, and refuse it."""
    client.authenticate(3)
    client.passwords.append(client.receive().rstrip(b"\0").decode())
    client.refuse()


def demand_hashed_password(client: Client) -> None:
    """Ask for the password's MD5 hash, which tells as much as the password."""
    client.authenticate(5, b"salt")
    client.passwords.append(client.receive().rstrip(b"\0").decode())
    client.refuse()


def fall_silent(client: Client) -> None:
    """Let in, and answer nothing from then on."""
    client.let_in()
    client.wait_for_its_end()


def flood(client: Client) -> None:
    """Let in, and send notices without end."""
    client.let_in()
    client.send_notices()


def flood_ping(client: Client) -> None:
    """Let in, and send notices without end as soon as something is asked."""
    client.let_in()
    client.receive()
    client.send_notices()


class FakeServer:
    """Does *act* with each who connects to ``host``:``port``, until it is closed.

    :ivar passwords: what clients sent when asked for a password or its hash.
    :ivar count: how many have come.
    """

    host = "127.0.0.1"

    def __init__(self, act: Act) -> None:
        self.passwords: list[str] = []
        self.count = 0
        self._act = act
        self._listener = socket.create_server((self.host, 0))
        self.port: int = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.count += 1
                self._connections.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError, error):  # the client has gone
            self._act(Client(connection, self.passwords))

    def close(self) -> None:
        for one in (self._listener, *self._connections):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for one in (self._listener, *self._connections):
            one.close()
