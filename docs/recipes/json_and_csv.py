"""Orders as JSON, as downloads of any size, and as uploads."""

from flask import Flask, request

from flask_pgmonkey import PGMonkey
from flask_pgmonkey.csv_transfer import CSVTransferError

app = Flask(__name__)
db = PGMonkey(app, config="database.yaml")

NEWEST = "SELECT id, total FROM orders ORDER BY id DESC LIMIT %s"
ALL = "SELECT id, total FROM orders ORDER BY id"


@app.get("/orders/newest")
def newest():
    return db.json_response(NEWEST, [request.args.get("limit", 20, type=int)])


@app.get("/orders.json")
def orders_json():
    return db.stream_json(ALL)


@app.get("/orders.ndjson")
def orders_lines():
    return db.stream_json(ALL, lines=True)


@app.get("/orders.csv")
def orders_csv():
    return db.csv_response(ALL, filename="Orders.csv", safe_formulas=True)


@app.get("/summary")
async def summary():
    orders = await db.aio.fetch_json(NEWEST, [20])
    return app.response_class(orders, mimetype="application/json")


@app.post("/orders")
def upload():
    file = request.files.get("file") or request.stream
    return {"rows": db.copy_from("orders", file, max_bytes=50_000_000)}


@app.errorhandler(CSVTransferError)
def refuse(error):
    return {"error": str(error), "line": error.line, "column": error.column}, 422
