"""Several writes that belong together, and a savepoint for the part that may fail."""

from flask import Flask
from psycopg import IsolationLevel
from psycopg.errors import UniqueViolation

from flask_pgmonkey import PGMonkey

app = Flask(__name__)
db = PGMonkey(app, config="database.yaml")


@app.post("/users/<name>")
def add_user(name: str):
    with db.transaction() as tx:
        id = tx.fetch_value("INSERT INTO users (name) VALUES (%s) RETURNING id", [name])
        try:
            with db.transaction():  # nested: a savepoint
                tx.execute("INSERT INTO nicknames (name) VALUES (%s)", [name[:3]])
        except UniqueViolation:
            tx.execute("INSERT INTO nicknames (name) VALUES (%s)", [f"{name[:3]}{id}"])
    return {"id": id}, 201


@app.get("/report")
def report():
    # Both queries see the database as it was at the same moment.
    with db.transaction(IsolationLevel.REPEATABLE_READ, read_only=True) as tx:
        users = tx.fetch_value("SELECT count(*) FROM users")
        nicknames = tx.fetch_value("SELECT count(*) FROM nicknames")
    return {"users": users, "nicknames": nicknames}
