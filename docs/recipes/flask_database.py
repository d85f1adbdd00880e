"""A Flask app around one module-level Database, without the extension."""

from flask import Flask

from flask_pgmonkey import Database

app = Flask(__name__)
db = Database("database.yaml")


@app.get("/users")
def list_users():
    rows = db.fetch_all("SELECT id, name FROM users ORDER BY id")
    return {"users": [{"id": id, "name": name} for id, name in rows]}
