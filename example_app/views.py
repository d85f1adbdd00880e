"""The pages, the JSON and the CSV file of the orders desk."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator

from flask import Blueprint, Response, abort, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from psycopg.rows import dict_row
from werkzeug.routing import IntegerConverter

from .database import db, has_tables, init_db
from .orders import OrderRefusedError, place_order

desk = Blueprint("desk", __name__)

ORDERS_ON_A_PAGE = 20
ABOVE_EVERY_ORDER = 2**31 - 1


class RowId(IntegerConverter):
    """The number of a row, in an address: as many digits as an integer of PostgreSQL has.

    Python refuses to read a number of 5,000 digits, and PostgreSQL one that no column can hold.
    """

    regex = r"\d{1,10}"


@desk.get("/")
def orders() -> str:
    # "Older than this order" is as fast on the last page as on the first; OFFSET is not.
    before = request.args.get("before", ABOVE_EVERY_ORDER, type=int)
    found = db.fetch_all(
        "SELECT orders.id, placed_at, users.name AS customer, total,"
        " (SELECT sum(quantity) FROM order_lines WHERE order_id = orders.id) AS pieces"
        " FROM orders JOIN users ON users.id = user_id"
        " WHERE orders.id < %s ORDER BY orders.id DESC LIMIT %s",
        [before, ORDERS_ON_A_PAGE + 1],
    )
    week = db.fetch_exactly_one(
        "SELECT count(*) AS placed, coalesce(sum(total), 0) AS taken,"
        " (SELECT count(*) FROM products WHERE stock < 5) AS running_low"
        " FROM orders WHERE placed_at > now() - interval '7 days'"
    )
    return render_template(
        "orders.html",
        orders=found[:ORDERS_ON_A_PAGE],
        has_older=len(found) > ORDERS_ON_A_PAGE,
        has_newer=before != ABOVE_EVERY_ORDER,
        week=week,
    )


@desk.get("/orders/<row_id:order_id>")
def order(order_id: int) -> str:
    found = db.fetch_one_or_404(
        "SELECT orders.id, placed_at, total, users.name AS customer, email"
        " FROM orders JOIN users ON users.id = user_id WHERE orders.id = %s",
        [order_id],
        description=f"There is no order {order_id}.",
    )
    lines = db.fetch_all(
        "SELECT name, note, quantity, order_lines.price"
        " FROM order_lines JOIN products ON products.id = product_id"
        " WHERE order_id = %s ORDER BY name",
        [order_id],
    )
    return render_template("order.html", order=found, lines=lines)


@desk.get("/orders/new")
def new_order() -> str:
    return order_form()


@desk.post("/orders/new")
def send_order() -> ResponseReturnValue:
    product_ids = db.fetch_all("SELECT id FROM products", into=int)
    wanted = {p: request.form.get(f"quantity-{p}", 0, type=int) for p in product_ids}
    try:
        order_id = place_order(
            request.form.get("user", 0, type=int),
            {product_id: pieces for product_id, pieces in wanted.items() if pieces > 0},
        )
    except OrderRefusedError as refusal:
        return order_form(str(refusal)), 409
    flash("The order is placed. Thank you!")
    return redirect(url_for(".order", order_id=order_id), 303)


def order_form(refusal: str | None = None) -> str:
    return render_template(
        "new_order.html",
        users=db.fetch_all("SELECT id, name FROM users ORDER BY name"),
        products=db.fetch_all("SELECT id, name, note, price, stock FROM products ORDER BY name"),
        refusal=refusal,
    )


@desk.get("/products")
def products() -> str:
    found = db.fetch_all("SELECT id, name, note, price, stock FROM products ORDER BY name")
    return render_template("products.html", products=found)


@desk.post("/products/<row_id:product_id>/restock")
def restock(product_id: int) -> ResponseReturnValue:
    pieces = request.form.get("pieces", 0, type=int)
    if not 1 <= pieces <= 1000:
        abort(400, "Please restock between 1 and 1,000 pieces at a time.")
    name = db.fetch_value(
        "UPDATE products SET stock = stock + %s WHERE id = %s RETURNING name", [pieces, product_id]
    )
    if name is None:
        abort(404, f"There is no product {product_id}.")
    flash(f"{pieces} more of “{name}” on the shelf.")
    return redirect(url_for(".products"), 303)


@desk.get("/users")
def users() -> str:
    found = db.fetch_all(
        "SELECT name, email, count(orders.id) AS orders, coalesce(sum(total), 0) AS spent,"
        " max(placed_at) AS last_order"
        " FROM users LEFT JOIN orders ON orders.user_id = users.id"
        " GROUP BY users.id ORDER BY name"
    )
    return render_template("users.html", users=found)


@desk.get("/orders.csv")
def orders_csv() -> Response:
    header = ("order", "placed_at", "customer", "product", "quantity", "price")
    rows = db.stream(
        "SELECT orders.id, placed_at, users.name AS customer, products.name AS product,"
        " quantity, order_lines.price"
        " FROM orders"
        " JOIN users ON users.id = user_id"
        " JOIN order_lines ON order_id = orders.id"
        " JOIN products ON products.id = product_id"
        " ORDER BY orders.id, products.id"
    )
    return Response(
        csv_blocks(header, rows),
        mimetype="text/csv",
        headers={"Content-Disposition": "attachment; filename=orders.csv"},
    )


def csv_blocks(header: Iterable[str], rows: Iterable[Iterable[object]]) -> Iterator[str]:
    """The rows as CSV text, in blocks of about 64 KiB."""
    block = io.StringIO()
    writer = csv.writer(block)
    writer.writerow(header)
    for row in rows:
        writer.writerow(map(without_formula, row))
        if block.tell() >= 65_536:
            yield block.getvalue()
            block.seek(0)
            block.truncate()
    yield block.getvalue()


def without_formula(value: object) -> object:
    """*value*, with an apostrophe before a text that a spreadsheet would run."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")):
        return f"'{value}"
    return value


@desk.get("/api/users")
def api_users() -> ResponseReturnValue:
    query = "SELECT id, name FROM users ORDER BY id"
    return {"users": db.fetch_all(query, row_factory=dict_row)}


@desk.get("/api/orders")
def api_orders() -> ResponseReturnValue:
    query = "SELECT id, total FROM orders ORDER BY id"
    return {"orders": db.fetch_all(query, row_factory=dict_row)}


@desk.post("/setup")
def setup() -> ResponseReturnValue:
    # Anybody can send this form, and a shop that is open wants no sample orders.
    if not has_tables():
        init_db()
        flash("The tables are there, with customers, products and some orders.")
    return redirect(url_for(".orders"), 303)
