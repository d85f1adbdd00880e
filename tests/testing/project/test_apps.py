"""Apps of any scope, several of them, and their binds."""

import pytest
from flaskr import create_app, db

module_app = create_app({"TESTING": True})
COUNT = "SELECT count(*) FROM posts"
ADD = "INSERT INTO posts (author_id, title) VALUES (1, 'one')"


@pytest.fixture(scope="session")
def session_app():
    """An app whose context is pushed for the whole session."""
    app = create_app({"TESTING": True})
    with app.app_context():
        yield app


@pytest.mark.parametrize("attempt", range(2))
def test_an_app_that_a_module_makes_has_fresh_databases_in_each_test(pgmonkey_database, attempt):
    client = module_app.test_client()
    assert client.post("/import", data="one").json == {"imported": 1}
    assert client.get("/").json == {"posts": ["one"]}


@pytest.mark.parametrize("attempt", range(2))
def test_so_has_an_app_whose_context_is_pushed_around_the_tests(
    session_app, pgmonkey_database, attempt
):
    assert db.fetch_value(COUNT) == 0
    db.execute(ADD)
    assert db.connection.info.dbname in pgmonkey_database.names.values()
    with db.transaction():
        assert session_app.test_client().get("/").json == {"posts": ["one"]}


def test_a_transaction_that_a_test_leaves_open_is_not_that_of_the_next(
    session_app, pgmonkey_database
):
    pgmonkey_database.database(session_app).execute(ADD)
    db.connection.execute("BEGIN")
    assert db.fetch_value(COUNT) == 1


def test_the_next_begins_without_it(session_app, pgmonkey_database):
    assert db.connection.info.transaction_status.name == "IDLE"
    assert db.fetch_value(COUNT) == 0


def test_apps_with_the_same_config_share_a_database_and_others_do_not(app, pgmonkey_database):
    same = create_app()
    other = create_app({"PGMONKEY_CONFIG": "postgresql://nobody@127.0.0.1:1/another"})
    app.test_client().post("/import", data="one")
    assert same.test_client().get("/").json == {"posts": ["one"]}
    assert other.test_client().get("/").json == {"posts": []}
    assert len(pgmonkey_database.names) == 3  # and their common bind


def test_binds_with_the_same_config_are_one_database(pgmonkey_database):
    uri = "postgresql://nobody@127.0.0.1:1/production"
    app = create_app({"PGMONKEY_BINDS": {"stats": uri}})
    with app.app_context():
        db.execute(ADD)
        assert db.bind("stats").fetch_value(COUNT) == 1


def test_the_config_keeps_its_pools_settings_and_types_and_loses_its_place(pgmonkey_database):
    config = {
        "connection_settings": {
            "host": "production.invalid",
            "password": "${MISSING}",
            "application_name": "blog",
        },
        "pool_settings": {"max_size": 3},
        "sync_settings": {"statement_timeout": "7s"},
    }
    app = create_app({"PGMONKEY_CONFIG": config, "PGMONKEY_RESOLVE_ENV": True})
    with app.app_context():
        assert db.fetch_value("SHOW statement_timeout") == "7s"
        assert db.fetch_value("SHOW application_name") == "blog"
        assert db.get_config().pool.max_size == 3
        assert db.get_config().connect_kwargs().get("host") != "production.invalid"


def test_an_app_with_the_embedded_server_of_its_own_does_not_start_it(pgmonkey_database, tmp_path):
    app = create_app({"PGMONKEY_CONFIG": "embedded"})
    app.instance_path = str(tmp_path)
    assert app.test_client().get("/").json == {"posts": []}
    assert not list(tmp_path.iterdir())
