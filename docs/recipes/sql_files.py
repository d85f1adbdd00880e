"""SQL in files of its own, by aiosql: each query is a function that takes the connection."""

from pathlib import Path

import aiosql
from flask import Flask

from flask_pgmonkey import PGMonkey

app = Flask(__name__)
db = PGMonkey(app, config="database.yaml")
queries = aiosql.from_path(Path(__file__).with_name("users.sql"), "psycopg")


@app.get("/users/<start>")
def list_users(start: str):
    rows = queries.users_like(db.connection, start=start)
    return {"users": [{"id": id, "name": name} for id, name in rows]}


@app.post("/users/<name>")
def add_user(name: str):
    with db.transaction():  # what runs on db.connection is in it
        (id,) = queries.add_user(db.connection, name=name)
        queries.rename_user(db.connection, id=id, name=f"{name} ({id})")
    return {"id": id}, 201
