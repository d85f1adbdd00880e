"""A Quart app that opens and closes one AsyncDatabase with the server."""

from quart import Quart

from flask_pgmonkey import AsyncDatabase

app = Quart(__name__)
db = AsyncDatabase("database.yaml")
app.before_serving(db.connect)
app.after_serving(db.disconnect)


@app.get("/orders")
async def list_orders():
    rows = await db.fetch_all("SELECT id, total FROM orders ORDER BY id")
    return {"orders": [{"id": id, "total": total} for id, total in rows]}
