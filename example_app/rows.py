"""What the desk knows of its rows: ``into=`` makes them of these classes.

``flask --app example_app pgmonkey inspect orders --dataclass`` writes such a class for a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import Enum


class OrderStatus(Enum):
    """PostgreSQL's type ``order_status``."""

    PLACED = "placed"
    SHIPPED = "shipped"
    CANCELLED = "cancelled"


@dataclass
class OrderSummary:
    """An order in the list of orders."""

    id: int
    placed_at: datetime
    customer: str
    status: OrderStatus
    pieces: int
    total: Decimal


@dataclass
class Order:
    """An order on its own page."""

    id: int
    placed_at: datetime
    customer: str
    email: str
    status: OrderStatus
    total: Decimal


@dataclass
class OrderLine:
    name: str
    note: str
    quantity: int
    price: Decimal


@dataclass
class Product:
    id: int
    name: str
    note: str
    price: Decimal
    stock: int


@dataclass
class Customer:
    """A customer, and what came of it."""

    name: str
    email: str
    orders: int
    spent: Decimal
    last_order: datetime | None


@dataclass
class BestSeller:
    name: str
    pieces: int
