"""``flask run``: Ctrl-C, and the reloader."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError

import pytest

from ..servers import Server, servers_below
from ..suite import Suite
from .running import Program, Programs, WebServer, wait_for

APP = Path(__file__).with_name("app.py")


def start_flask(programs: Programs, app: str, *options: str) -> Program:
    return programs.start(
        *(sys.executable, "-X", "dev", "-m", "flask", "--app", app),
        *("run", "--port", 0, *options),
        FLASK_PGMONKEY_CONFIG=programs.config(),
        QUERY_AT_IMPORT=1,
    )


def expect_no_complaint(programs: Programs, program: Program) -> None:
    ended = program.wait()
    assert ended.returncode in (0, 1, -signal.SIGINT), ended  # click says Aborted! with 1
    for complaint in ("Traceback", "couldn't stop thread", "Exception ignored", "psycopg"):
        assert complaint not in ended.stderr, ended.stderr
    programs.expect_no_sessions()


def test_ctrl_c_ends_flask_run_and_closes_everything(programs: Programs) -> None:
    flask = WebServer(start_flask(programs, "tests.processes.app"))
    with ThreadPoolExecutor(1) as client:
        running = client.submit(flask.get, "/sleep?seconds=0.5")
        wait_for(lambda: programs.sessions("active"), "the request's query")
        flask.program.signal(signal.SIGINT)
        expect_no_complaint(programs, flask.program)
        # Flask's server does not wait for its requests.
        assert isinstance(running.exception(), (type(None), OSError))


def test_the_reloader_closes_what_the_old_process_had_open(
    programs: Programs, tmp_path: Path
) -> None:
    app = tmp_path / "edited.py"
    shutil.copy(APP, app)
    program = start_flask(programs, str(app), "--debug")
    flask = WebServer(program)
    before = json.loads(flask.get("/pids"))
    of_parent = programs.sessions() - set(before["server"])  # which imports the app too

    app.write_text(app.read_text() + "\n# edited\n")
    wait_for(lambda: "Detected change" in program.stderr, "the reload")
    wait_for(lambda: not programs.sessions() & set(before["server"]), "the end of the old sessions")
    after = json.loads(
        wait_for(lambda: answer_of_another(flask, before["process"]), "the new process")
    )
    assert not set(after["server"]) & set(before["server"])
    assert of_parent <= programs.sessions()
    os.killpg(program.process.pid, signal.SIGINT)  # as a terminal does
    expect_no_complaint(programs, program)


@pytest.mark.parametrize(
    ("options", "number"),
    [((), signal.SIGTERM), ((), signal.SIGHUP), (("--debug",), signal.SIGTERM)],
    ids=["SIGTERM", "SIGHUP", "SIGTERM with the reloader"],
)
def test_a_signal_that_ends_flask_run_stops_the_embedded_server(
    programs: Programs,
    suite: Suite,
    open_folder: Path,
    options: tuple[str, ...],
    number: signal.Signals,
) -> None:
    data = open_folder / "instance" / "postgres" / "data"
    suite.copy_cluster(data)
    app = open_folder / "app.py"
    app.write_text(
        "from flask import Flask\n"
        "from flask_pgmonkey import PGMonkey\n"
        f"app = Flask(__name__, instance_path={str(open_folder / 'instance')!r})\n"
        "db = PGMonkey(app, config='embedded')\n"
        "@app.get('/')\n"
        "def name():\n"
        "    return db.fetch_value('SELECT current_database()')\n"
    )
    program = programs.start(
        *(sys.executable, "-m", "flask", "--app", app, "run", "--port", 0, *options)
    )
    assert WebServer(program).get("/") == "postgres"
    assert servers_below(data)

    program.signal(number)

    ended = program.wait()
    assert ended.returncode == (0 if options else 128 + number)
    assert "Traceback" not in ended.stderr
    assert not servers_below(data)
    assert not (data / "postmaster.pid").exists()


def test_the_cause_stands_first_in_what_debug_prints_of_a_refused_connection(
    programs: Programs, server: Server, tmp_path: Path
) -> None:
    app = tmp_path / "app.py"
    app.write_text(
        "from flask import Flask\n"
        "from flask_pgmonkey import PGMonkey\n"
        "app = Flask(__name__)\n"
        f"settings = {server.settings('nowhere')!r}\n"
        "db = PGMonkey(app, config={'connection_settings': settings})\n"
        "@app.get('/')\n"
        "def name():\n"
        "    return db.fetch_value('SELECT 1')\n"
    )
    program = programs.start(
        *(sys.executable, "-m", "flask", "--app", app, "run", "--port", 0),
        *("--debug", "--no-reload"),
    )
    with pytest.raises(HTTPError):
        WebServer(program).get("/")

    printed = wait_for(lambda: program.stderr.partition("Press CTRL+C")[2], "what it prints")
    _, first, *_ = [line for line in printed.splitlines() if not line.startswith(" * ")]
    assert first.startswith("No connection for request GET / (endpoint name): ")
    assert first.endswith('database "nowhere" does not exist')


def answer_of_another(flask: WebServer, process: int) -> str:
    try:
        answer = flask.get("/pids")
    except OSError:
        return ""
    return "" if json.loads(answer)["process"] == process else answer
