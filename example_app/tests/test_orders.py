from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from flask import Flask
from psycopg.rows import tuple_row

from example_app.database import db
from example_app.orders import OrderRefusedError, place_order

PEN, INKWELL = "Fountain pen", "Travel inkwell"


def product_id(name: str) -> int:
    id: int = db.fetch_value("SELECT id FROM products WHERE name = %s", [name])
    return id


def everything() -> list[list[Any]]:
    """All that an order can change."""
    return [
        db.fetch_all("SELECT id, stock FROM products ORDER BY id"),
        db.fetch_all("SELECT id, user_id, total FROM orders ORDER BY id"),
        db.fetch_all("SELECT * FROM order_lines ORDER BY order_id, product_id"),
    ]


def test_an_order_takes_its_pieces_from_the_stock_and_sums_up_its_lines(desk: Flask) -> None:
    with desk.app_context():
        order_id = place_order(1, {product_id(PEN): 2, product_id(INKWELL): 1})

        products = db.fetch_all("SELECT name, stock FROM products", row_factory=tuple_row)
        stock: dict[str, int] = dict(products)
        assert (stock[PEN], stock[INKWELL]) == (12, 0)
        total, of_lines = db.fetch_exactly_one(
            "SELECT total, (SELECT sum(quantity * price) FROM order_lines WHERE order_id = id)"
            " FROM orders WHERE id = %s",
            [order_id],
        )
        assert total == of_lines == 116


@pytest.mark.parametrize(
    ("user_id", "pens", "inkwells", "why"),
    [
        (1, 2, 2, "we have 1 left"),
        (1, 10**12, 1, "we have 14 left"),
        (999, 1, 1, "choose a customer"),
        (1, 0, 0, "at least one product"),
    ],
)
def test_a_refused_order_changes_nothing(
    desk: Flask, user_id: int, pens: int, inkwells: int, why: str
) -> None:
    with desk.app_context():
        before = everything()
        wanted = {product_id(PEN): pens, product_id(INKWELL): inkwells}
        with pytest.raises(OrderRefusedError, match=why):
            place_order(user_id, {id: pieces for id, pieces in wanted.items() if pieces})
        assert everything() == before


def test_a_product_that_is_gone_refuses_the_whole_order(desk: Flask) -> None:
    with desk.app_context():
        before = everything()
        with pytest.raises(OrderRefusedError, match="no longer for sale"):
            place_order(1, {product_id(PEN): 1, 999: 1})
        assert everything() == before


def test_of_two_buyers_of_the_last_piece_one_gets_it(desk: Flask, database: dict[str, Any]) -> None:
    def buy(inkwell: int) -> int | OrderRefusedError:
        with desk.app_context():
            try:
                return place_order(1, {inkwell: 1})
            except OrderRefusedError as refusal:
                return refusal

    with desk.app_context():
        inkwell = product_id(INKWELL)
    with ThreadPoolExecutor(2) as buyers, psycopg.connect(**database) as someone_else:
        someone_else.execute("SELECT FROM products WHERE id = %s FOR UPDATE", [inkwell])
        results = [buyers.submit(buy, inkwell) for _ in range(2)]
        wait_for_blocked(someone_else, 2)
        someone_else.rollback()
        outcomes = [result.result(timeout=10) for result in results]

    assert sorted(type(outcome).__name__ for outcome in outcomes) == ["OrderRefusedError", "int"]
    with desk.app_context():
        assert db.fetch_value("SELECT stock FROM products WHERE id = %s", [inkwell]) == 0
        assert db.fetch_value("SELECT count(*) FROM orders") == 46


def wait_for_blocked(connection: psycopg.Connection[Any], sessions: int) -> None:
    """Return once that many sessions of this database wait for a lock."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        connection.execute("SELECT pg_stat_clear_snapshot()")  # or a transaction sees it once
        row = connection.execute(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ).fetchone()
        if row == (sessions,):
            return
    raise AssertionError(f"{sessions} sessions never came to wait for a lock")
