"""Tests in unittest's way."""

import unittest

from flaskr import create_app, db, init_db

from flask_pgmonkey.testing import fresh_database

app = create_app({"TESTING": True})


class BlogTest(unittest.TestCase):
    def setUp(self):
        block = fresh_database(app, init_db)
        self.databases = block.__enter__()
        self.addCleanup(block.__exit__, None, None, None)

    def test_one(self):
        self.check()

    def test_two(self):
        self.check()

    def check(self):
        app.test_client().post("/import", data="one")
        assert app.test_client().get("/").json == {"posts": ["one"]}
        assert self.databases.database(app).fetch_value("SELECT count(*) FROM posts") == 1

    def test_nested_blocks_end_in_their_order(self):
        with app.app_context():
            db.execute("SELECT 1")
            with fresh_database(app):
                db.execute("INSERT INTO posts (author_id, title) VALUES (1, 'inner')")
            assert db.fetch_value("SELECT count(*) FROM posts") == 0


if __name__ == "__main__":
    unittest.main()
