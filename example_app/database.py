"""The database of the orders desk, and the command that creates and fills it.

The tables are in ``migrations/``: ``flask --app example_app pgmonkey migrate`` makes them too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import psycopg
from flask.cli import with_appcontext
from psycopg.rows import namedtuple_row

from flask_pgmonkey import ConfigError, PGMonkey, PGMonkeyError
from flask_pgmonkey.errors import MigrationError
from flask_pgmonkey.migrations import upgrade

from .rows import OrderStatus

db = PGMonkey(config="embedded", row_factory=namedtuple_row, types={"order_status": OrderStatus})

HERE = Path(__file__).parent


class SetupRefusedError(Exception):
    """The database does not take the tables. The message says why, and what to do."""


def init_db(orders: int = 200) -> int:
    """Apply the migrations, which bring customers and products, and add sample orders.

    :param orders: How many orders there should be in all. Existing orders stay.
    :returns: How many orders were added.
    :raises SetupRefusedError: The user may not create tables here, or others are in the way.
    """
    try:
        upgrade(db)
        with db.transaction() as tx:
            # Two who click at the same moment: the second waits and finds everything there.
            tx.execute("SELECT pg_advisory_xact_lock(hashtext('example_app'))")
            present: int = tx.fetch_value("SELECT count(*) FROM orders")
            missing = max(0, orders - present)
            tx.execute((HERE / "sample_orders.sql").read_bytes(), {"missing": missing})
    except psycopg.OperationalError:
        raise  # The database is down, which says nothing about the tables.
    except (MigrationError, psycopg.DatabaseError) as error:
        raise SetupRefusedError(
            f"The tables cannot be made. {error} Where it is the database that refuses, give the"
            " orders desk an empty one that belongs to the user it connects as."
        ) from error
    return missing


def has_tables() -> bool:
    """Whether this is a shop already, be it one without the latest migrations."""
    found: bool = db.fetch_value(
        "SELECT bool_and(to_regclass(name) IS NOT NULL) FROM unnest(%s::text[]) AS name",
        [["users", "products", "orders", "order_lines"]],
    )
    return found


class UnusableConfig(click.ClickException):
    exit_code = 2


@contextmanager
def refusing_in_one_line() -> Iterator[None]:
    """Let a ``flask`` command end with one line, and no traceback, for a config that is no good."""
    try:
        yield
    except ConfigError as error:
        if click.get_current_context(silent=True) is None:
            raise  # A WSGI server or a test, which click does not run.
        raise UnusableConfig(str(error)) from error


@click.command("init-db")
@click.option(
    "--orders",
    default=200,
    show_default=True,
    type=click.IntRange(min=0),
    help="Add sample orders until there are this many.",
)
@with_appcontext
def init_db_command(orders: int) -> None:
    """Create the tables and fill them. Running it again changes nothing."""
    try:
        with refusing_in_one_line():
            added = init_db(orders)
    except (psycopg.OperationalError, PGMonkeyError, SetupRefusedError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"The orders desk is ready: {added:,} sample orders added.")
