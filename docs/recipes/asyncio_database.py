"""AsyncDatabase in a plain asyncio program: its pool closes when the loop ends."""

import asyncio

from flask_pgmonkey import AsyncDatabase

db = AsyncDatabase("database.yaml")


async def main() -> None:
    async with db.transaction() as tx:
        await tx.execute("INSERT INTO users (name) VALUES ('Ada'), ('Grace')")
        print("Inside the transaction:", await tx.fetch_value("SELECT count(*) FROM users"))
    queries = (db.fetch_value("SELECT name FROM users WHERE id = %s", [id]) for id in (1, 2))
    print("At once:", await asyncio.gather(*queries))


if __name__ == "__main__":
    asyncio.run(main())
