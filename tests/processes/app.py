"""The app that the web servers and workers of these tests run."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from flask import Flask, Response, request

from flask_pgmonkey import Database, PGMonkey
from flask_pgmonkey.monitor import monitor_blueprint

PID = "SELECT pg_backend_pid()"

app = Flask(__name__)
app.config.from_prefixed_env()
db = PGMonkey(app)
database = Database(app.config["PGMONKEY_CONFIG"])
queried_at_import: list[int] = []

if os.environ.get("MONITOR"):
    app.register_blueprint(monitor_blueprint(db, authorize=lambda: True), url_prefix="/monitor")

if os.environ.get("QUERY_AT_IMPORT"):
    with app.app_context():
        queried_at_import = [db.fetch_value(PID), database.fetch_value(PID)]


@app.get("/pids")
def pids() -> dict[str, Any]:
    return {
        "process": os.getpid(),
        "thread": threading.get_ident(),
        "server": [db.fetch_value(PID), database.fetch_value(PID)],
        "queried_at_import": queried_at_import,
    }


@app.get("/own/<token>")
def own(token: str) -> dict[str, Any]:
    """Whether the connection stays this request's own while others run."""
    before = db.fetch_value(PID)
    db.execute("SELECT set_config('tests.token', %s, false)", [token])
    db.execute("SELECT pg_sleep(0.02)")
    found = db.fetch_one("SELECT current_setting('tests.token'), pg_backend_pid()")
    return {"own": found == (token, before), "server": before, "process": os.getpid()}


@app.get("/sleep")
def sleep() -> str:
    db.execute("SELECT pg_sleep(%s)", [request.args.get("seconds", type=float)])
    return str(db.fetch_value(PID))


@app.get("/background")
def background() -> str:
    try:
        db.background.run(db.aio.fetch_value(PID))
    except RuntimeError as error:
        return str(error)
    return "ran"


STREAMS: dict[str, Callable[..., Response]] = {
    "json": db.stream_json,
    "lines": partial(db.stream_json, lines=True),
    "csv": partial(db.csv_response, filename="rows.csv"),
}


@app.get("/rows/<kind>/<int:count>")
def rows(kind: str, count: int) -> Response:
    """Rows of 100 bytes and more, of which one may fail."""
    fails_at = request.args.get("fails_at", 0, type=int)
    # In a FROM, PostgreSQL would write all of the series to its disk first.
    query = (
        "SELECT n, repeat('x', 100) AS text, 1 / (n - %s) AS share"
        " FROM (SELECT generate_series(1, %s) AS n) AS numbers"
    )
    return STREAMS[kind](query, [fails_at, count])
