"""The smallest app."""

from flask import Flask

from flask_pgmonkey import PGMonkey

app = Flask(__name__)
db = PGMonkey(app, config="database.yaml")


@app.get("/users")
def list_users():
    rows = db.fetch_all("SELECT id, name FROM users ORDER BY id")
    return {"users": [{"id": id, "name": name} for id, name in rows]}
