"""Database outside Flask: a connection for each call, or one for a whole transaction."""

from flask_pgmonkey import Database

db = Database("database.yaml")

db.execute_many("INSERT INTO users (name) VALUES (%s)", [["Ada"], ["Grace"]])
with db.transaction() as tx:
    tx.execute("UPDATE users SET name = upper(name)")
    print("Inside the transaction:", tx.fetch_all("SELECT name FROM users ORDER BY name"))
print("Users:", db.fetch_value("SELECT count(*) FROM users"))
db.close()
