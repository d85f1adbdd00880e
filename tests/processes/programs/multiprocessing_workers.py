"""Worker processes of multiprocessing, made by fork or by spawn, use a module's Database."""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor

from flask_pgmonkey import Database

config, method = sys.argv[1:]
database = Database(config)


def server_pid(_: int) -> tuple[int, int]:
    with database.transaction() as tx:
        tx.execute("SELECT pg_sleep(0.01)")
        return os.getpid(), tx.fetch_value("SELECT pg_backend_pid()")


if __name__ == "__main__":
    parent = server_pid(0)
    with ProcessPoolExecutor(3, multiprocessing.get_context(method)) as workers:
        children = set(workers.map(server_pid, range(60)))
    print(json.dumps({"parent": [parent, server_pid(0)], "children": sorted(children)}))
