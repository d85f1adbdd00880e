"""A token in every form, so that no other site can send one in a visitor's name."""

from __future__ import annotations

import hmac
import secrets

from flask import Flask, abort, request, session


def init_app(app: Flask) -> None:
    app.before_request(refuse_forged_form)
    app.add_template_global(csrf_token)


def csrf_token() -> str:
    """The token of this visitor's session."""
    token: str = session.setdefault("csrf_token", secrets.token_urlsafe())
    return token


def refuse_forged_form() -> None:
    if request.method != "POST":
        return
    sent = request.form.get("csrf_token", "")
    if not hmac.compare_digest(sent.encode(), csrf_token().encode()):
        abort(400, "This form has expired. Please go back, reload the page and send it again.")
