"""What keeps other sites from sending the monitor's forms in a visitor's name.

A token stands in a cookie and in the form: another site can neither read nor set the cookie. It
needs no session and no secret key of the app, and is the same in each of its processes.
"""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable
from typing import cast

from flask import Response, abort, current_app, request

COOKIE = "pgmonkey_monitor"
FIELD = "monitor_token"


def token() -> str:
    """The token of this visitor, a new one if need be."""
    known = request.cookies.get(COOKIE, "")
    return known if re.fullmatch(r"[\w-]{43}", known) else secrets.token_urlsafe(32)


def keep(response: Response, value: str, path: str) -> None:
    """Have the visitor keep the token for the pages below *path*."""
    response.set_cookie(
        COOKIE, value, path=path, httponly=True, samesite="Strict", secure=request.is_secure
    )


def refuse_forged() -> None:
    """End a request that does not come from a page of ours."""
    sent, kept = request.form.get(FIELD, ""), request.cookies.get(COOKIE, "")
    is_ours = bool(kept) and hmac.compare_digest(sent.encode(), kept.encode())
    if not is_ours or request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        abort(400, "This form has expired: go back, load the page again and send it again.")


def token_of_app() -> str | None:
    """The token that the app itself demands of forms, where it has such a function.

    It is called ``csrf_token`` by Flask-WTF and others.
    """
    make = current_app.jinja_env.globals.get("csrf_token")
    return cast("Callable[[], str]", make)() if callable(make) else None
