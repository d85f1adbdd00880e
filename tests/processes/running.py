"""Programs in processes of their own, and what the server knows of them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ..servers import Server

T = TypeVar("T")

ROOT = Path(__file__).parents[2]
PROGRAMS = Path(__file__).parent / "programs"
# Python 3.12 warns of every fork in a process with threads, which is what is tested here.
STRICT = ("-X", "dev", "-W", "error", "-W", "ignore:This process:DeprecationWarning")
PATIENCE = 60.0


def wait_for(what: Callable[[], T], description: str, patience: float = PATIENCE) -> T:
    """The first truthy result of *what*."""
    deadline = time.monotonic() + patience
    while not (found := what()):
        assert time.monotonic() < deadline, f"{description} did not come about"
        time.sleep(0.02)
    return found


@dataclass
class Ended:
    """How a program ended."""

    returncode: int
    stdout: str
    stderr: str
    seconds: float
    """From the start, or from the signal."""

    def cleanly(self, returncode: int = 0) -> Ended:
        """Itself, if it ended with *returncode* and without a word on stderr."""
        # In its debug mode asyncio tells of each step that took 0.1 s, as on a busy machine it may.
        said = re.sub(r"^Executing <.* took [0-9.]+ seconds\n", "", self.stderr, flags=re.MULTILINE)
        assert (self.returncode, said) == (returncode, ""), self
        return self


class Program:
    """A process with all that it starts, in a process group of its own."""

    def __init__(self, command: list[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._stdout = folder / "stdout"
        self._stderr = folder / "stderr"
        with self._stdout.open("w") as stdout, self._stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **environment},
                stdin=subprocess.PIPE,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self._since = time.monotonic()

    @property
    def stdout(self) -> str:
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        return self._stderr.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Signal the process that was started, and not what it started."""
        self._since = time.monotonic()
        self.process.send_signal(number)

    def go_on(self) -> None:
        """Give the program the line that it waits for."""
        assert self.process.stdin is not None
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()
        self._since = time.monotonic()

    def wait_for_output(self, pattern: str) -> re.Match[str]:
        """The first match of *pattern* in stdout or stderr."""

        def find() -> re.Match[str] | None:
            found = re.search(pattern, self.stdout + self.stderr)
            assert found or self.process.poll() is None, self.wait()
            return found

        found = wait_for(find, f"{pattern!r} in {self.stdout!r}, {self.stderr!r}")
        assert found is not None
        return found

    def wait(self, timeout: float = PATIENCE) -> Ended:
        """Wait for its end."""
        self.process.wait(timeout)
        seconds = time.monotonic() - self._since
        return Ended(self.process.returncode, self.stdout, self.stderr, seconds)

    def kill(self) -> None:
        """End it with all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        assert self.process.stdin is not None
        self.process.stdin.close()


class WebServer:
    """A web server that says on its output where it listens."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.address = program.wait_for_output(r"http://127\.0\.0\.1:\d+").group()

    def get(self, path: str) -> str:
        """The body of a successful answer."""
        with urllib.request.urlopen(self.address + path, timeout=PATIENCE) as answer:  # noqa: S310
            body: bytes = answer.read()
            return body.decode()

    def get_all(self, paths: Iterable[str], threads: int = 8) -> list[str]:
        """The bodies, asked for by several clients at once."""
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.get, paths))


class Programs:
    """Starts programs, and ends them all with the test.

    :param connection_settings: the database that they use.
    """

    def __init__(self, folder: Path, server: Server, connection_settings: dict[str, Any]) -> None:
        self.connection_settings = connection_settings
        self.folder = folder
        self._server = server
        self._started: list[Program] = []
        self._configs = 0

    def config(self, connection_settings: dict[str, Any] | None = None, **sections: Any) -> Path:
        """A config file for the database with further *sections*."""
        self._configs += 1
        path = self.folder / f"config{self._configs}.yaml"
        settings = connection_settings or self.connection_settings
        path.write_text(yaml.safe_dump({"connection_settings": settings, **sections}))
        path.chmod(0o600)
        return path

    def start(self, *command: object, **environment: object) -> Program:
        """Start a command."""
        folder = self.folder / f"program{len(self._started)}"
        folder.mkdir()
        words = [str(word) for word in command]
        program = Program(words, folder, {name: str(text) for name, text in environment.items()})
        self._started.append(program)
        return program

    def start_script(self, name: str, *arguments: object) -> Program:
        """Start one of our ``programs``, with every warning an error."""
        return self.start(sys.executable, *STRICT, PROGRAMS / f"{name}.py", *arguments)

    def run_script(self, name: str, *arguments: object) -> str:
        """Run one of our ``programs`` to its clean end; what it printed."""
        return self.start_script(name, *arguments).wait().cleanly().stdout

    def sessions(self, state: str = "%") -> set[int]:
        """The server's process ids of the database's sessions, of all or of those in a *state*."""
        with self._server.connect() as admin:
            found = admin.execute(
                "SELECT pid FROM pg_stat_activity"
                " WHERE datname = %s AND coalesce(state, '') LIKE %s",
                [self.connection_settings["dbname"], state],
            )
            return {pid for (pid,) in found}

    def expect_no_sessions(self) -> None:
        """Fail if a session is left a second later."""
        wait_for(lambda: not self.sessions(), "the end of all sessions", 1.0)

    def kill_all(self) -> None:
        for program in self._started:
            program.kill()
