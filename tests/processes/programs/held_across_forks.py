"""Objects opened before forks go on in the parent and begin anew in children and grandchildren."""

from __future__ import annotations

import sys

from flask import Flask

from flask_pgmonkey import Database, PGConnectionManager, PGMonkey
from tests.processes.forking import EXITS, FORKS, in_child, in_grandchild

config, fork, leave = sys.argv[1], FORKS[sys.argv[2]], EXITS[sys.argv[3]]

PID = "SELECT pg_backend_pid()"
manager = PGConnectionManager()
pool = manager.get_database_connection(config, "pool")
normal = manager.get_database_connection(config, "normal")
database = Database(config)
app = Flask(__name__)
db = PGMonkey(app, config=config)


def server_pids() -> set[int]:
    found = {database.fetch_value(PID)}
    with app.app_context():
        found.add(db.fetch_value(PID))
    for connection in (pool, normal, manager.get_database_connection(config, "pool")):
        with connection as conn:
            found |= {pid for (pid,) in conn.execute(PID)}
    return found


parent = server_pids()
assert len(parent) == 4, parent
seen = set(parent)
for ask in (in_child, in_grandchild, in_child):
    child = ask(server_pids, fork=fork, leave=leave)
    assert len(child) == 5, child  # the cache began empty: its pool is not the held one
    assert not child & seen, (child, seen)
    seen |= child
    assert server_pids() == parent
print(len(seen))
