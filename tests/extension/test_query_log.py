"""The query log: ``PGMONKEY_ECHO`` and ``PGMONKEY_SLOW_QUERY``."""

from __future__ import annotations

import gc
import io
import logging
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from flask import Flask

from flask_pgmonkey import ConfigError, PGMonkey, events
from flask_pgmonkey.connections.watching import _patient
from flask_pgmonkey.events import QueryEvent
from flask_pgmonkey.signals import query_executed, transaction_ended

from ..listening import listening
from ..programs import run_program
from .conftest import Site

HERE = "tests/extension/test_query_log.py"
SQL = logging.getLogger("flask_pgmonkey.sql")


@pytest.fixture(autouse=True)
def _leave_the_logger_as_it_was() -> Iterator[None]:
    before = SQL.level, SQL.handlers.copy()
    yield
    SQL.setLevel(before[0])
    SQL.handlers[:] = before[1]


@pytest.fixture
def make_logged(database: dict[str, Any]) -> Iterator[Callable[..., Site]]:
    """Makes sites with keys of the app config."""
    sites = []

    def make(**keys: Any) -> Site:
        app, db = Flask("logged"), PGMonkey()
        app.config.update(PGMONKEY_CONFIG={"connection_settings": database}, **keys)
        db.init_app(app)
        sites.append(Site(app, db))
        return sites[-1]

    yield make
    for site in sites:
        with site.app.app_context():
            site.db.clear_cache()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "flask_pgmonkey.sql"]


def test_each_query_is_a_line_with_duration_rows_and_call_site(
    make_logged: Callable[..., Site], caplog: pytest.LogCaptureFixture
) -> None:
    site = make_logged(PGMONKEY_ECHO=True)

    def view() -> None:
        site.db.fetch_all("SELECT\n    generate_series(1, %s)", (3,))
        site.db.execute("SET LOCAL work_mem = '4MB'")
        with pytest.raises(psycopg.errors.DivisionByZero):
            site.db.fetch_all("SELECT 1/0")

    site.visit(view)
    logged = lines(caplog)
    assert [re.sub(r"^\d+\.\d ms", "? ms", re.sub(r":\d+", ":?", line)) for line in logged] == [
        f"? ms 3 rows: SELECT generate_series(1, %s) ({HERE}:? in view)",
        f"? ms query: SET LOCAL work_mem = '4MB' ({HERE}:? in view)",
        f"? ms DivisionByZero (22012): SELECT 1/0 ({HERE}:? in view)",
    ]


def test_parameters_are_logged_in_debug_alone_and_those_of_secrets_never(
    make_logged: Callable[..., Site], caplog: pytest.LogCaptureFixture
) -> None:
    site = make_logged(PGMONKEY_ECHO=True, PGMONKEY_SLOW_QUERY=0.000001)

    def view() -> None:
        site.db.fetch_all("SELECT %s", ("a parameter",))
        site.db.fetch_all("SELECT %s AS password", ("hidden",))
        site.db.fetch_all("SELECT %s", ("y" * 10_000,))

    site.visit(view)
    assert "a parameter" not in caplog.text
    assert "hidden" not in caplog.text
    caplog.clear()
    site.app.debug = True
    site.visit(view)
    assert "('a parameter',)" in caplog.text
    assert "***REDACTED***" in caplog.text
    assert "hidden" not in caplog.text
    assert max(map(len, lines(caplog))) < 400
    slow = [each for each in caplog.records if each.levelno == logging.WARNING]
    assert len(slow) == 3
    assert not any("a parameter" in each.getMessage() for each in slow)


def test_a_slow_query_is_a_warning_with_endpoint_and_call_site(
    make_logged: Callable[..., Site], caplog: pytest.LogCaptureFixture
) -> None:
    site = make_logged(PGMONKEY_SLOW_QUERY="0.05")

    def view() -> None:
        site.db.fetch_all("SELECT 1")
        site.db.fetch_all("SELECT pg_sleep(%s)", (0.06,))

    site.visit(view)
    (line,) = lines(caplog)
    assert re.fullmatch(
        rf"A query took 0\.\d+ s, and PGMONKEY_SLOW_QUERY is 0\.05 s; endpoint page;"
        rf" called at {HERE}:\d+ in view: SELECT pg_sleep\(%s\)",
        line,
    )


def test_neither_a_query_nor_an_endpoint_forges_a_line(
    make_logged: Callable[..., Site], caplog: pytest.LogCaptureFixture
) -> None:
    site = make_logged(PGMONKEY_ECHO=True, PGMONKEY_SLOW_QUERY=0.000001)
    site.app.debug = True
    site.app.add_url_rule(
        "/hostile",
        "end\x1b[31m\npoint",
        lambda: str(
            site.db.fetch_value("SELECT %s -- \x1b[31m\n -- forged \u202e", ("\x1b\nforged",))
        ),
    )
    site.app.test_client().get("/hostile")
    assert len(lines(caplog)) == 2
    assert all(line.isprintable() for line in lines(caplog))


@pytest.mark.parametrize("value", [-1, "soon", True, [1]])
def test_a_limit_that_is_none_is_refused(database: dict[str, Any], value: object) -> None:
    app = Flask("wrong")
    app.config["PGMONKEY_CONFIG"] = {"connection_settings": database}
    app.config["PGMONKEY_SLOW_QUERY"] = value
    with pytest.raises(ConfigError, match=r"PGMONKEY_SLOW_QUERY must be a number of seconds"):
        PGMonkey(app)


def test_without_the_keys_nothing_is_logged(
    make_logged: Callable[..., Site], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    site = make_logged(PGMONKEY_ECHO=False, PGMONKEY_SLOW_QUERY=0)
    site.visit(lambda: site.db.fetch_all("SELECT pg_sleep(0.01)"))
    assert lines(caplog) == []


PROGRAM = """
import logging, sys
logging.root.handlers.clear()
from flask import Flask
from flask_pgmonkey import PGMonkey

app = Flask("program")
app.config.update(PGMONKEY_CONFIG=config["database"], PGMONKEY_ECHO=True)
db = PGMonkey(app)
if config["logs"]:
    logging.basicConfig(format="own: %(message)s", level="INFO", stream=sys.stdout)
with app.app_context():
    db.fetch_all("SELECT 1")
"""


@pytest.mark.parametrize("logs", [False, True])
def test_the_log_appears_once_whether_the_app_configures_logging_or_not(
    database: dict[str, Any], logs: bool
) -> None:
    config = {"database": {"connection_settings": database}, "logs": logs}
    ended = run_program(PROGRAM, config)
    pattern = r"\d+\.\d ms 1 row: SELECT 1 \(<string>:\d+ in <module>\)\n"
    said, silent = ended.stderr, ended.stdout
    if logs:
        said, silent, pattern = silent, said, f"own: {pattern}"
    assert re.fullmatch(pattern, said)
    assert silent == ""


def test_on_a_terminal_the_log_has_colours(
    make_logged: Callable[..., Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(SQL, "propagate", False)
    monkeypatch.setattr(SQL, "parent", None)
    site = make_logged(PGMONKEY_ECHO=True)
    site.visit(lambda: site.db.fetch_all("SELECT 'red \x1b[31m'"))
    written = terminal.getvalue()
    assert "\x1b[1mSELECT 'red \\x1b[31m'\x1b[0m" in written
    assert written.count("\n") == 1


# What a quick query costs where slow ones alone are logged


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts of the queries of which something was gathered."""
    texts = []
    gc.collect()  # the logs of earlier tests' apps listen until then

    def text_of_event(*fields: Any) -> QueryEvent:
        texts.append(fields[3])
        return QueryEvent(*fields)

    monkeypatch.setattr(events, "QueryEvent", text_of_event)
    return texts


def test_nothing_is_gathered_of_a_query_that_is_quick(
    make_logged: Callable[..., Site], gathered: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    site = make_logged(PGMONKEY_SLOW_QUERY=0.2)

    def view() -> None:
        with site.db.transaction():
            site.db.fetch_value("SELECT 1")
            site.db.fetch_value("SELECT pg_sleep(0.25)")
            site.db.fetch_value("SELECT 2")

    site.visit(view)
    assert gathered == ["SELECT pg_sleep(0.25)"]
    assert len(lines(caplog)) == 1


def test_who_listens_hears_quick_queries_beside_the_log_of_slow_ones(
    make_logged: Callable[..., Site], caplog: pytest.LogCaptureFixture
) -> None:
    site = make_logged(PGMONKEY_SLOW_QUERY=10)
    with listening() as heard, listening(transaction_ended) as ended:
        site.visit(lambda: site.db.fetch_value("SELECT 1"))
    with listening(transaction_ended) as alone:
        site.visit(lambda: site.db.execute_many("SELECT %s", [(1,), (2,)]))
    assert heard.texts == ["SELECT 1"]
    assert not ended
    assert [event.committed for event in alone] == [True]
    assert alone.only().duration > 0
    assert lines(caplog) == []


def test_the_least_of_the_bounds_of_several_apps_counts(
    make_logged: Callable[..., Site], gathered: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    strict, patient = make_logged(PGMONKEY_SLOW_QUERY=0.1), make_logged(PGMONKEY_SLOW_QUERY=10)
    strict.visit(lambda: strict.db.fetch_value("SELECT pg_sleep(0.15)"))
    patient.visit(lambda: patient.db.fetch_value("SELECT pg_sleep(0.15), 2"))
    (line,) = lines(caplog)
    assert line.endswith("SELECT pg_sleep(0.15)")
    assert gathered == ["SELECT pg_sleep(0.15)", "SELECT pg_sleep(0.15), 2"]


def test_a_log_whose_app_is_gone_asks_for_nothing(database: dict[str, Any]) -> None:
    gc.collect()
    before = dict(_patient)
    app = Flask("forgotten")
    app.config.update(PGMONKEY_CONFIG={"connection_settings": database}, PGMONKEY_SLOW_QUERY=5)
    PGMonkey(app)
    assert len(_patient) == len(before) + 1
    del app
    gc.collect()
    assert _patient == before
    assert not query_executed.receivers
