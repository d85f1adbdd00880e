"""Orders and the stock, without a page: what places an order needs an app context alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from flask import Flask

from flask_pgmonkey import Database
from flask_pgmonkey.testing import FreshDatabases

from ..orders import OrderRefusedError, cancel_order, place_order, read_quantities, ship_order

PEN, INKWELL = "Fountain pen", "Travel inkwell"


@pytest.fixture(autouse=True)
def _context(app: Flask) -> Iterator[None]:
    with app.app_context():
        yield


def product_id(pgdb: Database[Any], name: str) -> int:
    return pgdb.fetch_exactly_one("SELECT id FROM products WHERE name = %s", [name], into=int)


def stock(pgdb: Database[Any], name: str) -> int:
    return pgdb.fetch_exactly_one("SELECT stock FROM products WHERE name = %s", [name], into=int)


def everything(pgdb: Database[Any]) -> list[list[Any]]:
    """All that an order can change."""
    return [
        pgdb.fetch_all(f"SELECT * FROM {table} ORDER BY 1, 2")
        for table in ("products", "orders", "order_lines")
    ]


def test_an_order_takes_its_pieces_from_the_stock_and_sums_up_its_lines(
    pgdb: Database[Any],
) -> None:
    order_id = place_order(1, {product_id(pgdb, PEN): 2, product_id(pgdb, INKWELL): 1})

    assert (stock(pgdb, PEN), stock(pgdb, INKWELL)) == (12, 0)
    total, of_lines = pgdb.fetch_exactly_one(
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
    pgdb: Database[Any], user_id: int, pens: int, inkwells: int, why: str
) -> None:
    before = everything(pgdb)
    wanted = {product_id(pgdb, PEN): pens, product_id(pgdb, INKWELL): inkwells}
    with pytest.raises(OrderRefusedError, match=why):
        place_order(user_id, {id: pieces for id, pieces in wanted.items() if pieces})
    assert everything(pgdb) == before


def test_a_product_that_is_gone_refuses_the_whole_order(pgdb: Database[Any]) -> None:
    before = everything(pgdb)
    with pytest.raises(OrderRefusedError, match="no longer for sale"):
        place_order(1, {product_id(pgdb, PEN): 1, 999: 1})
    assert everything(pgdb) == before


def test_fields_that_are_empty_or_zero_are_products_that_nobody_wants() -> None:
    typed = [("1", ""), ("2", " 3 "), ("3", "0"), ("4", "02"), ("2", "1")]
    assert read_quantities(typed) == {2: 4, 4: 2}


@pytest.mark.parametrize("pieces", ["-1", "two", "1.5", "1e3", "1_000", "²", "9" * 5000])
def test_what_is_no_number_of_pieces_refuses_the_good_lines_too(pieces: str) -> None:
    with pytest.raises(OrderRefusedError, match="is no number of pieces") as refused:
        read_quantities([("1", "2"), ("2", pieces)])
    assert len(str(refused.value)) < 60


def test_a_cancelled_order_puts_its_pieces_back_once(pgdb: Database[Any]) -> None:
    order_id = place_order(1, {product_id(pgdb, PEN): 2, product_id(pgdb, INKWELL): 1})
    cancel_order(order_id)
    assert (stock(pgdb, PEN), stock(pgdb, INKWELL)) == (14, 1)
    with pytest.raises(OrderRefusedError, match="can be cancelled"):
        cancel_order(order_id)
    with pytest.raises(OrderRefusedError, match="can be shipped"):
        ship_order(order_id)
    assert (stock(pgdb, PEN), stock(pgdb, INKWELL)) == (14, 1)


def test_a_shipped_order_is_neither_cancelled_nor_shipped_again(pgdb: Database[Any]) -> None:
    order_id = place_order(1, {product_id(pgdb, PEN): 2})
    ship_order(order_id)
    for change in (cancel_order, ship_order):
        with pytest.raises(OrderRefusedError):
            change(order_id)
    assert stock(pgdb, PEN) == 12


@pytest.fixture
def meet_at(
    app: Flask, pgmonkey_database: FreshDatabases
) -> Callable[[str, Callable[[], object]], list[str]]:
    """Lets two do the same at once, who wait for the same row; gives what came of each."""

    def meet(row: str, act: Callable[[], object]) -> list[str]:
        def one() -> str:
            with app.app_context():
                try:
                    act()
                except OrderRefusedError:
                    return "refused"
                return "done"

        settings = pgmonkey_database.connection_settings(app)
        with ThreadPoolExecutor(2) as both, psycopg.connect(**settings) as someone_else:
            someone_else.execute(f"SELECT FROM {row} FOR UPDATE".encode())
            outcomes = [both.submit(one) for _ in range(2)]
            wait_for_blocked(someone_else, 2)
            someone_else.rollback()
            return sorted(outcome.result(timeout=10) for outcome in outcomes)

    return meet


def test_of_two_buyers_of_the_last_piece_one_gets_it(
    pgdb: Database[Any], meet_at: Callable[..., list[str]]
) -> None:
    inkwell = product_id(pgdb, INKWELL)
    outcomes = meet_at(f"products WHERE id = {inkwell}", lambda: place_order(1, {inkwell: 1}))
    assert outcomes == ["done", "refused"]
    assert stock(pgdb, INKWELL) == 0
    assert pgdb.fetch_value("SELECT count(*) FROM orders") == 46


def test_of_two_who_cancel_at_once_one_puts_the_pieces_back(
    pgdb: Database[Any], meet_at: Callable[..., list[str]]
) -> None:
    order_id = place_order(1, {product_id(pgdb, PEN): 2})
    outcomes = meet_at(f"orders WHERE id = {order_id}", lambda: cancel_order(order_id))
    assert outcomes == ["done", "refused"]
    assert stock(pgdb, PEN) == 14


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


def test_an_order_is_told_when_it_is_placed_and_no_other(
    pgdb: Database[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "example_app.orders")
    with pytest.raises(OrderRefusedError):
        place_order(1, {product_id(pgdb, PEN): 10**6})
    assert caplog.messages == []
    order_id = place_order(1, {product_id(pgdb, PEN): 1})
    assert [message.partition(":")[0] for message in caplog.messages] == [
        f"Order {order_id} is placed"
    ]
