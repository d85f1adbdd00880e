"""The pages, as visitors meet them. What they leave in the database, ``pgdb`` looks up."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import urlsplit

import pytest
from flask import Flask
from flask.sessions import SecureCookieSessionInterface

from flask_pgmonkey import Database

from ..database import init_db
from .conftest import Visitor


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/", "Hana Nováková"),
        ("/orders/1", "Order № 1"),
        ("/orders/new", "Brass seal"),
        ("/products", "Brass seal"),
        ("/users", "ada@example.org"),
    ],
)
def test_pages_show_what_is_in_the_database(visitor: Visitor, path: str, text: str) -> None:
    response = visitor.get(path)
    assert response.status_code == 200
    assert text in response.text


@pytest.mark.parametrize(
    "path", ["/orders/999", f"/orders/{10**30}", f"/orders/{'1' * 5000}", "/nowhere"]
)
def test_what_is_not_there_is_a_page_too(visitor: Visitor, path: str) -> None:
    response = visitor.get(path)
    assert response.status_code == 404
    assert "To the orders" in response.text


def test_the_pages_of_orders_show_every_order_once_and_the_newest_first(visitor: Visitor) -> None:
    path: str | None = "/"
    numbers: list[int] = []
    while path:
        page = visitor.get(path).text
        numbers += [int(number) for number in re.findall(r"№ (\d+)", page)]
        older = re.search(r'href="([^"]+)" rel="next"', page)
        path = older[1] if older else None
    assert numbers == list(range(45, 0, -1))


def test_names_are_escaped(pgdb: Database[Any], visitor: Visitor) -> None:
    pgdb.execute("UPDATE users SET name = '<script>alert(1)</script>' WHERE id = 1")
    for path in ("/", "/orders/new", "/users"):
        page = visitor.get(path).text
        assert "&lt;script&gt;" in page
        assert "<script>" not in page


def test_a_sent_order_leads_to_its_page(visitor: Visitor) -> None:
    sent = visitor.send("/orders/new", user=2, quantity_1=2)
    assert (sent.status_code, sent.location) == (303, "/orders/46")
    page = visitor.get(sent.location).text
    assert "The order is placed." in page
    assert "Bashir Haddad" in page


def test_a_refused_order_comes_back_with_the_reason_and_what_was_typed(visitor: Visitor) -> None:
    sent = visitor.send("/orders/new", user=2, quantity_1=2, quantity_12=9)
    assert sent.status_code == 409
    assert "You want 9 of “Travel inkwell”, and we have 1 left." in sent.text
    assert re.search(r'name="quantity-12"[^>]*\s+value="9"', sent.text)
    assert visitor.get("/orders/46").status_code == 404


@pytest.mark.parametrize("pieces", ["0", "", " "])
def test_an_order_of_nothing_is_refused(visitor: Visitor, pieces: str) -> None:
    sent = visitor.send("/orders/new", user=2, quantity_1=pieces)
    assert sent.status_code == 409
    assert "at least one product" in sent.text


@pytest.mark.parametrize(
    ("bad_line", "why"),
    [
        ({"quantity_2": "-1"}, "“-1” is no number of pieces"),
        ({"quantity_2": "two"}, "“two” is no number of pieces"),
        ({"quantity_2": "1.5"}, "“1.5” is no number of pieces"),
        ({"quantity_999": "1"}, "no longer for sale"),
        ({"quantity_x": "1"}, "no longer for sale"),
        ({"quantity_12": "9"}, "we have 1 left"),
    ],
)
def test_an_order_with_a_bad_line_is_refused_and_not_placed_without_it(
    pgdb: Database[Any], visitor: Visitor, bad_line: dict[str, str], why: str
) -> None:
    sent = visitor.send("/orders/new", user=2, quantity_1="2", **bad_line)
    assert sent.status_code == 409
    assert why in sent.text
    assert re.search(r'name="quantity-1"[^>]*\s+value="2"', sent.text)  # to be mended and sent
    assert pgdb.fetch_value("SELECT count(*) FROM orders") == 45


def test_an_order_is_shipped_or_cancelled_at_a_click_and_then_neither(visitor: Visitor) -> None:
    order = visitor.send("/orders/new", user=2, quantity_1=2).location
    assert "Mark as shipped" in visitor.get(order).text
    assert visitor.send(f"{order}/ship").location == order
    page = visitor.get(order).text
    assert "The order is on its way." in page
    assert 'class="status shipped"' in page
    assert "Mark as shipped" not in page
    for action in ("ship", "cancel"):
        assert visitor.send(f"{order}/{action}").status_code == 409

    other = visitor.send("/orders/new", user=2, quantity_1=2).location
    visitor.send(f"{other}/cancel")
    assert 'class="status cancelled"' in visitor.get(other).text
    assert visitor.send("/orders/999/cancel").status_code == 409


def test_a_cancelled_order_is_no_income(visitor: Visitor, pgdb: Database[Any]) -> None:
    def spent() -> list[str]:
        return re.findall(r'data-label="Spent"[^>]*>([^<]+)', visitor.get("/users").text)

    before = spent()
    order = visitor.send("/orders/new", user=2, quantity_1=2).location
    assert spent() != before
    visitor.send(f"{order}/cancel")
    assert spent() == before


def test_every_time_that_is_shown_says_its_zone(visitor: Visitor) -> None:
    for path in ("/", "/orders/45", "/users"):
        times = re.findall(r'<time datetime="([^"]+)">([^<]+)</time>', visitor.get(path).text)
        assert times
        for exact, shown in times:
            assert re.fullmatch(r"[-\d]+T[:\d]+[+-]\d\d:\d\d", exact)
            assert re.fullmatch(r"\d\d \w{3} \d{4}, \d\d:\d\d ([A-Z]{3,5}|[+-]\d{2,4})", shown)
    _, row, *_ = csv.reader(visitor.get("/orders.csv").text.splitlines())
    assert re.search(r"[+-]\d\d(:\d\d)?$", row[1])


def test_restocking_adds_to_the_stock(pgdb: Database[Any], visitor: Visitor) -> None:
    assert visitor.send("/products/12/restock", pieces=10).status_code == 303
    assert pgdb.fetch_value("SELECT stock FROM products WHERE id = 12") == 11
    assert visitor.send("/products/12/restock", pieces=-10).status_code == 400
    assert visitor.send("/products/999/restock", pieces=10).status_code == 404


@pytest.mark.parametrize("token", ["", "x", "ü"])
def test_a_form_without_the_token_of_its_session_changes_nothing(
    visitor: Visitor, token: str
) -> None:
    forged = {"csrf_token": token, "user": 2, "quantity-1": 1}
    assert visitor.client.post("/orders/new", data=forged).status_code == 400
    assert visitor.get("/orders/46").status_code == 404


def test_the_api_answers_users_and_orders(visitor: Visitor) -> None:
    users = visitor.get("/api/users").json["users"]  # type: ignore[index]
    assert users[0] == {"id": 1, "name": "Ada Lindqvist"}
    orders: Any = visitor.get("/api/orders").json
    assert [order["id"] for order in orders] == list(range(1, 46))
    assert set(orders[0]) == {"id", "placed_at", "total"}


def test_the_async_view_counts_what_is_to_be_shipped(visitor: Visitor) -> None:
    def waiting() -> int:
        found: int = visitor.get("/api/summary").json["orders_to_ship"]  # type: ignore[index]
        return found

    before = waiting()
    order = visitor.send("/orders/new", user=2, quantity_1=2).location
    assert waiting() == before + 1
    visitor.send(f"{order}/ship")
    assert waiting() == before
    assert len(visitor.get("/api/summary").json["best_sellers"]) == 3  # type: ignore[index]


def test_the_list_of_orders_is_one_batch_however_many_there_are(
    visitor: Visitor, pgmonkey_queries: Callable[..., AbstractContextManager[object]]
) -> None:
    with pgmonkey_queries(exactly=1):
        visitor.get("/")


def test_the_csv_file_holds_every_line_of_every_order(
    app: Flask, pgdb: Database[Any], visitor: Visitor
) -> None:
    with app.app_context():
        init_db(orders=3000)
    lines = pgdb.fetch_value("SELECT count(*) FROM order_lines")
    response = visitor.get("/orders.csv")
    assert response.is_streamed
    header, *rows = csv.reader(response.text.splitlines())
    assert header == ["order", "placed_at", "customer", "status", "product", "quantity", "price"]
    assert len(rows) == lines
    assert {int(row[0]) for row in rows} == set(range(1, 3001))


def test_no_name_in_the_csv_file_is_a_formula(pgdb: Database[Any], visitor: Visitor) -> None:
    formulas = ['=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "=A1"]
    for number, name in enumerate(formulas, 1):
        pgdb.execute("UPDATE users SET name = %s WHERE id = %s", [name, number])
    _, *rows = csv.reader(io.StringIO(visitor.get("/orders.csv").text, newline=""))
    assert {row[2] for row in rows} == {f"'{name}" for name in formulas}


def test_a_form_of_more_than_any_visitor_types_is_refused_unread(visitor: Visitor) -> None:
    sent = visitor.send("/orders/new", user=2, note="x" * 100_000)
    assert sent.status_code == 413
    assert "Request Entity Too Large" in sent.text


def test_nobody_adds_sample_orders_to_a_shop_that_is_open(
    pgdb: Database[Any], visitor: Visitor
) -> None:
    assert visitor.send("/setup").status_code == 303
    assert pgdb.fetch_value("SELECT count(*) FROM orders") == 45


def test_a_session_that_somebody_else_signed_is_none(visitor: Visitor) -> None:
    page = visitor.get("/orders/new")
    cookie = page.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    forger = Flask("forger")
    forger.secret_key = "guessed"
    signer = SecureCookieSessionInterface().get_signing_serializer(forger)
    assert signer is not None
    visitor.client.set_cookie("session", signer.dumps({"csrf_token": "forged"}))
    forged = {"csrf_token": "forged", "user": 2, "quantity-1": 1}
    assert visitor.client.post("/orders/new", data=forged).status_code == 400


def test_no_address_leads_to_another_site(visitor: Visitor) -> None:
    for path in ("//evil.example", "/\\evil.example", "/%0d%0aLocation:%20//evil", "/.//evil"):
        response = visitor.client.get(path, base_url="http://desk.example")
        assert urlsplit(response.location or "").netloc in ("", "desk.example")


def test_a_visitor_who_leaves_in_the_middle_of_the_file_holds_no_connection(
    app: Flask, visitor: Visitor
) -> None:
    with app.app_context():
        init_db(orders=3000)
    for _ in range(20):  # more often than the pool has connections
        response = visitor.get("/orders.csv")
        next(response.iter_encoded())
        response.close()
    assert visitor.get("/").status_code == 200


@pytest.mark.parametrize("path", ["/", "/orders.csv", "/nowhere", "/api/users", "/static/desk.css"])
def test_no_other_site_frames_a_page_or_is_told_where_a_visitor_was(
    visitor: Visitor, path: str
) -> None:
    with visitor.get(path) as response:
        headers = response.headers
    assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "same-origin"
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_no_page_needs_what_the_policy_forbids(visitor: Visitor) -> None:
    for path in ("/", "/orders/1", "/orders/new", "/products", "/users", "/nowhere"):
        page = visitor.get(path).text
        assert not re.search(r"<script|<style| style=| on[a-z]+=|javascript:|<iframe", page)
        assert not re.search(r'(src|href)="(https?:)?//', page)


@pytest.mark.parametrize("number", [2**31, 2**63, 10**30, 10**200, "9" * 5000, -(10**30), "1e9"])
def test_a_number_that_no_column_holds_is_refused(
    pgdb: Database[Any], visitor: Visitor, number: object
) -> None:
    assert visitor.send("/orders/new", user=number, quantity_1=1).status_code == 409
    assert visitor.send("/orders/new", user=1, quantity_1=number).status_code == 409
    assert visitor.send("/products/1/restock", pieces=number).status_code == 400
    assert visitor.send(f"/products/{number}/restock", pieces=1).status_code == 404
    assert visitor.get(f"/orders/{number}").status_code == 404
    assert visitor.get(f"/?before={number}").status_code == 200
    assert pgdb.fetch_value("SELECT count(*) FROM orders") == 45


def test_sums_that_no_column_holds_are_refused(pgdb: Database[Any], visitor: Visitor) -> None:
    pgdb.execute("UPDATE products SET stock = 2147483647 WHERE id = 1")
    refused = visitor.send("/orders/new", user=1, quantity_1=2**31 - 1)
    assert refused.status_code == 409
    assert "too much for one order" in refused.text
    full = visitor.send("/products/1/restock", pieces=1)
    assert full.status_code == 400
    assert "Too large a number" in full.text
    assert pgdb.fetch_value("SELECT stock FROM products WHERE id = 1") == 2147483647


def test_a_load_balancer_hears_that_the_desk_is_ready(visitor: Visitor) -> None:
    assert visitor.get("/health/live").status_code == 200
    response = visitor.get("/health/ready")
    assert response.json is not None
    assert (response.status_code, response.json["status"]) == (200, "ready")
