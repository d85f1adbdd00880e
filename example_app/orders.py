"""Placing an order: the one place where stock is taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

from .database import db

LARGEST_TOTAL = Decimal("99999999.99")
"""What the column holds, a numeric(10, 2)."""


class OrderRefusedError(Exception):
    """An order that cannot be placed. The message is for the customer."""


@dataclass
class Product:
    """What an order takes from the shelf."""

    id: int
    name: str
    price: Decimal
    stock: int


def place_order(user_id: int, quantities: Mapping[int, int]) -> int:
    """Take the stock and write the order, or change nothing at all.

    :param quantities: Product id → how many pieces, each at least 1.
    :returns: The number of the new order.
    :raises OrderRefusedError: The customer or a product is gone, or there is too little in stock.
    """
    if not quantities:
        raise OrderRefusedError("Please choose at least one product.")
    with db.transaction() as tx:
        if tx.fetch_one("SELECT id FROM users WHERE id = %s", [user_id]) is None:
            raise OrderRefusedError("Please choose a customer.")

        # FOR UPDATE: whoever wants one of these products at the same moment waits here until
        # this order is in or refused. Always in the same sequence, so that no two orders wait
        # for each other.
        products = tx.fetch_all(
            "SELECT id, name, price, stock FROM products WHERE id = ANY(%s) ORDER BY id FOR UPDATE",
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
            "INSERT INTO order_lines (order_id, product_id, quantity, price)"
            " VALUES (%s, %s, %s, %s)",
            [(order_id, p.id, quantities[p.id], p.price) for p in products],
        )
        tx.execute_many(
            "UPDATE products SET stock = stock - %s WHERE id = %s",
            [(quantities[p.id], p.id) for p in products],
        )
    return order_id
