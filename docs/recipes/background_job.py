"""A view that answers at once, and work that goes on behind it."""

import asyncio

from flask import Flask

from flask_pgmonkey import PGMonkey

app = Flask(__name__)
db = PGMonkey(app, config="database.yaml")


async def greet(name: str) -> None:
    await asyncio.sleep(0.1)  # the work: a mail, a call of another service
    await db.aio.execute("INSERT INTO users (name) VALUES (%s)", [name])


@app.post("/users/<name>")
def add_user(name: str):
    db.background.submit(greet(name))
    return {"accepted": name}, 202


@app.get("/users")
def count_users():
    return {"users": db.background.run(db.aio.fetch_value("SELECT count(*) FROM users"))}
