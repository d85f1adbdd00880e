"""Requests that fail because the database cannot be had just now: 503, and when to come back."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import psycopg
from flask import Flask, current_app, got_request_exception
from psycopg.errors import ConnectionTimeout
from psycopg_pool import PoolClosed, PoolTimeout, TooManyRequests
from werkzeug.exceptions import ServiceUnavailable

from .errors import ServerSilentError

RETRY_AFTER = (1, 5)
"""Seconds after which clients are asked back: the least, and the most."""

# Connection exceptions, too_many_connections, and whatever ends or refuses sessions.
_SQLSTATES = ("08", "53300", "57P0")
_OF_POOL = (PoolTimeout, TooManyRequests, PoolClosed)
# What psycopg and libpq say of the connection itself has no SQLSTATE, and no class of its own;
# neither has what they say of a caller who uses it wrongly.
_OF_CONNECTION = (psycopg.OperationalError, ConnectionTimeout, ServerSilentError)
_USED_WRONGLY = r"command is already in progress|during COPY|COPY in progress|in pipeline mode"


def answer_outages(app: Flask) -> None:
    """Have *app* answer with 503 and Retry-After where it would with 500 because of an outage.

    Flask asks ``handle_exception`` only for what no error handler of the app's has dealt with.
    """
    # Nothing in it refers to the app, so that that needs no garbage collector to go.
    answer: Any = partial(_handle_exception, vars(app).get("handle_exception"))
    app.handle_exception = answer  # type: ignore[method-assign]


def _handle_exception(replaced: Callable[..., Any] | None, *args: Any) -> Any:
    """Flask's ``handle_exception``.

    :param replaced: what stood in the place of the method of the app's class.
    """
    *context, error = args  # since Flask 3.2 the app context comes first, here and below
    app: Any = current_app._get_current_object()  # type: ignore[attr-defined]
    if _is_propagated(app) or not is_outage(error):
        return replaced(*args) if replaced is not None else type(app).handle_exception(app, *args)
    # As Flask does it for 500: whoever listens for failures hears of this one.
    got_request_exception.send(app, _async_wrapper=app.ensure_sync, exception=error)
    app.log_exception(*context, sys.exc_info())
    retry_after = random.randint(*RETRY_AFTER)  # noqa: S311 (only so that not all come at once)
    unavailable = ServiceUnavailable(retry_after=retry_after)
    unavailable.__cause__ = error
    page = app.handle_http_exception(*context, unavailable)
    response = app.finalize_request(*context, page, from_error_handler=True)
    if response.status_code == 503:
        response.headers.setdefault("Retry-After", str(retry_after))
    return response


def _is_propagated(app: Flask) -> bool:
    propagate = app.config["PROPAGATE_EXCEPTIONS"]
    return app.testing or app.debug if propagate is None else bool(propagate)


def is_outage(error: BaseException) -> bool:
    """Whether *error* says that no connection can be had, or that one was lost."""
    if not isinstance(error, psycopg.OperationalError):
        return False
    if error.sqlstate is not None:
        return error.sqlstate.startswith(_SQLSTATES)
    if isinstance(error, _OF_POOL):
        return True
    return type(error) in _OF_CONNECTION and re.search(_USED_WRONGLY, str(error)) is None
