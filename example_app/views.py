"""The pages, the JSON and the CSV file of the orders desk."""

from __future__ import annotations

import asyncio

from flask import Blueprint, Response, abort, flash, redirect, render_template, request, url_for
from flask.typing import ResponseReturnValue
from psycopg.rows import dict_row
from werkzeug.routing import IntegerConverter

from flask_pgmonkey.migrations import pending

from .database import db, has_tables, init_db
from .orders import OrderRefusedError, cancel_order, place_order, read_quantities, ship_order
from .rows import BestSeller, Customer, Order, OrderLine, OrderStatus, OrderSummary, Product

desk = Blueprint("desk", __name__)

ORDERS_ON_A_PAGE = 20
ABOVE_EVERY_ORDER = 2**31 - 1
ALL_PRODUCTS = "SELECT id, name, note, price, stock FROM products ORDER BY name"

QUANTITY = "quantity-"
"""What the names of the fields begin with in which a customer types how many pieces."""


class RowId(IntegerConverter):
    """The number of a row, in an address: as many digits as an integer of PostgreSQL has.

    Python refuses to read a number of 5,000 digits, and PostgreSQL one that no column can hold.
    """

    regex = r"\d{1,10}"


@desk.get("/")
def orders() -> str:
    # "Older than this order" is as fast on the last page as on the first; OFFSET is not.
    before = request.args.get("before", ABOVE_EVERY_ORDER, type=int)
    with db.batch() as b:
        page = b.fetch_all(
            "SELECT orders.id, placed_at, users.name AS customer, status,"
            " (SELECT sum(quantity) FROM order_lines WHERE order_id = orders.id) AS pieces, total"
            " FROM orders JOIN users ON users.id = user_id"
            " WHERE orders.id < %s ORDER BY orders.id DESC LIMIT %s",
            [before, ORDERS_ON_A_PAGE + 1],
            into=OrderSummary,
        )
        week = b.fetch_exactly_one(
            "SELECT count(*) AS placed, coalesce(sum(total), 0) AS taken"
            " FROM orders WHERE placed_at > now() - interval '7 days' AND status <> %s",
            [OrderStatus.CANCELLED],
        )
        running_low = b.fetch_value("SELECT count(*) FROM products WHERE stock < 5")
    found = page.result()
    return render_template(
        "orders.html",
        orders=found[:ORDERS_ON_A_PAGE],
        has_older=len(found) > ORDERS_ON_A_PAGE,
        has_newer=before != ABOVE_EVERY_ORDER,
        week=week.result(),
        running_low=running_low.result(),
    )


@desk.get("/orders/<row_id:order_id>")
def order(order_id: int) -> str:
    found = db.fetch_one_or_404(
        "SELECT orders.id, placed_at, users.name AS customer, email, status, total"
        " FROM orders JOIN users ON users.id = user_id WHERE orders.id = %s",
        [order_id],
        into=Order,
        description=f"There is no order {order_id}.",
    )
    lines = db.fetch_all(
        "SELECT name, note, quantity, order_lines.price"
        " FROM order_lines JOIN products ON products.id = product_id"
        " WHERE order_id = %s ORDER BY name",
        [order_id],
        into=OrderLine,
    )
    return render_template("order.html", order=found, lines=lines)


@desk.get("/orders/new")
def new_order() -> str:
    return order_form()


@desk.post("/orders/new")
def send_order() -> ResponseReturnValue:
    typed = [
        (name.removeprefix(QUANTITY), pieces)
        for name, pieces in request.form.items(multi=True)
        if name.startswith(QUANTITY)
    ]
    try:
        order_id = place_order(request.form.get("user", 0, type=int), read_quantities(typed))
    except OrderRefusedError as refusal:
        return order_form(str(refusal)), 409
    flash("The order is placed. Thank you!")
    return redirect(url_for(".order", order_id=order_id), 303)


def order_form(refusal: str | None = None) -> str:
    with db.batch() as b:
        users = b.fetch_all("SELECT id, name FROM users ORDER BY name")
        products = b.fetch_all(ALL_PRODUCTS, into=Product)
    return render_template(
        "new_order.html", users=users.result(), products=products.result(), refusal=refusal
    )


@desk.post("/orders/<row_id:order_id>/ship")
def ship(order_id: int) -> ResponseReturnValue:
    try:
        ship_order(order_id)
    except OrderRefusedError as refusal:
        abort(409, str(refusal))
    flash("The order is on its way.")
    return redirect(url_for(".order", order_id=order_id), 303)


@desk.post("/orders/<row_id:order_id>/cancel")
def cancel(order_id: int) -> ResponseReturnValue:
    try:
        cancel_order(order_id)
    except OrderRefusedError as refusal:
        abort(409, str(refusal))
    flash("The order is cancelled, and its pieces are back on the shelf.")
    return redirect(url_for(".order", order_id=order_id), 303)


@desk.get("/products")
def products() -> str:
    return render_template("products.html", products=db.fetch_all(ALL_PRODUCTS, into=Product))


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
        " FROM users LEFT JOIN orders ON orders.user_id = users.id AND status <> %s"
        " GROUP BY users.id ORDER BY name",
        [OrderStatus.CANCELLED],
        into=Customer,
    )
    return render_template("users.html", users=found)


@desk.get("/orders.csv")
def orders_csv() -> Response:
    # Customers give their own names, and a spreadsheet would run one that begins with "=".
    return db.csv_response(
        "SELECT orders.id AS order, placed_at, users.name AS customer, status,"
        " products.name AS product, quantity, order_lines.price"
        " FROM orders"
        " JOIN users ON users.id = user_id"
        " JOIN order_lines ON order_id = orders.id"
        " JOIN products ON products.id = product_id"
        " ORDER BY orders.id, products.id",
        filename="orders.csv",
        safe_formulas=True,
    )


@desk.get("/api/users")
def api_users() -> ResponseReturnValue:
    query = "SELECT id, name FROM users ORDER BY id"
    return {"users": db.fetch_all(query, row_factory=dict_row)}


@desk.get("/api/orders")
def api_orders() -> Response:
    return db.json_response("SELECT id, placed_at, total FROM orders ORDER BY id")


@desk.get("/api/summary")
async def api_summary() -> ResponseReturnValue:
    # Neither waits for the other: each has a connection of the async pool.
    waiting, sellers = await asyncio.gather(
        db.aio.fetch_value(
            "SELECT count(*) FROM orders WHERE status = %s", [OrderStatus.PLACED], into=int
        ),
        db.aio.fetch_all(
            "SELECT name, sum(quantity) AS pieces"
            " FROM order_lines JOIN products ON products.id = product_id"
            " GROUP BY name ORDER BY pieces DESC, name LIMIT 3",
            into=BestSeller,
        ),
    )
    return {"orders_to_ship": waiting, "best_sellers": sellers}


@desk.post("/setup")
def setup() -> ResponseReturnValue:
    # Anybody can send this form, and a shop that is open wants no sample orders.
    if pending(db):
        init_db(orders=0 if has_tables() else 200)
        flash("The tables are there. Welcome to the desk!")
    return redirect(url_for(".orders"), 303)
