"""One connection for an async program."""

import asyncio

from flask_pgmonkey import PGConnectionManager


async def main() -> None:
    manager = PGConnectionManager()
    connection = await manager.get_database_connection("database.yaml", "async")

    async with connection as conn:
        async with conn.cursor() as cur:
            await cur.execute("SELECT count(*) FROM users")
            print("Users:", (await cur.fetchone())[0])

    same = await manager.get_database_connection("database.yaml", "async")
    print("The second call gave the same object:", same is connection)


if __name__ == "__main__":
    asyncio.run(main())
