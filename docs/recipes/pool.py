"""A pool shared by threads: each block borrows a connection and gives it back."""

from concurrent.futures import ThreadPoolExecutor

from flask_pgmonkey import PGConnectionManager

manager = PGConnectionManager()
pool = manager.get_database_connection("database.yaml", "pool")


def square(number: int) -> int:
    with pool as conn:
        with conn.cursor() as cur:
            cur.execute("SELECT %s * %s", [number, number])
            row = cur.fetchone()
    return row[0]


with ThreadPoolExecutor(8) as threads:
    print(list(threads.map(square, range(10))))

same = manager.get_database_connection("database.yaml", "pool")
print("The second call gave the same pool:", same is pool)
