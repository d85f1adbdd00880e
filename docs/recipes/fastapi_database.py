"""A FastAPI app whose lifespan opens and closes one AsyncDatabase."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from flask_pgmonkey import AsyncDatabase

db = AsyncDatabase("database.yaml")


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    await db.connect()
    yield
    await db.disconnect()


app = FastAPI(lifespan=lifespan)


@app.get("/orders")
async def list_orders():
    rows = await db.fetch_all("SELECT id, total FROM orders ORDER BY id")
    return {"orders": [{"id": id, "total": total} for id, total in rows]}
