"""Customers who see their own rows alone, because PostgreSQL shows them no others."""

from flask import Flask, abort, g, request

from flask_pgmonkey import PGMonkey

app = Flask(__name__)
db = PGMonkey(app, config="database.yaml")


@app.before_request
def find_tenant():
    # In your app: from the session, a token, the host name.
    g.tenant = request.headers.get("X-Tenant", type=int) or abort(401)


@db.session_settings
def settings():
    return {"app.tenant": g.tenant} if "tenant" in g else None


@app.get("/notes")
def list_notes():
    return [text for (text,) in db.fetch_all("SELECT text FROM notes ORDER BY id")]


@app.post("/notes")
def add_note():
    with db.transaction() as tx:
        tx.execute("INSERT INTO notes (text) VALUES (%s)", [request.get_data(as_text=True)])
        count = tx.fetch_value("SELECT count(*) FROM notes")
    return {"notes": count}, 201
