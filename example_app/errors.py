"""What the visitor sees when something is not there: a page, the tables, the database."""

from __future__ import annotations

import psycopg
from flask import Flask, current_app, render_template, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from flask_pgmonkey import PGMonkeyError

from .database import SetupRefusedError


def init_app(app: Flask) -> None:
    app.register_error_handler(HTTPException, show_http_error)
    for missing in (psycopg.errors.UndefinedTable, psycopg.errors.UndefinedColumn):
        app.register_error_handler(missing, offer_to_create_tables)
    app.register_error_handler(SetupRefusedError, show_refused_setup)
    app.register_error_handler(psycopg.errors.NumericValueOutOfRange, show_number_too_large)
    app.register_error_handler(psycopg.OperationalError, show_database_down)
    app.register_error_handler(PGMonkeyError, show_database_down)


def show_http_error(error: HTTPException) -> ResponseReturnValue:
    status = error.code or 500
    if wants_json():
        return {"error": error.description}, status
    return render_template("error.html", title=error.name, text=error.description), status


def offer_to_create_tables(error: psycopg.ProgrammingError) -> ResponseReturnValue:
    if wants_json():
        return {"error": "Tables are missing. Run: flask --app example_app init-db"}, 503
    return render_template("setup.html"), 503


def show_refused_setup(error: SetupRefusedError) -> ResponseReturnValue:
    title = "The tables cannot be created"
    return render_template("error.html", title=title, text=str(error)), 503


def show_number_too_large(error: psycopg.errors.NumericValueOutOfRange) -> ResponseReturnValue:
    text = "That would be a larger number than the desk can keep. Nothing was changed."
    if wants_json():
        return {"error": text}, 400
    return render_template("error.html", title="Too large a number", text=text), 400


def show_database_down(error: Exception) -> ResponseReturnValue:
    current_app.logger.error("The database did not answer: %r", error)  # in one line
    text = "The database does not answer just now. Please try again shortly."
    if wants_json():
        return {"error": text}, 503, {"Retry-After": "5"}
    page = render_template("error.html", title="We will be right back", text=text)
    return page, 503, {"Retry-After": "5"}


def wants_json() -> bool:
    return request.path.startswith("/api/")
