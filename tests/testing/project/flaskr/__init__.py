"""Flask's tutorial app on flask_pgmonkey, with what tests of a real app come across."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psycopg
from flask import Flask, Response, abort, redirect, request, session, stream_with_context, url_for
from werkzeug.security import check_password_hash, generate_password_hash
from werkzeug.wrappers import Response as AnyResponse

from flask_pgmonkey import PGMonkey

db = PGMonkey()


def init_db() -> None:
    """Create the tables, in both databases."""
    db.execute(Path(__file__).with_name("schema.sql").read_text())
    db.bind("stats").execute("CREATE TABLE visits (path text)")


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """The blog. Its databases do not exist: a test that reached for them would fail."""
    app = Flask(__name__)
    app.config.from_mapping(
        SECRET_KEY="dev",
        PGMONKEY_CONFIG="postgresql://nobody@127.0.0.1:1/production",
        PGMONKEY_BINDS={"stats": "postgresql://nobody@127.0.0.1:1/stats"},
    )
    app.config.from_mapping(config)
    db.init_app(app)

    @app.post("/auth/register")
    def register() -> AnyResponse | tuple[str, int]:
        name, password = request.form["username"], request.form["password"]
        try:
            db.execute(
                "INSERT INTO users (username, password) VALUES (%s, %s)",
                [name, generate_password_hash(password, "pbkdf2:sha256:1")],
            )
        except psycopg.errors.UniqueViolation:
            return f"User {name} is already registered.", 409
        return redirect(url_for("login"))

    @app.post("/auth/login")
    def login() -> AnyResponse:
        user = db.fetch_one(
            "SELECT id, password FROM users WHERE username = %s", [request.form["username"]]
        )
        if user is None or not check_password_hash(user[1], request.form["password"]):
            abort(401)
        session.clear()
        session["user_id"] = user[0]
        return redirect(url_for("index"))

    @app.get("/")
    def index() -> dict[str, Any]:
        db.bind("stats").execute("INSERT INTO visits VALUES ('/')")
        posts = db.fetch_all("SELECT title FROM posts ORDER BY id")
        return {"posts": [title for (title,) in posts]}

    @app.post("/create")
    def create() -> AnyResponse:
        if "user_id" not in session:
            abort(401)
        with db.transaction() as tx:
            tx.execute(
                "INSERT INTO posts (author_id, title) VALUES (%s, %s)",
                [session["user_id"], request.form["title"]],
            )
        return redirect(url_for("index"))

    @app.get("/posts.csv")
    def export() -> Response:
        def lines() -> Iterator[str]:
            with db.stream("SELECT id, title FROM posts ORDER BY id") as rows:
                for row in rows:
                    out = io.StringIO()
                    csv.writer(out).writerow(row)
                    yield out.getvalue()

        return Response(stream_with_context(lines()), mimetype="text/csv")

    @app.post("/import")
    def import_posts() -> dict[str, int]:
        with db.cursor() as cursor:
            with cursor.copy("COPY posts (author_id, title) FROM STDIN") as copy:
                for title in request.get_data(as_text=True).splitlines():
                    copy.write_row((1, title))
            return {"imported": cursor.rowcount}

    @app.get("/async")
    async def count_posts() -> dict[str, int]:
        return {"posts": await db.aio.fetch_value("SELECT count(*) FROM posts")}

    @app.post("/recount")
    def recount() -> tuple[str, int]:
        async def job() -> None:
            await db.aio.execute("INSERT INTO counts SELECT count(*) FROM posts")

        db.background.submit(job())
        return "", 202

    @app.get("/hello")
    def hello() -> str:
        return "Hello, World!"

    return app
