"""Placing, shipping and cancelling an order: the one place where stock is taken or put back."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from flask_pgmonkey.queries import Transaction

from .database import db
from .rows import OrderStatus, Product

logger = logging.getLogger(__name__)

LARGEST_TOTAL = Decimal("99999999.99")
"""What the column holds, a numeric(10, 2)."""


class OrderRefusedError(Exception):
    """What cannot be done with an order. The message is for the customer."""


def read_quantities(typed: Iterable[tuple[str, str]]) -> dict[int, int]:
    """What a customer has typed into the fields of an order, as product id → pieces.

    A field that is empty, or 0, is a product that is not wanted. Any other has to be understood,
    or an order would be placed without what somebody has tried to order.

    :param typed: Pairs of a product's id and the pieces, both as texts.
    :raises OrderRefusedError: One of them is no number of pieces, or no product.
    """
    quantities: dict[int, int] = {}
    for product, pieces in typed:
        pieces = pieces.strip() or "0"
        if not re.fullmatch(r"[0-9]{1,10}", pieces):
            raise OrderRefusedError(f"“{pieces:.20}” is no number of pieces.")
        if not re.fullmatch(r"[0-9]{1,10}", product):
            raise OrderRefusedError("One of these products is no longer for sale.")
        if int(pieces) > 0:
            quantities[int(product)] = quantities.get(int(product), 0) + int(pieces)
    return quantities


def place_order(user_id: int, quantities: Mapping[int, int]) -> int:
    """Take the stock and write the order, or change nothing at all.

    :param quantities: Product id → how many pieces, each at least 1.
    :returns: The number of the new order.
    :raises OrderRefusedError: The customer or a product is gone, or there is too little in stock.
    """
    if not quantities:
        raise OrderRefusedError("Please choose at least one product.")
    # Run again where it and another transaction have failed each other: nothing of it is done then.
    return db.run_transaction(_take_stock, user_id, quantities)


def _take_stock(tx: Transaction[Any], user_id: int, quantities: Mapping[int, int]) -> int:
    if tx.fetch_one("SELECT id FROM users WHERE id = %s", [user_id]) is None:
        raise OrderRefusedError("Please choose a customer.")

    # FOR UPDATE: whoever wants one of these products at the same moment waits here until
    # this order is in or refused. Always in the same sequence, so that no two orders wait
    # for each other.
    products = tx.fetch_all(
        "SELECT id, name, note, price, stock FROM products"
        " WHERE id = ANY(%s) ORDER BY id FOR UPDATE",
        [list(quantities)],
        into=Product,
    )
    if len(products) < len(quantities):
        raise OrderRefusedError("One of these products is no longer for sale.")
    for product in products:
        wanted = quantities[product.id]
        if wanted > product.stock:
            raise OrderRefusedError(
                f"You want {wanted:,} of “{product.name}”, and we have {product.stock:,} left."
            )

    total = sum(product.price * quantities[product.id] for product in products)
    if total > LARGEST_TOTAL:
        raise OrderRefusedError("This is too much for one order. Please order in parts.")
    order_id = tx.fetch_exactly_one(
        "INSERT INTO orders (user_id, total) VALUES (%s, %s) RETURNING id",
        [user_id, total],
        into=int,
    )
    tx.execute_many(
        "INSERT INTO order_lines (order_id, product_id, quantity, price) VALUES (%s, %s, %s, %s)",
        [(order_id, p.id, quantities[p.id], p.price) for p in products],
    )
    tx.execute_many(
        "UPDATE products SET stock = stock - %s WHERE id = %s",
        [(quantities[p.id], p.id) for p in products],
    )
    # Not before everybody can see the order.
    tx.on_commit(lambda: logger.info("Order %d is placed: %s", order_id, total))
    return order_id


def ship_order(order_id: int) -> None:
    """Note that an order has left the shop.

    :raises OrderRefusedError: It has left already, or was cancelled.
    """
    # One statement needs no transaction: of two who click at once, one finds it placed.
    shipped = db.execute(
        "UPDATE orders SET status = %s WHERE id = %s AND status = %s",
        [OrderStatus.SHIPPED, order_id, OrderStatus.PLACED],
    )
    if not shipped:
        raise OrderRefusedError("Only an order that is placed can be shipped.")


def cancel_order(order_id: int) -> None:
    """Put the pieces of an order back on the shelf.

    :raises OrderRefusedError: It has left the shop, or was cancelled already.
    """
    with db.transaction() as tx:
        status = tx.fetch_value(
            "SELECT status FROM orders WHERE id = %s FOR UPDATE", [order_id], into=OrderStatus
        )
        if status is not OrderStatus.PLACED:
            raise OrderRefusedError("Only an order that is placed can be cancelled.")
        # In the sequence in which place_order takes them.
        tx.execute(
            "SELECT FROM products WHERE id IN"
            " (SELECT product_id FROM order_lines WHERE order_id = %s) ORDER BY id FOR UPDATE",
            [order_id],
        )
        tx.execute(
            "UPDATE products SET stock = stock + quantity FROM order_lines"
            " WHERE order_id = %s AND product_id = products.id",
            [order_id],
        )
        tx.execute("UPDATE orders SET status = %s WHERE id = %s", [OrderStatus.CANCELLED, order_id])
