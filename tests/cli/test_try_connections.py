"""``flask pgmonkey test``: every type of every database, within its time, without a secret."""

from __future__ import annotations

import json
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from pathlib import Path
from threading import Thread, Timer
from typing import Any

import pytest
import yaml

from flask_pgmonkey.cli.try_connections import HEADERS
from flask_pgmonkey.config import CONNECTION_TYPES

from ..fake_server import Act, FakeServer, demand_clear_password
from ..proxy import Proxy
from ..servers import PrivateServer
from ..suite import Suite
from .conftest import Invoke, Run, RunFlask

MakeProxy = Callable[[str, int], Proxy]

START_AND_END_OF_A_PROCESS = 8.0
"""Seconds for Python and Flask on a busy machine."""


def write(folder: Path, settings: dict[str, Any], **sections: Any) -> Path:
    config = folder / "db.yaml"
    config.write_text(yaml.safe_dump({"connection_settings": settings, **sections}))
    config.chmod(0o600)
    return config


def rows_of(stdout: str) -> dict[str, dict[str, Any]]:
    return {row["type"]: row for row in json.loads(stdout)}


def test_every_type_passes_on_a_server_that_works(
    run: Run, private_server: PrivateServer, tmp_path: Path
) -> None:
    config = write(tmp_path, private_server.settings(), pool_settings={"min_size": 3})

    shown = run("test", "--config", config, "--json")

    assert (shown.exit_code, shown.stderr) == (0, "")
    rows = rows_of(shown.stdout)
    assert tuple(rows) == CONNECTION_TYPES
    for row in rows.values():
        assert row["passed"]
        assert row["error"] is None
        assert row["bind"] == str(config)
        assert row["server_version"].startswith("18.")
        assert row["tls"] is None
        assert row["authentication"] == "scram-sha-256"
        assert 0 < row["query_ms"] < 10_000
        assert 0 < row["connect_ms"] < 10_000
    assert rows["normal"]["pool"] is None
    assert rows["pool"]["pool"] == {"min_size": 3, "max_size": 10, "borrowed": 4}
    assert rows["async_pool"]["pool"] == {"min_size": 1, "max_size": 10, "borrowed": 2}


def test_the_table_has_a_row_for_each_type(
    run: Run, private_server: PrivateServer, tmp_path: Path
) -> None:
    shown = run("test", "--config", write(tmp_path, private_server.settings()))

    header, *lines = shown.stdout.splitlines()
    assert header.split() == list(HEADERS)
    assert [line.split()[1:3] for line in lines] == [[name, "passed"] for name in CONNECTION_TYPES]
    assert lines[1].split()[4:6] == ["none", "scram-sha-256"]
    assert lines[1].split()[-1] == "1-10"


def test_nothing_stays_open_on_the_server(
    run_flask: RunFlask, private_server: PrivateServer, tmp_path: Path
) -> None:
    run_flask("pgmonkey", "test", "--config", write(tmp_path, private_server.settings()))

    with private_server.connect() as admin:
        deadline = time.monotonic() + 5
        while True:
            left = admin.execute("SELECT query FROM pg_stat_activity WHERE usename = 'app'")
            if not (queries := left.fetchall()):
                break
            assert time.monotonic() < deadline, queries
            time.sleep(0.01)


def test_binds_and_types_can_be_picked(
    make_app: Any, invoke: Invoke, config_file: Path, tmp_path: Path
) -> None:
    refused = {"connection_settings": {"hostaddr": "127.0.0.1", "port": 1}}
    app = make_app(CONFIG=str(config_file), BINDS={"reports": refused})

    both = invoke(app, "test", "--type", "pool", "--json")
    one = invoke(app, "test", "--bind", "default", "--type", "async", "--json")

    assert [(row["bind"], row["type"], row["passed"]) for row in json.loads(both.stdout)] == [
        ("default", "pool", True),
        ("reports", "pool", False),
    ]
    assert both.exit_code == 1
    assert [(row["bind"], row["type"]) for row in json.loads(one.stdout)] == [("default", "async")]
    assert one.exit_code == 0


def test_the_apps_rows_and_hooks_are_in_use(run_flask: RunFlask, config_file: Path) -> None:
    write_app(
        config_file,
        """
        from psycopg.rows import dict_row

        def configure(conn):
            raise LookupError("no extension\\nvector here")

        db = PGMonkey(app, row_factory=dict_row)
        strict = Flask("strict")
        strict.config["PGMONKEY_CONFIG"] = app.config["PGMONKEY_CONFIG"]
        PGMonkey(strict, row_factory=dict_row, configure=configure)
        """,
    )

    assert run_flask("--app", "app:app", "pgmonkey", "test").returncode == 0
    shown = run_flask("--app", "app:strict", "pgmonkey", "test")
    assert shown.returncode == 1
    # One thing for psycopg connections, another for async ones, which configure could not use.
    *_, sync, for_async = shown.stdout.splitlines()
    assert sync.startswith("default normal, pool: no extension vector here")
    assert for_async.startswith("default async, async_pool: no extension vector here")
    assert "Raised by configure, app.configure, on a new connection." in sync


def test_a_hook_that_is_a_coroutine_function_fails_the_sync_types_and_says_what_to_give(
    run_flask: RunFlask, config_file: Path
) -> None:
    write_app(
        config_file,
        """
        async def configure(conn):
            await conn.execute("SELECT 1")

        PGMonkey(app, configure=configure)
        """,
    )

    shown = run_flask("pgmonkey", "test", "--json")

    assert shown.stderr == ""
    rows = rows_of(shown.stdout)
    assert [row["passed"] for row in rows.values()] == [False, False, True, True]
    for sync in ("normal", "pool"):
        assert rows[sync]["error"].startswith("configure, app.configure, is a coroutine function")
        assert "give a plain function" in rows[sync]["error"]


def test_the_end_of_a_login_is_shown(
    run: Run, private_server: PrivateServer, tmp_path: Path
) -> None:
    login = {"password": private_server.password, "expiry": "2099-01-31T12:00:00Z"}
    command = {"from_command": ["echo", json.dumps(login)], "ttl": 60}
    config = write(tmp_path, private_server.settings(password=command))

    shown = run("test", "--config", config, "--resolve-env", "--type", "pool", "--json")
    table = run("test", "--config", config, "--resolve-env", "--type", "async")

    assert shown.exit_code == table.exit_code == 0
    expires = datetime.fromisoformat(rows_of(shown.stdout)["pool"]["login_expires"])
    assert expires == datetime(2099, 1, 31, 12, tzinfo=timezone.utc)
    assert f"async: the login ends at {expires}" in table.stdout
    assert private_server.password not in shown.output + table.output


def test_a_command_that_fails_is_an_error_of_each_type(
    run: Run, private_server: PrivateServer, tmp_path: Path
) -> None:
    config = write(tmp_path, private_server.settings(password={"from_command": ["false"]}))

    shown = run("test", "--config", config, "--resolve-env", "--json")

    assert shown.exit_code == 1
    for row in rows_of(shown.stdout).values():
        assert "password.from_command: the command ended with exit code 1" in row["error"]


def test_a_hook_that_changes_the_form_of_rows_changes_nothing_that_is_shown(
    run_flask: RunFlask, private_server: PrivateServer, tmp_path: Path
) -> None:
    write_app(
        write(tmp_path, private_server.settings()),
        """
        from psycopg.rows import dict_row

        def configure(conn):
            conn.row_factory = dict_row

        db = PGMonkey(app, configure=configure)
        """,
    )

    shown = run_flask("pgmonkey", "test", "--json")

    for row in rows_of(shown.stdout).values():
        assert (row["tls"], row["authentication"]) == (None, "scram-sha-256")


def test_a_hook_that_ends_the_process_fails_its_rows_at_once(
    run_flask: RunFlask, config_file: Path
) -> None:
    write_app(
        config_file,
        """
        import sys

        def configure(conn):
            sys.exit("no vector here")

        db = PGMonkey(app, configure=configure)
        """,
    )

    shown = run_flask("pgmonkey", "test", "--timeout", "50")

    assert (shown.returncode, shown.stderr) == (1, "")
    assert shown.stdout.count("FAILED") == 4
    last = shown.stdout.splitlines()[-1]
    assert last == "default: the app's configure called sys.exit('no vector here')"


@pytest.mark.parametrize("form", [[], ["--json"]], ids=["table", "JSON"])
def test_text_that_psycopg_gives_as_bytes_is_shown_as_text(
    run: Run, private_server: PrivateServer, tmp_path: Path, form: list[str]
) -> None:
    config = write(tmp_path, private_server.settings(client_encoding="SQL_ASCII"))

    shown = run("test", "--config", config, *form)

    assert shown.exit_code == 0, shown.output
    assert shown.stdout.count("scram-sha-256") == len(CONNECTION_TYPES)
    assert "b'" not in shown.stdout


def write_app(config: Path, code: str) -> None:
    lines = code.splitlines()
    indent = len(lines[1]) - len(lines[1].lstrip())
    (config.parent / "app.py").write_text(
        "from flask import Flask\n"
        "from flask_pgmonkey import PGMonkey\n"
        "app = Flask(__name__)\n"
        f"app.config['PGMONKEY_CONFIG'] = {str(config)!r}\n"
        + "\n".join(line[indent:] for line in lines)
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"password": "planted-and-wrong"}, 'password authentication failed for user "app"'),
        ({"dbname": "nowhere"}, 'database "nowhere" does not exist'),
        ({"port": 1}, "Connection refused"),
        ({"host": "no-such-host.invalid"}, "failed to resolve host"),
        ({"sslmode": "require"}, "server does not support SSL"),
    ],
    ids=str,
)
def test_failing_rows_have_the_servers_words_and_no_secret(
    run: Run,
    private_server: PrivateServer,
    tmp_path: Path,
    change: dict[str, Any],
    words: str,
) -> None:
    config = write(tmp_path, private_server.settings(**change))

    table = run("test", "--config", config)
    as_json = run("test", "--config", config, "--json")

    assert (table.exit_code, table.stderr) == (1, "")
    assert (as_json.exit_code, as_json.stderr) == (1, "")
    assert table.stdout.count("FAILED") == len(CONNECTION_TYPES)
    for name, row in rows_of(as_json.stdout).items():
        assert not row["passed"]
        assert words in row["error"], name
    told = [line for line in table.stdout.splitlines() if words in line]
    assert len(told) == 1
    assert told[0].startswith(f"{config}: ")
    for secret in ("planted-and-wrong", private_server.password):
        assert secret not in table.stdout + as_json.stdout


def test_a_pool_that_the_server_does_not_let_grow_fails_and_the_others_pass(
    run: Run, private_server: PrivateServer, tmp_path: Path
) -> None:
    config = write(tmp_path, private_server.settings(), pool_settings={"timeout": 1})
    with private_server.connect() as admin:
        admin.execute("ALTER ROLE app CONNECTION LIMIT 1")
    try:
        shown = run("test", "--config", config, "--type", "pool", "--json")
        alone = run("test", "--config", config, "--type", "normal")
    finally:
        with private_server.connect() as admin:
            admin.execute("ALTER ROLE app CONNECTION LIMIT -1")

    assert shown.exit_code == 1
    assert "too many connections for role" in rows_of(shown.stdout)["pool"]["error"]
    assert alone.exit_code == 0


def bounded(run: Callable[[], subprocess.CompletedProcess[str]], timeout: float) -> dict[str, Any]:
    """The rows of a test that ran no longer than *timeout* and a process's own time, and failed."""
    start = time.monotonic()
    shown = run()
    assert time.monotonic() - start < timeout + START_AND_END_OF_A_PROCESS
    assert (shown.returncode, shown.stderr) == (1, "")
    return rows_of(shown.stdout)


def test_several_servers_that_never_answer_end_with_the_timeout(
    run_flask: RunFlask, private_server: PrivateServer, proxy: MakeProxy, tmp_path: Path
) -> None:
    deaf = [proxy(private_server.host, private_server.port) for _ in range(3)]
    for one in deaf:
        one.deaf()
    hosts: dict[str, Any] = {"host": ",".join(one.host for one in deaf), "connect_timeout": 60}
    ports: dict[str, Any] = {"port": ",".join(str(one.port) for one in deaf)}
    config = write(tmp_path, private_server.settings(**hosts, **ports))

    rows = bounded(
        lambda: run_flask("pgmonkey", "test", "--config", config, "--json", "--timeout", "1.5"), 1.5
    )

    assert tuple(rows) == CONNECTION_TYPES
    for row in rows.values():
        assert row["error"] == "not finished within the 1.5 s of --timeout"


def test_every_type_has_its_turn_with_a_server_that_never_answers(
    run: Run, private_server: PrivateServer, proxy: MakeProxy, tmp_path: Path
) -> None:
    deaf = proxy(private_server.host, private_server.port)
    deaf.deaf()
    settings = private_server.settings(port=deaf.port, connect_timeout=2)

    shown = run("test", "--config", write(tmp_path, settings), "--json", "--timeout", "20")

    assert shown.exit_code == 1
    for row in rows_of(shown.stdout).values():
        assert "timeout expired" in row["error"]


def test_a_bind_that_never_answers_does_not_hold_up_the_others(
    run_flask: RunFlask,
    private_server: PrivateServer,
    proxy: MakeProxy,
    config_file: Path,
    tmp_path: Path,
) -> None:
    deaf = proxy(private_server.host, private_server.port)
    deaf.deaf()
    settings = private_server.settings(port=deaf.port, connect_timeout=60)
    write(tmp_path, settings)
    write_app(
        config_file,
        """
        app.config["PGMONKEY_BINDS"] = {"deaf": "db.yaml"}
        db = PGMonkey(app)
        """,
    )

    shown = run_flask("pgmonkey", "test", "--json", "--timeout", "4")

    assert shown.returncode == 1
    assert [(row["bind"], row["passed"]) for row in json.loads(shown.stdout)] == [
        *[("default", True)] * 4,
        *[("deaf", False)] * 4,
    ]


def test_a_server_behind_one_that_never_answers_passes_in_time(
    run_flask: RunFlask, private_server: PrivateServer, proxy: MakeProxy, tmp_path: Path
) -> None:
    deaf = proxy(private_server.host, private_server.port)
    deaf.deaf()
    hosts: dict[str, Any] = {"host": f"{deaf.host},{private_server.host}", "connect_timeout": 2}
    ports: dict[str, Any] = {"port": f"{deaf.port},{private_server.port}"}
    config = write(tmp_path, private_server.settings(**hosts, **ports))

    # Each connection takes 2 s; one after the other, the six would take 12.
    shown = run_flask("pgmonkey", "test", "--config", config, "--timeout", "11")

    assert shown.returncode == 0, shown.stdout + shown.stderr
    assert shown.stdout.count("passed") == len(CONNECTION_TYPES)


def test_an_embedded_server_is_stopped_when_the_time_has_run_out(
    run_flask: RunFlask, suite: Suite, open_folder: Path
) -> None:
    suite.copy_cluster(open_folder / "instance" / "postgres" / "data")
    app = open_folder / "app.py"
    app.write_text(
        "import time\n"
        "from flask import Flask\n"
        "from flask_pgmonkey import PGMonkey\n"
        f"app = Flask(__name__, instance_path={str(open_folder / 'instance')!r})\n"
        "def configure(conn):\n"
        "    time.sleep(600)\n"
        "db = PGMonkey(app, config='embedded', configure=configure)\n"
    )

    shown = run_flask("--app", app, "pgmonkey", "test", "--timeout", "4")

    assert shown.returncode == 1
    assert "default: not finished within the 4 s of --timeout" in shown.stdout
    assert list(open_folder.rglob("server.log"))
    assert not list(open_folder.rglob("postmaster.pid"))


def test_a_server_that_stands_still_ends_with_the_timeout(
    run_flask: RunFlask, private_server: PrivateServer, tmp_path: Path
) -> None:
    config = write(tmp_path, private_server.settings(connect_timeout=60))
    private_server.pause()

    rows = bounded(
        lambda: run_flask("pgmonkey", "test", "--config", config, "--json", "--timeout", "1"), 1
    )

    assert not any(row["passed"] for row in rows.values())


def test_a_query_that_never_ends_ends_with_the_timeout(
    run_flask: RunFlask, private_server: PrivateServer, tmp_path: Path
) -> None:
    write_app(
        write(tmp_path, private_server.settings(application_name="endless")),
        """
        def configure(conn):
            conn.execute("SELECT pg_sleep(600)")

        db = PGMonkey(app, configure=configure)
        """,
    )

    try:
        rows = bounded(lambda: run_flask("pgmonkey", "test", "--json", "--timeout", "1.5"), 1.5)
    finally:
        with private_server.connect() as admin:
            admin.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name = 'endless'"
            )

    assert rows["normal"]["error"] == "not finished within the 1.5 s of --timeout"


def test_a_reference_that_is_not_set_is_a_config_error(
    run: Run, private_server: PrivateServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = write(tmp_path, private_server.settings(password="${NOT_SET_HERE}"))

    shown = run("test", "--config", config, "--resolve-env")
    monkeypatch.setenv("NOT_SET_HERE", private_server.password)
    resolved = run("test", "--config", config, "--resolve-env")

    assert (shown.exit_code, shown.stdout) == (2, "")
    assert "NOT_SET_HERE" in shown.stderr
    assert shown.stderr.count("\n") == 1
    assert (resolved.exit_code, resolved.stderr) == (0, "")


def test_a_bind_whose_config_cannot_be_used_does_not_hide_the_others(
    make_app: Any, invoke: Invoke, config_file: Path
) -> None:
    unset = {"connection_settings": {"host": "${NOT_SET_HERE}"}}
    app = make_app(CONFIG=str(config_file), BINDS={"unset": unset}, RESOLVE_ENV=True)

    table = invoke(app, "test")
    as_json = invoke(app, "test", "--json")

    assert (table.exit_code, table.stderr) == (2, "")
    assert (as_json.exit_code, as_json.stderr) == (2, "")
    assert "variable NOT_SET_HERE is not set" in table.stdout
    assert (table.stdout.count("passed"), table.stdout.count("FAILED")) == (4, 4)
    for row in json.loads(as_json.stdout):
        assert row["passed"] == (row["bind"] == "default")
        assert row["passed"] or "variable NOT_SET_HERE is not set" in row["error"]


@pytest.mark.parametrize("value", ["0", "-1", "soon"])
def test_a_timeout_that_is_none_is_wrong_usage(run: Run, value: str) -> None:
    shown = run("test", "--config", "db.yaml", "--timeout", value)

    assert shown.exit_code == 2
    assert "--timeout" in shown.stderr


@pytest.fixture
def tls_front(private_server: PrivateServer, tmp_path: Path) -> Iterator[int]:
    """The port of something before the server that ends TLS, as load balancers do."""
    openssl = shutil.which("openssl")
    assert openssl, "the test needs the program openssl"
    subprocess.run(
        [
            *(openssl, "req", "-new", "-x509", "-nodes", "-days", "1", "-subj", "/CN=localhost"),
            *("-out", tmp_path / "front.crt", "-keyout", tmp_path / "front.key"),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "front.crt", tmp_path / "front.key")
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def pass_on() -> None:
            plain, _ = listener.accept()
            assert plain.recv(8)[4:] == bytes.fromhex("04d2162f")  # SSLRequest
            plain.sendall(b"S")
            server = socket.create_connection((private_server.host, private_server.port))
            with context.wrap_socket(plain, server_side=True) as client, server:
                server.settimeout(0.02)
                client.settimeout(0.02)
                while relay(client, server) and relay(server, client):
                    pass

        front = Thread(target=pass_on)
        front.start()
        yield listener.getsockname()[1]
        front.join(10)


def relay(source: socket.socket, sink: socket.socket) -> bool:
    """Pass on what has come; False at the end of *source*."""
    try:
        block = source.recv(65536)
    except TimeoutError:
        return True
    sink.sendall(block)
    return bool(block)


def test_tls_that_ends_before_the_server_is_shown_as_that(
    run: Run, private_server: PrivateServer, tls_front: int, tmp_path: Path
) -> None:
    settings = private_server.settings(port=tls_front, sslmode="require", gssencmode="disable")

    shown = run("test", "--config", write(tmp_path, settings), "--type", "normal", "--json")

    assert shown.exit_code == 0, shown.stdout
    assert rows_of(shown.stdout)["normal"]["tls"] == "ended before the server"


def test_a_password_that_goes_to_another_machine_without_tls_is_warned_of(
    run: Run, private_server: PrivateServer, tmp_path: Path
) -> None:
    # An address of this machine that is none of its loopback is one of the network to libpq.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address but its loopback's")
        own_address = probe.getsockname()[0]

    class Elsewhere(Proxy):
        host = own_address

    target = private_server.settings()
    proxy = Elsewhere(PrivateServer.host, private_server.port)
    try:
        settings = {**target, "host": own_address, "port": proxy.port}
        shown = run("test", "--config", write(tmp_path, settings), "--type", "pool")
    finally:
        proxy.close()
    near = run("test", "--config", write(tmp_path, target), "--type", "pool")

    assert shown.exit_code == near.exit_code == 0, shown.stdout
    assert f"warning: the password went to {own_address} without TLS" in shown.stdout
    assert "sslmode: verify-full" in shown.stdout
    assert "without TLS" not in near.stdout


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "1e10", "soon"])
def test_a_timeout_that_is_no_time_is_wrong_usage(run: Run, seconds: str) -> None:
    shown = run("test", "--timeout", seconds)

    assert (shown.exit_code, shown.stdout) == (2, "")
    assert "--timeout" in shown.stderr
    assert shown.stderr.count("\n") == 1


def test_a_server_that_wants_the_password_in_clear_is_one_line(
    run: Run, start_fake: Callable[[Act], FakeServer], tmp_path: Path
) -> None:
    server = start_fake(demand_clear_password)
    settings = {"host": server.host, "port": server.port, "user": "app", "password": "planted"}
    config = write(tmp_path, {**settings, "require_auth": "scram-sha-256"})

    shown = run("test", "--config", config)

    assert (shown.exit_code, server.passwords) == (1, [])
    (line,) = [line for line in shown.stdout.splitlines() if ": " in line]
    assert line.startswith(f"{config}: ")
    assert "server requested a cleartext password" in line
    assert "planted" not in shown.output


def test_a_cause_is_told_once_with_those_whom_it_befell(
    make_app: Any, invoke: Invoke, config_file: Path
) -> None:
    refused = {"connection_settings": {"hostaddr": "127.0.0.1", "port": 1}}
    both = make_app(CONFIG=refused, BINDS={"reports": refused, "archive": str(config_file)})

    shown = invoke(both, "test")
    one_type = invoke(both, "test", "--type", "pool")

    *rows, told = shown.stdout.splitlines()
    assert len(rows) == 1 + 3 * 4
    assert told.startswith("default; reports: connection failed: ")
    assert told.endswith(
        "Connection refused. Is the server running on that host and accepting TCP/IP connections?"
    )
    assert one_type.stdout.splitlines()[-1].startswith("default pool; reports pool: connection")


def test_a_server_that_comes_up_while_it_is_waited_for_passes(
    run: Run, private_server: PrivateServer, tmp_path: Path
) -> None:
    config = write(tmp_path, private_server.settings())
    private_server.stop()
    start = Timer(0.7, private_server.start)
    start.start()
    try:
        shown = run("test", "--config", config, "--wait", "60", "--timeout", "20")
    finally:
        start.join()

    assert shown.exit_code == 0, shown.output
    (told,) = shown.stderr.splitlines()
    assert told.startswith(f"Waiting for the server of {config}: ")


def test_a_wait_ends_with_its_time_or_at_what_no_wait_mends(
    run: Run, private_server: PrivateServer, tmp_path: Path
) -> None:
    start = time.monotonic()
    wrong = write(tmp_path, private_server.settings(password="planted"))
    shown = run("test", "--config", wrong, "--wait", "600", "--timeout", "20")
    assert (shown.exit_code, shown.stderr) == (1, "")
    assert "password authentication failed" in shown.stdout
    nowhere = write(tmp_path, private_server.settings(port=1))
    shown = run("test", "--config", nowhere, "--wait", "0.7", "--timeout", "20")
    assert shown.exit_code == 1
    assert "Connection refused" in shown.stdout
    assert time.monotonic() - start < 60


def test_a_wait_for_a_server_that_never_answers_ends_with_its_time(
    run_flask: RunFlask, start_fake: Callable[[Act], FakeServer], tmp_path: Path
) -> None:
    silent = start_fake(lambda client: client.wait_for_its_end())
    settings = {"host": "127.0.0.1", "port": silent.port, "connect_timeout": 60}
    config = write(tmp_path, settings)
    command = ("pgmonkey", "test", "--config", config, "--json", "--wait", "0.5", "--timeout", "1")

    rows = bounded(lambda: run_flask(*command), 1.5)

    assert not any(row["passed"] for row in rows.values())


def test_direct_settings_have_a_row_of_their_own(
    run: Run, private_server: PrivateServer, tmp_path: Path
) -> None:
    settings, wrong = private_server.settings(), {"password": "planted"}
    config = write(tmp_path, settings, direct_settings=wrong)

    shown = run("test", "--config", config, "--json")

    assert shown.exit_code == 1
    rows = rows_of(shown.stdout)
    assert tuple(rows) == (*CONNECTION_TYPES, "direct")
    assert {name for name, row in rows.items() if row["passed"]} == set(CONNECTION_TYPES)
    assert "password authentication failed" in rows["direct"]["error"]
    assert "planted" not in shown.output

    config = write(tmp_path, {**settings, **wrong}, direct_settings=settings)
    shown = run("test", "--config", config, "--type", "direct")
    assert shown.exit_code == 0
    _, line = shown.stdout.splitlines()
    assert line.split()[1:3] == ["direct", "passed"]


def test_direct_settings_that_lead_nowhere_end_with_the_timeout(
    run_flask: RunFlask,
    start_fake: Callable[[Act], FakeServer],
    private_server: PrivateServer,
    tmp_path: Path,
) -> None:
    silent = start_fake(lambda client: client.wait_for_its_end())
    direct = {"host": "127.0.0.1", "port": silent.port, "connect_timeout": 60}
    config = write(tmp_path, private_server.settings(), direct_settings=direct)

    shown = run_flask("pgmonkey", "test", "--config", config, "--json", "--timeout", "4")

    assert shown.returncode == 1
    rows = rows_of(shown.stdout)
    assert {name for name, row in rows.items() if row["passed"]} == set(CONNECTION_TYPES)
    assert rows["direct"]["error"] == "not finished within the 4 s of --timeout"
