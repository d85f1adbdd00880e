"""What browsers are told not to do with the pages of the desk."""

from __future__ import annotations

from flask import Flask, Response

HEADERS = {
    # Nothing from elsewhere, no script at all, and no other site may put the desk in a frame,
    # where a visitor could be led to click what he does not see.
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self';"
        " base-uri 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def init_app(app: Flask) -> None:
    app.after_request(add_headers)


def add_headers(response: Response) -> Response:
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response
