import pytest
from flaskr import db


def sign_up(client, name="ada"):
    form = {"username": name, "password": "secret"}
    assert client.post("/auth/register", data=form).status_code == 302
    assert client.post("/auth/login", data=form).status_code == 302


def test_a_user_registers_logs_in_and_writes(client, pgdb):
    sign_up(client)
    assert client.post("/create", data={"title": "First"}).status_code == 302
    assert client.get("/").json == {"posts": ["First"]}
    assert pgdb.fetch_value("SELECT count(*) FROM users") == 2


@pytest.mark.parametrize("attempt", range(3))
def test_a_name_is_given_once_and_the_app_goes_on(client, pgdb, attempt):
    form = {"username": "ada", "password": "secret"}
    assert client.post("/auth/register", data=form).status_code == 302
    assert client.post("/auth/register", data=form).status_code == 409
    assert client.get("/").json == {"posts": []}
    assert pgdb.fetch_value("SELECT max(id) FROM users") == 2  # sequences begin anew too


def test_writing_takes_a_login(client):
    assert client.post("/create", data={"title": "First"}).status_code == 401


def test_posts_are_imported_and_streamed(client):
    assert client.post("/import", data="one\ntwo").json == {"imported": 2}
    assert client.get("/posts.csv").text == "1,one\r\n2,two\r\n"


def test_an_async_view_counts_what_was_written(client):
    assert client.get("/async").json == {"posts": 0}
    client.post("/import", data="one\ntwo\nthree")
    assert client.get("/async").json == {"posts": 3}


def test_a_background_job_ends_with_the_test(client):
    client.post("/import", data="one")
    assert client.post("/recount").status_code == 202


def test_each_bind_has_a_database_of_its_own(client, app, pgmonkey_database):
    client.get("/")
    stats = pgmonkey_database.database(app, "stats")
    assert stats.fetch_all("SELECT * FROM visits") == [("/",)]


def test_an_outer_app_context_finds_the_same_rows(app, client):
    with app.app_context():
        db.execute("INSERT INTO posts (author_id, title) VALUES (1, 'outer')")
        assert client.get("/").json == {"posts": ["outer"]}


def test_a_view_without_a_query_needs_no_database(client, pgmonkey_database):
    assert client.get("/hello").text == "Hello, World!"
    assert not pgmonkey_database.names
