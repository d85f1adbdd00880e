"""Count what each endpoint asks of the database."""

from collections import Counter

from flask import Flask

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.signals import query_executed

app = Flask(__name__)
db = PGMonkey(app, config="database.yaml")
queries = Counter()


@query_executed.connect_via(app)
def count(app, event):
    queries[event.endpoint] += 1


@app.get("/users")
def list_users():
    users = db.fetch_all("SELECT name FROM users ORDER BY id")
    return {"users": [name for (name,) in users], "queries": queries}
