"""What the fragments of the pages take for granted: an app, its databases, and their own names."""
# ruff: noqa: F401

import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import partial
from types import SimpleNamespace
from typing import Any

import celery  # type: ignore[import-untyped]
import click
from celery import Celery
from flask import Flask, abort, g, render_template_string, request
from psycopg import sql
from psycopg.errors import UniqueViolation

from flask_pgmonkey import PGMonkey

app = Flask("shop", root_path=os.getcwd(), instance_path=os.getcwd())
app.config["PGMONKEY_BINDS"] = {"reports": "database.yaml"}
app.config["PGMONKEY_MIGRATIONS"] = {"default": "migrations", "reports": "migrations"}
app.config["PGMONKEY_CONFIG"] = "database.yaml"
db = first = PGMonkey(app)


@dataclass
class User:
    id: int
    name: str


@dataclass
class Order:
    id: int
    customer_id: int
    total: Decimal
    tags: list[str]
    placed: datetime | None


def render_template(name: str, **values: Any) -> str:
    return f"{name}: {values}"


def create_app() -> Flask:
    return app


def close() -> None:
    for each in (first, db):
        with app.app_context():
            app.extensions["pgmonkey"] = each
            each.clear_cache()


user_id, order_id, page, email, job = 1, 7, "/", "new@example.org", 1
payer, payee, amount = 1, 2, 10
table = "orders"
orders = [SimpleNamespace(user=1)]
