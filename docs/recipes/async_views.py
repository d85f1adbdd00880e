"""Async views: db.aio runs three queries at once, and a transaction on one connection."""

import asyncio

from flask import Flask

from flask_pgmonkey import PGMonkey

app = Flask(__name__)
db = PGMonkey(app, config="database.yaml")


@app.get("/summary")
async def show_summary():
    users, orders, turnover = await asyncio.gather(
        db.aio.fetch_value("SELECT count(*) FROM users"),
        db.aio.fetch_value("SELECT count(*) FROM orders"),
        db.aio.fetch_value("SELECT coalesce(sum(total), 0) FROM orders"),
    )
    return {"users": users, "orders": orders, "turnover": turnover}


@app.post("/orders/<int:id>/<int:total>")
async def place_order(id: int, total: int):
    async with db.aio.transaction() as tx:
        await tx.execute("INSERT INTO orders VALUES (%s, %s)", [id, total])
        turnover = await tx.fetch_value("SELECT sum(total) FROM orders")
    return {"turnover": turnover}, 201
