"""A script that ends while its pool is connecting to a server that has gone deaf."""

from __future__ import annotations

import asyncio
import sys
import threading

from flask_pgmonkey import PGConnectionManager

config, connection_type = sys.argv[1:]
manager = PGConnectionManager()


def main() -> None:
    pool = manager.get_database_connection(config, "pool")
    with pool:
        print("ready")
        sys.stdin.readline()
        threading.Thread(target=pool.borrow, args=[20], daemon=True).start()
        sys.stdin.readline()


async def main_async() -> None:
    pool = await manager.get_database_connection(config, "async_pool")
    async with pool:
        print("ready")
        await asyncio.to_thread(sys.stdin.readline)
        waiting = asyncio.create_task(pool.borrow(20))
        await asyncio.to_thread(sys.stdin.readline)
        assert not waiting.done()


if connection_type == "pool":
    main()
else:
    asyncio.run(main_async())
