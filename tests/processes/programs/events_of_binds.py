"""Requests on three binds at once, in threads or greenlets, whose events say whose they are."""

from __future__ import annotations

import sys

scenario, *configs = sys.argv[1:]
if scenario == "greenlets":
    from gevent import monkey  # type: ignore[import-untyped]

    monkey.patch_all()

import os  # noqa: E402
from collections import Counter  # noqa: E402
from concurrent.futures import ThreadPoolExecutor  # noqa: E402
from contextvars import copy_context  # noqa: E402
from threading import Thread  # noqa: E402
from typing import Any  # noqa: E402

from flask import Flask  # noqa: E402

from flask_pgmonkey import PGMonkey, signals  # noqa: E402
from tests.processes.forking import FORKS, in_child  # noqa: E402

SIGNALS = (
    signals.query_executed, signals.connection_borrowed, signals.connection_returned,
    signals.transaction_ended,
)  # fmt: skip
NAMES = ("default", "second", "third")
REQUESTS = 40

app = Flask(__name__)
# The first two share one pool, the third has its own.
app.config.from_mapping(
    PGMONKEY_CONFIG=configs[0], PGMONKEY_BINDS={"second": configs[0], "third": configs[1]}
)
db: PGMonkey[Any] = PGMonkey(app)
heard: Counter[tuple[str, str, str | None]] = Counter()


def hear(sender: object, event: Any) -> None:
    """Count what was told, and query in a thread that would wait for a lock that is held here."""
    assert sender is app
    kind = type(event).__name__
    # What a request asks of a bind names that.
    # When a connection comes back, Flask has taken the request down.
    path = event.tally.path if event.tally is not None else None
    heard[kind, event.bind, path.strip("/") if path is not None else None] += 1
    if kind == "QueryEvent" and event.kind == "query":
        assert event.sql == f"SELECT '{event.bind}'", (event.sql, event.bind)
    if kind in ("QueryEvent", "TransactionEvent"):  # in between, the context has its connection
        thread = Thread(target=copy_context().run, args=(bind(event.bind).fetch_value, "SELECT 1"))
        thread.start()
        thread.join(20)
        assert not thread.is_alive(), f"a lock is held while {event} is told"


def bind(name: str) -> Any:
    return db if name == "default" else db.bind(name)


@app.get("/<name>")
def view(name: str) -> str:
    query = f"SELECT '{name}'"
    assert bind(name).fetch_value(query) == name
    with bind(name).transaction() as tx:
        assert tx.fetch_value(query) == name
    return name


def request(name: str) -> str:
    return app.test_client().get(f"/{name}").text


def requests_at_once() -> dict[tuple[str, str, str | None], int]:
    """What was heard of requests that three threads or greenlets for each bind have made."""
    heard.clear()
    names = NAMES * REQUESTS
    with ThreadPoolExecutor(9) as threads:
        assert list(threads.map(request, names)) == list(names)
    return dict(heard)


def expected() -> dict[tuple[str, str, str | None], int]:
    """Two queries, BEGIN and COMMIT, and one connection for each request, that came and went."""
    events = {"QueryEvent": 4, "TransactionEvent": 1, "ConnectionEvent": 2}
    told: dict[tuple[str, str, str | None], int] = {}
    for name in NAMES:
        told.update({(kind, name, name): count * REQUESTS for kind, count in events.items()})
    return told


app.testing = True
for signal in SIGNALS:
    signal.connect(hear, app)
here = requests_at_once()
assert here == expected(), here
if scenario in FORKS:
    there = in_child(requests_at_once, fork=FORKS[scenario])
    assert there == expected(), there
    here = requests_at_once()
    assert here == expected(), here
with app.app_context():
    db.clear_cache()
print(os.getpid())
