"""Parent and children query at the same time, while children come and go; each must see its own.

Every query asks for ten numbers that only this process and moment could know.
"""

from __future__ import annotations

import json
import os
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from flask import Flask

from flask_pgmonkey import Database, PGMonkey
from tests.processes.forking import in_child

config, rows_each = sys.argv[1], int(sys.argv[2])

TEN = "SELECT %s::int8 + i, pg_backend_pid() FROM generate_series(0, 9) AS i"
database = Database(config)
app = Flask(__name__)
db = PGMonkey(app, config=config)


def query(rows: int) -> dict[str, Any]:
    """Query half of the rows through each; the rows seen, the wrong ones, the server's pids."""
    secrets = random.Random(os.getpid())
    found: dict[str, Any] = {"rows": 0, "wrong": 0, "pids": set()}
    with app.app_context():
        while found["rows"] < rows:
            for source in (database, db):
                secret = os.getpid() * 10**9 + secrets.randrange(10**9)
                answer = source.fetch_all(TEN, [secret])
                found["rows"] += len(answer)
                found["wrong"] += [number for number, _ in answer] != list(
                    range(secret, secret + 10)
                )
                found["pids"] |= {pid for _, pid in answer}
    return found


def run_children(rows: int) -> list[dict[str, Any]]:
    """Children one after the other, until the parent has its rows."""
    found = []
    while not stop.is_set():
        found.append(in_child(lambda: query(rows)))
    return found


warm = query(100)
stop = threading.Event()
with ThreadPoolExecutor(5) as threads:
    lasting = [threads.submit(in_child, lambda: query(rows_each)) for _ in range(4)]
    passing = threads.submit(run_children, 20)
    of_parent = query(rows_each)
    stop.set()

processes = [of_parent, *(child.result() for child in lasting), *passing.result()]
pids = [pid for process in processes for pid in process["pids"]]
print(
    json.dumps(
        {
            "rows": sum(process["rows"] for process in processes),
            "wrong": sum(process["wrong"] for process in processes),
            "shared pids": len(pids) - len(set(pids)),
            "new pids of the parent": len(of_parent["pids"] - warm["pids"]),
        }
    )
)
