"""Counting queries, and looking for what was not given back."""

import threading

import pytest
from flaskr import db

from flask_pgmonkey.testing import assert_no_connection_leaks

ADD = "INSERT INTO posts (author_id, title) VALUES (1, %s)"


@pytest.fixture
def context(app):
    with app.app_context():
        yield


def test_queries_are_counted(client, pgmonkey_queries):
    client.get("/")
    with pgmonkey_queries(exactly=2) as queries:
        client.get("/")
    assert [query.sql for query in queries] == [
        "INSERT INTO visits VALUES ('/')",
        "SELECT title FROM posts ORDER BY id",
    ]


def test_async_queries_and_those_of_jobs_and_threads_count(app, context, client, pgmonkey_queries):
    async def job():
        await db.aio.execute(ADD, ["job"])

    def thread():
        with app.app_context():
            db.execute(ADD, ["thread"])

    with pgmonkey_queries(exactly=3):
        client.get("/async")
        db.background.run(job())
        runs = threading.Thread(target=thread)
        runs.start()
        runs.join()


def test_many_rows_of_one_call_count_as_one(context, pgmonkey_queries):
    with pgmonkey_queries(exactly=4) as queries:
        db.execute_many(ADD, [["one"], ["two"], ["three"]])
        with db.stream("SELECT title FROM posts", batch_size=1) as rows:
            assert len(list(rows)) == 3
        with db.cursor().copy("COPY posts TO STDOUT") as copy:
            assert len(list(copy)) == 3
        with db.connection.pipeline():
            db.execute(ADD, ["four"])
            db.execute(ADD, ["five"])
    assert [query.kind for query in queries] == ["many", "query", "copy", "pipeline"]


def test_begin_and_commit_and_the_tests_own_looks_do_not_count(context, pgdb, pgmonkey_queries):
    with pgmonkey_queries(exactly=1):
        with db.transaction() as tx, tx.transaction():
            tx.execute(ADD, ["one"])
        assert pgdb.fetch_value("SELECT count(*) FROM posts") == 1


def test_too_many_are_listed_with_their_places_and_repeats_marked(context, pgmonkey_queries):
    def write():
        for secret in ("hunter2", "hunter3"):
            db.execute(ADD, [secret])
        db.fetch_value("SELECT 1")

    with pytest.raises(AssertionError) as failure, pgmonkey_queries(at_most=2):
        write()
    message = str(failure.value)
    assert message.startswith("3 queries, more than 2:\n   1. INSERT INTO posts")
    assert message.count("(2 times)   at test_checks.py:") == 2
    assert "hunter" not in message


def test_a_number_that_is_not_met_is_told(context, pgmonkey_queries):
    with pytest.raises(AssertionError, match="0 queries, not 1:\nnone"), pgmonkey_queries(1):
        pass


def test_a_connection_that_is_not_given_back_is_a_leak(app, context):
    borrowed = db.get_connection("pool").connection()
    with pytest.raises(AssertionError, match="left connections borrowed: "):
        with assert_no_connection_leaks():
            borrowed.__enter__()
    borrowed.__exit__(None, None, None)


def test_a_context_that_stays_pushed_is_a_leak(app):
    context = app.app_context()
    with pytest.raises(AssertionError, match="left an app context pushed"):
        with assert_no_connection_leaks():
            context.push()
    context.pop()


def test_what_is_given_back_is_none(client, pgmonkey_no_leaks):
    client.get("/")
