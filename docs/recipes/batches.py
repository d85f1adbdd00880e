"""Queries that do not wait for each other's answers, in one round trip."""

import psycopg

from flask_pgmonkey import Database

db = Database("database.yaml")

with db.batch() as b:
    added = b.execute("INSERT INTO users (name) VALUES (%s), (%s)", ["Ada", "Grace"])
    names = b.fetch_all("SELECT name FROM users ORDER BY name", into=str)  # of list[str]
    how_many = b.fetch_value("SELECT count(*) FROM users", into=int)  # of int | None

print("Added:", added.result())
print("Names:", names.result(), how_many.result())

try:
    with db.batch() as b:
        b.execute("INSERT INTO users (name) VALUES ('Alan')")
        b.execute("INSERT INTO users (name) VALUES (%s)", [None])
except psycopg.errors.NotNullViolation as error:
    print("The error is", str(error).splitlines()[-1])

print("All or nothing:", db.fetch_value("SELECT count(*) FROM users"))

db.close()
