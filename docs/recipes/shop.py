"""The smallest app: one table, one view, and the command that makes the table."""

from flask import Flask

from flask_pgmonkey import PGMonkey

app = Flask(__name__)
db = PGMonkey(app, config="embedded")


@app.cli.command("init-db")
def init_db():
    with db.transaction() as tx:
        tx.execute("CREATE TABLE IF NOT EXISTS users (id integer PRIMARY KEY, name text)")
        tx.execute("INSERT INTO users VALUES (1, 'Ada') ON CONFLICT DO NOTHING")


@app.get("/users")
def list_users():
    rows = db.fetch_all("SELECT id, name FROM users ORDER BY id")
    return {"users": [{"id": id, "name": name} for id, name in rows]}
