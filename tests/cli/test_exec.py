"""``flask pgmonkey exec`` and ``url``: what other programs are told, and what nobody is."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from psycopg.conninfo import conninfo_to_dict

from ..proxy import Proxy
from ..servers import PrivateServer
from .conftest import PLANTED, Run, RunFlask, write_config

CONNECT = "import psycopg; print(psycopg.connect('').execute('SELECT current_user').fetchone()[0])"
CONNECT_BY_URL = CONNECT.replace("''", "__import__('os').environ['DATABASE_URL']", 1)
MakeProxy = Callable[[str, int], Proxy]


def settings_with(server: PrivateServer, **more: Any) -> dict[str, Any]:
    return server.settings(password=PLANTED, **more)


def python(code: str) -> tuple[str, ...]:
    return ("--", sys.executable, "-c", code)


@pytest.mark.parametrize("program", [CONNECT, CONNECT_BY_URL])
def test_a_program_is_led_to_the_database(
    run_flask: RunFlask, planted: PrivateServer, tmp_path: Path, temporary: Path, program: str
) -> None:
    config = write_config(tmp_path, settings_with(planted))

    shown = run_flask(
        *("pgmonkey", "exec", "--config", config, *python(program)),
        PGHOST="no-such-host.invalid",
        PGPASSWORD="wrong",
        PGUSER="somebody",
    )

    assert (shown.returncode, shown.stdout, shown.stderr) == (0, "app\n", "")
    assert list(temporary.iterdir()) == []


def test_options_after_the_program_are_the_program_s(run_flask: RunFlask, tmp_path: Path) -> None:
    config = write_config(tmp_path, {"host": "localhost"})
    shown = run_flask("pgmonkey", "exec", "--config", config, "echo", "--bind", "a b", "--help")
    assert (shown.returncode, shown.stdout) == (0, "--bind a b --help\n")


def test_the_password_is_in_no_variable_and_no_argument_but_in_a_file_for_us_alone(
    run_flask: RunFlask, planted: PrivateServer, tmp_path: Path, temporary: Path
) -> None:
    config = write_config(
        tmp_path, settings_with(planted, sslmode="disable", application_name="a tool")
    )
    look = (
        "import json, os, subprocess\n"
        "path = os.environ['PGPASSFILE']\n"
        "print(json.dumps([dict(os.environ), oct(os.stat(path).st_mode), open(path).read(),"
        " subprocess.run(['ps', '-eo', 'args'], capture_output=True, text=True).stdout]))"
    )

    shown = run_flask("pgmonkey", "exec", "--config", config, *python(look), PGSSLMODE="require")

    environment, mode, content, processes = json.loads(shown.stdout)
    assert mode == "0o100600"
    assert content == rf"{planted.host}:*:*:app:planted\:pass\\word%@/ü" + "\n"
    assert not any(PLANTED in text for text in (*environment.values(), processes, shown.stderr))
    assert "PGPASSWORD" not in environment
    found = {name: environment.get(name) for name in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE")}
    assert found == {
        "PGHOST": planted.host,
        "PGPORT": str(planted.port),
        "PGUSER": "app",
        "PGDATABASE": "app",
    }
    assert (environment["PGSSLMODE"], environment["PGAPPNAME"]) == ("disable", "a tool")
    url = conninfo_to_dict(environment["DATABASE_URL"])
    assert "password" not in url
    assert url["application_name"] == "a tool"


@pytest.mark.parametrize(
    ("ending", "code"),
    [("sys.exit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL)],
)
def test_the_exit_code_is_the_program_s_and_the_file_goes_however_it_ends(
    run_flask: RunFlask,
    planted: PrivateServer,
    tmp_path: Path,
    temporary: Path,
    ending: str,
    code: int,
) -> None:
    config = write_config(tmp_path, settings_with(planted))
    program = f"import os, signal, sys; assert os.path.exists(os.environ['PGPASSFILE']); {ending}"

    shown = run_flask("pgmonkey", "exec", "--config", config, *python(program))

    assert shown.returncode == code
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_are_the_program_s(
    planted: PrivateServer, tmp_path: Path, temporary: Path, number: signal.Signals
) -> None:
    config = write_config(tmp_path, settings_with(planted))
    program = (
        "import signal, sys\n"
        f"signal.signal({int(number)}, lambda *_: sys.exit(9))\n"
        "print('ready', flush=True)\n"
        "signal.pause()"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "flask", "pgmonkey", "exec", "--config", config, *python(program)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # no terminal
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(30) == 9
    assert list(temporary.iterdir()) == []


def test_ctrl_c_reaches_the_program_once(
    planted: PrivateServer, tmp_path: Path, temporary: Path
) -> None:
    config = write_config(tmp_path, settings_with(planted))
    program = (
        "import signal, time\n"
        "heard = []\n"
        "signal.signal(signal.SIGINT, lambda *_: heard.append(1))\n"
        "print('ready', flush=True)\n"
        "while not heard: time.sleep(0.01)\n"
        "time.sleep(0.5)\n"
        "print('heard', len(heard), flush=True)"
    )
    terminal, its_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "flask", "pgmonkey", "exec", "--config", config, *python(program)],
        stdin=its_end,
        stdout=its_end,
        stderr=its_end,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(its_end)
    with process, open(terminal, "rb", buffering=0) as shown:
        assert shown.readline() == b"ready\r\n"
        os.write(terminal, b"\x03")
        assert shown.readline() == b"^Cheard 1\r\n"
        assert process.wait(30) == 0
    assert list(temporary.iterdir()) == []


def test_what_a_kill_left_is_removed_by_the_next_and_what_is_in_use_is_not(
    planted: PrivateServer, run_flask: RunFlask, tmp_path: Path, temporary: Path
) -> None:
    config = write_config(tmp_path, settings_with(planted))
    command = [sys.executable, "-m", "flask", "pgmonkey", "exec", "--config", str(config)]
    process = subprocess.Popen(
        [*command, *python("import os; print(os.getpid(), flush=True); input()")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    program = int(process.stdout.readline())
    process.kill()
    process.wait(30)
    (left,) = temporary.iterdir()

    assert run_flask("pgmonkey", "exec", "--config", config, "--", "true").returncode == 0
    assert list(temporary.iterdir()) == [left]  # its program still runs

    os.kill(program, signal.SIGKILL)
    while Path(f"/proc/{program}").exists() and left.exists():
        assert run_flask("pgmonkey", "exec", "--config", config, "--", "true").returncode == 0
    assert list(temporary.iterdir()) == []
    process.communicate()


@pytest.mark.parametrize(
    ("program", "words"),
    [("no-such-program", "There is no no-such-program on the PATH"), ("/etc/passwd", "not be run")],
)
def test_a_program_that_cannot_run_is_one_line(
    run: Run, planted: PrivateServer, tmp_path: Path, temporary: Path, program: str, words: str
) -> None:
    result = run("exec", "--config", write_config(tmp_path, settings_with(planted)), "--", program)
    assert result.exit_code == 1
    assert words in result.output
    assert result.output.count("\n") == 1
    assert list(temporary.iterdir()) == []


def test_a_secret_that_no_program_can_be_given_is_refused(run: Run, tmp_path: Path) -> None:
    config = write_config(tmp_path, {"host": "db", "sslpassword": PLANTED})
    result = run("exec", "--config", config, "--", "true")
    assert result.exit_code == 1
    assert "sslpassword" in result.output
    assert PLANTED not in result.output


@pytest.mark.parametrize("keyword", ["user", "password"])
def test_what_no_file_of_passwords_can_hold_is_refused(
    run: Run, tmp_path: Path, keyword: str
) -> None:
    settings = {"host": "db", "user": "app", "password": "planted"}
    config = write_config(tmp_path, {**settings, keyword: "planted\n*:*:*:*:planted"})
    shown = run("exec", "--config", config, "--", "true")
    assert shown.exit_code == 1
    assert shown.stderr == f"Error: No program can be given a {keyword} with a line break in it.\n"


def test_several_hosts_lead_to_the_one_that_takes_writes(
    run_flask: RunFlask, planted: PrivateServer, proxy: MakeProxy, tmp_path: Path, temporary: Path
) -> None:
    refusing = proxy(planted.host, planted.port)
    refusing.refuse()
    settings = settings_with(
        planted,
        host=f"{refusing.host},{planted.host}",
        port=f"{refusing.port},{planted.port}",
        target_session_attrs="read-write",
    )
    config = write_config(tmp_path, settings)
    for program in (CONNECT, CONNECT_BY_URL):
        shown = run_flask("pgmonkey", "exec", "--config", config, *python(program))
        assert (shown.stdout, shown.stderr) == ("app\n", "")


@pytest.mark.parametrize("has_password", [True, False])
def test_a_service_is_read_and_the_config_wins_over_it(
    run_flask: RunFlask,
    planted: PrivateServer,
    tmp_path: Path,
    temporary: Path,
    has_password: bool,
) -> None:
    services = tmp_path / "services.conf"
    services.write_text(
        f"[shop]\nhost={planted.host}\nport={planted.port}\nuser=somebody\ndbname=app\n"
        + (f"password={PLANTED}\n" if has_password else "")
    )
    services.chmod(0o600)
    own = {} if has_password else {"password": PLANTED}
    config = write_config(tmp_path, {"service": "shop", "user": "app", **own})
    for program in (CONNECT, CONNECT_BY_URL):
        shown = run_flask(
            *("pgmonkey", "exec", "--config", config, *python(program)),
            PGSERVICEFILE=str(services),
        )
        assert (shown.stdout, shown.stderr) == ("app\n", "")


def test_the_embedded_server_s_programs_come_first(
    run_flask: RunFlask, embedded_app: Path, tmp_path: Path
) -> None:
    dumped = run_flask("pgmonkey", "exec", "--", "pg_dump", "--schema-only")
    assert dumped.returncode == 0, dumped.stderr
    assert "Dumped by pg_dump version 18" in dumped.stdout
    by_url = run_flask("pgmonkey", "exec", *python(CONNECT_BY_URL))
    assert (by_url.stdout, by_url.stderr) == ("postgres\n", "")
    assert not list(embedded_app.rglob("postmaster.pid"))


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        ({"host": "db", "user": "shop", "dbname": "app"}, "postgresql://shop@db:5432/app"),
        (
            {"host": "a,b", "port": 6432, "user": "a@b", "dbname": "x/y"},
            "postgresql://a%40b@a:6432,b:6432/x%2Fy",
        ),
        (
            {"host": "::1", "user": "shop", "dbname": "app", "sslmode": "verify-full"},
            "postgresql://shop@[::1]:5432/app?sslmode=verify-full",
        ),
        (
            {"host": "/run/pg", "user": "shop", "dbname": "app", "options": "-c a=b c"},
            "postgresql://shop@/app?host=%2Frun%2Fpg&port=5432&options=-c%20a%3Db%20c",
        ),
    ],
)
def test_a_url_says_what_libpq_would_do(
    run: Run, tmp_path: Path, settings: dict[str, Any], url: str
) -> None:
    config = write_config(tmp_path, {**settings, "password": PLANTED})
    result = run("url", "--config", config)
    assert (result.exit_code, result.output) == (0, f"{url}\n")
    expected = {key: str(value) for key, value in settings.items()}
    found = conninfo_to_dict(result.output.strip())
    assert expected.items() <= {**found, "port": str(settings.get("port"))}.items()


def test_the_password_is_in_a_url_only_where_it_is_asked_for(
    run: Run, planted: PrivateServer, tmp_path: Path
) -> None:
    config = write_config(tmp_path, settings_with(planted))
    assert "planted" not in run("url", "--config", config).output
    url = run("url", "--config", config, "--with-password").output.strip()
    assert conninfo_to_dict(url)["password"] == PLANTED
    with psycopg.connect(url) as conn:
        assert conn.execute("SELECT current_user").fetchone() == ("app",)


def test_direct_settings_say_where_programs_go(
    run_flask: RunFlask, run: Run, planted: PrivateServer, tmp_path: Path, temporary: Path
) -> None:
    config = tmp_path / "db.yaml"
    pooled = {
        "host": "no-such-pooler.invalid",
        "port": 6432,
        "user": "app",
        "password": "other",
        "prepare_threshold": "off",
    }
    direct = {"host": planted.host, "port": planted.port, "dbname": "app", "password": PLANTED}
    config.write_text(yaml.safe_dump({"connection_settings": pooled, "direct_settings": direct}))
    config.chmod(0o600)
    shown = run_flask("pgmonkey", "exec", "--config", config, *python(CONNECT_BY_URL))
    assert (shown.stdout, shown.stderr) == ("app\n", "")
    asked = run_flask("pgmonkey", "psql", "--config", config, "--", "-Atc", "SELECT current_user")
    assert (asked.stdout, asked.stderr) == ("app\n", "")
    url = run("url", "--config", config)
    assert url.stdout == f"postgresql://app@{planted.host}:{planted.port}/app\n"
