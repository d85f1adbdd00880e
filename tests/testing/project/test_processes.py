"""Children of the test's process, and what it hands to other programs."""

import os
import subprocess
import sys
import threading
import urllib.request
import warnings

import psycopg
import pytest
from flaskr import db
from werkzeug.serving import make_server


def in_child(call):
    """Run *call* in a forked child, and wait for its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads run
        child = os.fork()
    if not child:
        code = 1
        try:
            call()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("queries_before", [True, False])
def test_a_forked_child_and_its_parent_find_the_same_database(client, queries_before):
    if queries_before:
        assert client.get("/").json == {"posts": []}
    in_child(lambda: client.post("/import", data="child"))
    assert client.get("/").json == {"posts": ["child"]}


def test_what_the_parent_writes_is_there_for_the_next_child(client):
    in_child(lambda: client.post("/import", data="first"))
    client.post("/import", data="parent")

    def look():
        assert client.get("/").json == {"posts": ["first", "parent"]}

    in_child(look)


def test_a_server_in_a_thread_serves_the_tests_database(app, pgdb):
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        address = f"http://127.0.0.1:{server.port}"
        urllib.request.urlopen(f"{address}/import", b"served").close()  # noqa: S310
        assert pgdb.fetch_all("SELECT title FROM posts") == [("served",)]
        pgdb.execute("UPDATE posts SET title = 'changed'")
        with urllib.request.urlopen(address) as answer:
            assert b"changed" in answer.read()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_another_program_is_led_to_the_database(app, client, pgmonkey_database):
    client.post("/import", data="one")
    settings = pgmonkey_database.connection_settings(app)
    program = "import sys, psycopg; psycopg.connect(sys.argv[1]).execute('SELECT * FROM posts')"
    conninfo = psycopg.conninfo.make_conninfo(**settings)
    subprocess.run([sys.executable, "-W", "ignore", "-c", program, conninfo], check=True)


def test_a_command_of_the_app_finds_the_tests_database(app, pgdb):
    @app.cli.command("add")
    def add():
        db.execute("INSERT INTO posts (author_id, title) VALUES (1, 'command')")

    assert app.test_cli_runner().invoke(args=["add"]).exit_code == 0
    assert pgdb.fetch_value("SELECT title FROM posts") == "command"
