"""One connection for a script: commits when the block ends well, rolls back when it raises."""

from flask_pgmonkey import PGConnectionManager

manager = PGConnectionManager()
connection = manager.get_database_connection("database.yaml", "normal")

with connection as conn:
    with conn.cursor() as cur:
        cur.execute("INSERT INTO users (name) VALUES (%s)", ["Ada"])

try:
    with connection as conn:
        conn.execute("INSERT INTO users (name) VALUES (%s)", ["nobody"])
        raise ValueError("changed my mind")
except ValueError:
    print("The second insert was rolled back.")

with connection as conn:
    print("Users:", conn.execute("SELECT name FROM users").fetchall())

same = manager.get_database_connection("database.yaml", "normal")
print("The second call gave the same object:", same is connection)
