"""A pool for an async program: three queries at once use three connections."""

import asyncio

from flask_pgmonkey import PGConnectionManager


async def main() -> None:
    manager = PGConnectionManager()
    pool = await manager.get_database_connection("database.yaml", "async_pool")

    async def server_process() -> int:
        async with pool as conn:
            async with conn.cursor() as cur:
                await cur.execute("SELECT pg_backend_pid(), pg_sleep(0.1)")
                return (await cur.fetchone())[0]

    processes = await asyncio.gather(*(server_process() for _ in range(3)))
    print("Connections used:", len(set(processes)))

    same = await manager.get_database_connection("database.yaml", "async_pool")
    print("The second call gave the same pool:", same is pool)
    await manager.clear_cache_async()


if __name__ == "__main__":
    asyncio.run(main())
