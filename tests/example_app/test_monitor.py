"""The monitor of the orders desk: in debug, and nowhere else."""

from __future__ import annotations

import re

from flask import Flask

from example_app.database import init_db


def test_in_debug_it_shows_the_desk_at_work_and_explains_at_a_click(empty_desk: Flask) -> None:
    empty_desk.debug = True
    with empty_desk.app_context():
        init_db(orders=3)
    visitor = empty_desk.test_client()
    visitor.get("/products")
    page = visitor.get("/_pgmonkey/queries/").text
    queries = re.findall(r'href="(/_pgmonkey/queries/\d+)"><code>(.*?)</code>', page)
    shown = {re.sub("<.*?>", "", text): address for address, text in queries}
    (address,) = (shown[text] for text in shown if "FROM products ORDER BY name" in text)
    query = visitor.get(address).text
    tokens = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)">', query))
    assert tokens.keys() == {"monitor_token", "csrf_token"}  # its own, and the desk's
    answer = visitor.post(f"{address}/plan", data=tokens)
    assert answer.status_code == 200
    assert "Own cost" in answer.text


def test_without_debug_there_is_none(empty_desk: Flask) -> None:
    assert empty_desk.test_client().get("/_pgmonkey/").status_code == 404
