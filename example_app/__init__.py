"""An orders desk for a small shop, to show what an app with flask_pgmonkey looks like.

Read on in ``database.py`` (the one line that connects), ``rows.py`` (what rows become),
``views.py`` (queries), ``orders.py`` (transactions), ``errors.py`` (what to say when the database
is down) and ``tests/`` (each test on a database of its own).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from flask import Flask
from markupsafe import Markup

from flask_pgmonkey.health import health_blueprint

from . import csrf, errors, headers, views
from .database import db, init_db_command, refusing_in_one_line


def create_app(config: Mapping[str, Any] | None = None) -> Flask:
    """The orders desk, on the embedded server unless ``FLASK_PGMONKEY_CONFIG`` names another."""
    app = Flask(__name__)
    app.config.from_mapping(
        # A new key for each process is enough to try things out. With several workers, or to
        # keep sessions over a restart, set FLASK_SECRET_KEY.
        SECRET_KEY=secrets.token_hex(),
        SESSION_COOKIE_SAMESITE="Lax",
        # In debug, /_pgmonkey/ shows what the database does.
        PGMONKEY_MONITOR=True,
        # No form here is longer. Flask reads a form whole, before anybody looks at its token.
        MAX_CONTENT_LENGTH=64 * 1024,
    )
    app.config.from_prefixed_env()
    app.config.from_mapping(config)

    with refusing_in_one_line():
        db.init_app(app)
    csrf.init_app(app)
    errors.init_app(app)
    headers.init_app(app)
    app.url_map.converters["row_id"] = views.RowId
    app.register_blueprint(views.desk)
    app.register_blueprint(health_blueprint(), url_prefix="/health")
    app.cli.add_command(init_db_command)
    app.add_template_filter(money)
    app.add_template_filter(moment)
    return app


def money(amount: Decimal) -> str:
    """``1234.5`` as ``€1,234.50``."""
    return f"€{amount:,.2f}"


def moment(time: datetime) -> Markup:
    """A time with its zone, which is that of the database's session: ``25 Nov 2026, 14:05 UTC``."""
    text = time.strftime("%d %b %Y, %H:%M %Z")
    return Markup('<time datetime="{}">{}</time>').format(time.isoformat(timespec="seconds"), text)
