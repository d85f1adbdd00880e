"""Apps, their configs and their binds."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from flask import Flask

from flask_pgmonkey import ConfigError, PGMonkey

from ..servers import Server
from ..suite import Suite
from .conftest import MakeSite, Site

NOWHERE = {"connection_settings": {"host": "127.0.0.1", "port": 1, "dbname": "none"}}


def make_uri(settings: dict[str, Any]) -> str:
    """The same as a URI: everything in its query part, where sockets' folders may stand too."""
    return f"postgresql://?{urlencode(settings)}"


def answer(app: Flask, db: PGMonkey) -> Any:
    """What the app's database says, with everything closed after it."""
    with app.app_context():
        name = db.fetch_value("SELECT current_database()")
        db.clear_cache()
    return name


def test_the_constructor_registers_an_app(database: dict[str, Any]) -> None:
    app = Flask("tests")
    db = PGMonkey(app, config={"connection_settings": database})
    assert app.extensions["pgmonkey"] is db
    assert answer(app, db) == database["dbname"]


def test_the_shell_has_db_unless_the_app_says_what_that_is(database: dict[str, Any]) -> None:
    ours, before, after = Flask("ours"), Flask("before"), Flask("after")
    config = {"connection_settings": database}
    before.shell_context_processor(lambda: {"db": "the app's"})
    of_apps = [PGMonkey(app, config=config) for app in (ours, before, after)]
    after.shell_context_processor(lambda: {"db": "the app's"})
    with ours.app_context():
        assert ours.make_shell_context()["db"] is of_apps[0]
    for app in (before, after):
        with app.app_context():
            assert app.make_shell_context()["db"] == "the app's"


def test_one_object_serves_the_apps_of_a_factory_each_with_its_own_database(
    server: Server,
) -> None:
    db = PGMonkey()
    apps = {}
    with server.database() as one, server.database() as two:
        for name in (one, two):
            apps[name] = Flask("tests")
            apps[name].config["PGMONKEY_CONFIG"] = {"connection_settings": server.settings(name)}
            db.init_app(apps[name])
        with apps[one].app_context():
            assert db.fetch_value("SELECT current_database()") == one
            with apps[two].app_context():
                assert db.fetch_value("SELECT current_database()") == two
                assert db.cache_info["size"] == 1
            assert db.fetch_value("SELECT current_database()") == one
        assert [answer(apps[name], db) for name in (one, two)] == [one, two]


def test_a_path_is_relative_to_the_root_of_the_app(config_file: Path) -> None:
    app = Flask("tests", root_path=str(config_file.parent))
    app.config["PGMONKEY_CONFIG"] = config_file.name
    db = PGMonkey(app)
    with app.app_context():
        assert db.get_config().origin == f"file {config_file}"
    assert answer(app, db).startswith("test_")


def test_a_config_may_be_a_path_object_a_mapping_or_a_uri(
    database: dict[str, Any], config_file: Path
) -> None:
    for source in (config_file, {"connection_settings": database}, make_uri(database)):
        app = Flask("tests")
        app.config["PGMONKEY_CONFIG"] = source
        assert answer(app, PGMonkey(app)) == database["dbname"]


def test_the_app_config_wins_over_the_constructor(database: dict[str, Any]) -> None:
    app = Flask("tests")
    app.config["PGMONKEY_CONFIG"] = {"connection_settings": database}
    assert answer(app, PGMonkey(app, config=NOWHERE)) == database["dbname"]


def test_environment_references_are_resolved_where_the_app_wants_it(
    database: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAME_OF_DATABASE", database["dbname"])
    app = Flask("tests")
    app.config["PGMONKEY_RESOLVE_ENV"] = True
    app.config["PGMONKEY_CONFIG"] = {
        "connection_settings": {**database, "dbname": "${NAME_OF_DATABASE}"}
    }
    assert answer(app, PGMonkey(app)) == database["dbname"]


@pytest.mark.parametrize("written", ["False", "off", "0", ""])
def test_a_switch_that_comes_as_text_from_the_environment_is_read_as_one(
    monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    monkeypatch.setenv("FLASK_PGMONKEY_RESOLVE_ENV", "on")
    monkeypatch.setenv("FLASK_PGMONKEY_ALLOW_SENSITIVE_DEFAULTS", written)
    app = Flask("tests")
    app.config.from_prefixed_env()
    config = {"connection_settings": {"password": "${NO_SUCH_VARIABLE:-pw}"}}
    with pytest.raises(ConfigError, match="a secret key may have no default"):
        PGMonkey(app, config=config)


@pytest.mark.parametrize("key", ["PGMONKEY_RESOLVE_ENV", "PGMONKEY_ALLOW_SENSITIVE_DEFAULTS"])
@pytest.mark.parametrize("value", ["flase", 2])
def test_a_switch_that_is_neither_on_nor_off_is_an_error_that_names_it(
    key: str, value: object
) -> None:
    app = Flask("tests")
    app.config[key] = value
    with pytest.raises(ConfigError, match=f"{key} must be true or false"):
        PGMonkey(app, config=NOWHERE)


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("PGMONKEY_RESOLVE_ENVS", "did you mean PGMONKEY_RESOLVE_ENV?"),
        ("PGMONKEY_BIND", "did you mean PGMONKEY_BINDS?"),
        ("PGMONKEY_ZZZ", "known are PGMONKEY_CONFIG, PGMONKEY_BINDS, "),
    ],
)
def test_an_unknown_key_of_the_app_config_is_warned_of(
    key: str, remedy: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = Flask("tests")
    app.config.update({"PGMONKEY_CONFIG": NOWHERE, "PGMONKEYS": 1, key: "hunter2"})
    PGMonkey(app)
    (message,) = caplog.messages
    assert message.startswith(f"The app config has an unknown key, {key}; {remedy}")
    assert "hunter2" not in message


def test_a_variable_that_ends_with_a_line_break_names_the_same_config(
    config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASK_PGMONKEY_CONFIG", f"{config_file}\n")
    app = Flask("tests")
    app.config.from_prefixed_env()
    db = PGMonkey(app)
    with app.app_context():
        assert db.get_config().origin == f"file {config_file}"


def test_nothing_that_belongs_to_an_app_shows_a_password() -> None:
    app = Flask("tests")
    db = PGMonkey(app, config="postgresql://app:planted-secret@127.0.0.1:1/shop")
    with app.app_context():
        config = db.get_config()
        state = db._state()
    assert "planted-secret" not in f"{state!r} {config!r} {db!r} {db.bind('other')!r}"


def test_environment_references_need_not_be_set_before_the_first_use(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("NAME_OF_DATABASE", raising=False)
    app = Flask("tests")
    app.config["PGMONKEY_RESOLVE_ENV"] = True
    db = PGMonkey(app, config={"connection_settings": {"dbname": "${NAME_OF_DATABASE}"}})
    with app.app_context(), pytest.raises(ConfigError, match="NAME_OF_DATABASE"):
        db.fetch_value("SELECT 1")


def test_embedded_starts_a_server_in_the_instance_folder(open_folder: Path) -> None:
    program = f"""
        from flask import Flask
        from flask_pgmonkey import PGMonkey

        app = Flask("tests", instance_path={str(open_folder / "instance")!r})
        db = PGMonkey(app, config="embedded")
        with app.app_context():
            print(db.fetch_value("SHOW server_version"))
    """
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    assert run.returncode == 0
    data = open_folder / "instance" / "postgres" / "data"
    assert run.stderr == (
        f"Made a PostgreSQL for development, not for production. Its data lie in {data}\n"
    )
    assert run.stdout.startswith("18")


def test_an_embedded_server_that_was_lost_is_started_again_while_the_app_runs(
    suite: Suite, open_folder: Path
) -> None:
    suite.copy_cluster(open_folder / "postgres" / "data")
    program = f"""
        import os, psycopg, shutil, signal, time
        from pathlib import Path
        from flask import Flask
        from flask_pgmonkey import PGMonkey

        app = Flask("tests", instance_path={str(open_folder)!r})
        db = PGMonkey(app, config="embedded")

        seen = set()

        def await_new_server():
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                try:
                    with app.app_context():
                        started = db.fetch_value("SELECT pg_postmaster_start_time()")
                except psycopg.OperationalError as error:
                    print(error)  # of a connection that has not noticed yet
                else:
                    if started not in seen:
                        return seen.add(started)
            raise SystemExit("no new server")

        await_new_server()
        pid_file = Path(app.instance_path, "postgres", "data", "postmaster.pid")
        os.kill(int(pid_file.read_text().split()[0]), signal.SIGKILL)
        await_new_server()

        shutil.rmtree(pid_file.with_name("sockets").resolve())
        with app.app_context():
            db.clear_cache()
        await_new_server()
    """
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(program)],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_init_app_never_connects() -> None:
    app = Flask("tests")
    db = PGMonkey(app, config=NOWHERE)
    db.bind("reports")
    with app.app_context():
        assert db.bind_names == ("default",)
        assert db.cache_info["size"] == 0


def test_binds_are_further_databases(server: Server, database: dict[str, Any]) -> None:
    app = Flask("tests")
    app.config["PGMONKEY_CONFIG"] = {"connection_settings": database}
    with server.database() as reports:
        app.config["PGMONKEY_BINDS"] = {
            "reports": {"connection_settings": server.settings(reports)}
        }
        db = PGMonkey(app)
        bind = db.bind("reports")
        with app.app_context():
            assert db.bind_names == ("default", "reports")
            assert bind.connection is db.bind("reports").connection
            assert bind.fetch_value("SELECT current_database()") == reports
            assert db.fetch_value("SELECT current_database()") == database["dbname"]
            assert db.connection is not bind.connection
            with db.transaction(), bind.transaction() as tx:
                assert tx.fetch_value("SELECT current_database()") == reports
            assert list(bind.stream("SELECT current_database()")) == [(reports,)]
            with bind.cursor() as cursor:
                assert cursor.execute("SELECT current_database()").fetchone() == (reports,)
            assert bind.pool is not db.pool
            assert bind.get_connection("pool") is bind.pool
            db.clear_cache()


def test_an_unknown_bind_is_named_with_those_that_exist(site: Site) -> None:
    with site.app.app_context(), pytest.raises(RuntimeError) as raised:
        site.db.bind("reprots").fetch_value("SELECT 1")
    assert "'reprots'" in str(raised.value)
    assert "PGMONKEY_BINDS" in str(raised.value)


def test_apps_may_have_different_binds_under_one_object(make_site: MakeSite) -> None:
    db = PGMonkey()
    app = Flask("tests")
    app.config.update(PGMONKEY_CONFIG=NOWHERE, PGMONKEY_BINDS={"reports": NOWHERE})
    db.init_app(app)
    site = make_site(db)
    bind_names = []
    for each in (app, site.app):
        with each.app_context():
            bind_names.append(db.bind_names)
    assert bind_names == [("default", "reports"), ("default",)]
    with site.app.app_context():
        with pytest.raises(RuntimeError, match="no bind 'reports'"):
            db.bind("reports").fetch_value("SELECT 1")


def test_registering_twice_says_what_to_do_instead(site: Site) -> None:
    for db in (site.db, PGMonkey()):
        with pytest.raises(RuntimeError, match="PGMONKEY_BINDS for further databases"):
            db.init_app(site.app)


@pytest.mark.parametrize("config", [None, ""])
def test_an_app_without_config_says_what_to_set(config: str | None) -> None:
    app = Flask("tests")
    app.config["PGMONKEY_CONFIG"] = config
    with pytest.raises(RuntimeError, match="set PGMONKEY_CONFIG"):
        PGMonkey(app)
    assert "pgmonkey" not in app.extensions


def test_an_app_that_is_not_registered_says_so(site: Site) -> None:
    stranger = Flask("stranger")
    with stranger.app_context(), pytest.raises(RuntimeError, match=r"'stranger'.*init_app"):
        site.db.fetch_value("SELECT 1")


def test_an_object_that_is_not_registered_uses_no_connection_of_another(site: Site) -> None:
    stranger = PGMonkey()
    with site.app.app_context():
        site.db.fetch_value("SELECT 1")
        with pytest.raises(RuntimeError, match=r"not registered with this PGMonkey.*init_app"):
            stranger.fetch_value("SELECT 1")


def test_a_query_outside_an_app_context_says_so(site: Site) -> None:
    with pytest.raises(RuntimeError, match=r"app\.app_context\(\)"):
        site.db.fetch_value("SELECT 1")


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"PGMONKEY_CONFIG": {"connection_settings": {"hots": "x"}}}, "PGMONKEY_CONFIG"),
        ({"PGMONKEY_CONFIG": 5}, "PGMONKEY_CONFIG"),
        ({"PGMONKEY_CONFIG": "postgresql://u:p%@/x"}, "PGMONKEY_CONFIG"),
        ({"PGMONKEY_BINDS": {"reports": {"pool_settings": 1}}}, "PGMONKEY_BINDS.reports"),
        ({"PGMONKEY_BINDS": {"reports": None}}, "PGMONKEY_BINDS.reports"),
        ({"PGMONKEY_BINDS": {"default": NOWHERE}}, "PGMONKEY_BINDS.default"),
        ({"PGMONKEY_BINDS": ["reports"]}, "PGMONKEY_BINDS"),
        ({"PGMONKEY_CONFIG": "no-such.yaml"}, "no-such.yaml"),
        ({"PGMONKEY_CONFIG": "no-such.yaml"}, "is relative to the app's root path"),
        ({"PGMONKEY_BINDS": {"reports": "no-such.yaml"}}, "PGMONKEY_BINDS.reports: there is no"),
        ({"PGMONKEY_CONFIG": "embeded"}, "did you mean 'embedded'?"),
        ({"PGMONKEY_CONFIG": "Embedded"}, "did you mean 'embedded'?"),
        ({"PGMONKEY_BINDS": {"reports": "embedded.yaml"}}, "create-config"),
        ({"PGMONKEY_CONFIG": "host=db password=x"}, "not another kind of connection string"),
    ],
)
def test_a_config_error_names_the_key(keys: dict[str, Any], named: str) -> None:
    app = Flask("tests")
    app.config.update({"PGMONKEY_CONFIG": NOWHERE, **keys})
    with pytest.raises(ConfigError) as raised:
        PGMonkey(app)
    assert named in str(raised.value)
    assert "pgmonkey" not in app.extensions
