"""A script that ends with everything open: as it stands, or having said so inside a block."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from flask_pgmonkey import AsyncDatabase, Database, PGConnectionManager

connection_type: Any
config, connection_type, ending = sys.argv[1:]

PID = "SELECT pg_backend_pid()"


def use(manager: PGConnectionManager) -> Any:
    connection = manager.get_database_connection(config, connection_type)
    with connection as conn:
        conn.execute(PID)
        if ending == "sys.exit":
            sys.exit(3)
    database = Database(config)
    database.fetch_value(PID)
    return connection, database


async def use_async(manager: PGConnectionManager) -> Any:
    connection = await manager.get_database_connection(config, connection_type)
    async with connection as conn:
        await conn.execute(PID)
        if ending == "sys.exit":
            sys.exit(3)
    database = AsyncDatabase(config)
    await database.fetch_value(PID)
    return connection, database


def main() -> Any:
    manager = PGConnectionManager()
    if connection_type in ("normal", "pool"):
        return manager, use(manager)
    if ending == "loop just closed":
        loop = asyncio.new_event_loop()
        used = loop.run_until_complete(use_async(manager))
        loop.close()
        return manager, used
    return manager, asyncio.run(use_async(manager))


if ending == "kept":
    kept = main()
else:
    main()
