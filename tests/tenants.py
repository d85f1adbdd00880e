"""An app of two tenants with row-level security, and many requests to it."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psycopg
from flask import Flask, g

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.connections import borrowed_connections

REQUESTS = int(os.environ.get("PGMONKEY_TENANTS_REQUESTS", "600"))
"""In CI; by hand 10,000."""

SCHEMA = """
    CREATE TABLE notes (tenant int NOT NULL, n int NOT NULL);
    ALTER TABLE notes ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
    CREATE POLICY own ON notes USING (tenant = current_setting('app.tenant')::int);
"""
INSERT = "INSERT INTO notes VALUES (%s, %s)"


def assert_tenants_are_apart(
    connection_settings: dict[str, Any], owner: psycopg.Connection[Any]
) -> None:
    """Send requests of both from 8 threads, of which a third raise.

    :param owner: a connection of who owns the database.
    """
    owner.execute(SCHEMA)
    seen: list[set[int]] = []
    app = _make_app(connection_settings, seen)

    def send(n: int) -> int:
        return app.test_client().get(f"/{n % 2 + 1}/{n}").status_code

    with ThreadPoolExecutor(8) as threads:
        codes = list(threads.map(send, range(REQUESTS)))
    assert codes == [500 if n // 2 % 6 < 2 else 200 for n in range(REQUESTS)]
    assert len(seen) > REQUESTS
    assert [tenants for tenants in seen if len(tenants) > 1] == []
    expected = [n for n in range(REQUESTS) if n // 2 % 6 > 2]
    for tenant in (1, 2):
        owner.execute("SELECT set_config('app.tenant', %s, false)", [str(tenant)])
        found = [n for (n,) in owner.execute("SELECT n FROM notes ORDER BY n")]
        assert found == [n for n in expected if n % 2 + 1 == tenant]
    assert borrowed_connections() == []
    with app.app_context():
        app.extensions["pgmonkey"].clear_cache()


def _make_app(connection_settings: dict[str, Any], seen: list[set[int]]) -> Flask:
    app = Flask("tenants")
    app.logger.disabled = True  # it would log a traceback for each request that raises
    db = PGMonkey(
        app,
        config={
            "connection_settings": connection_settings,
            "pool_settings": {"max_size": 3, "timeout": 30},
        },
    )

    @db.session_settings
    def settings() -> dict[str, Any]:
        return {"app.tenant": g.tenant}

    def look() -> None:
        rows = db.fetch_all("SELECT DISTINCT tenant FROM notes")
        seen.append({g.tenant, *(tenant for (tenant,) in rows)})

    @app.get("/<int:tenant>/<int:n>")
    def view(tenant: int, n: int) -> str:
        g.tenant = tenant
        kind = n // 2 % 6
        look()
        if kind == 0:
            with db.transaction() as tx:
                tx.execute(INSERT, [tenant, n])
                look()
                raise LookupError
        elif kind == 1:
            db.execute(INSERT, [tenant, 10**10])
        elif kind == 2:
            with suppress(psycopg.errors.InsufficientPrivilege):
                db.execute(INSERT, [3 - tenant, n])  # the other's
                raise AssertionError
        elif kind == 3:
            with db.transaction() as tx:
                with suppress(psycopg.errors.InsufficientPrivilege), tx.transaction():
                    tx.execute(INSERT, [3 - tenant, n])
                tx.execute(INSERT, [tenant, n])
                look()
        else:
            db.execute(INSERT, [tenant, n])
        look()
        return "done"

    return app
