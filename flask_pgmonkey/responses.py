"""Responses of any size, which PostgreSQL makes as the client takes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from urllib.parse import quote

from flask import Response
from werkzeug.wsgi import ClosingIterator

from .contexts import current_app
from .copying import CSV, JSON_LINES, CopyStream, csv_file, json_array, json_lines

BeginCopy = Callable[..., CopyStream]
"""Runs a query within an :class:`Enclosure`. Takes ``safe_formulas`` too."""


def stream_json(begin_copy: BeginCopy, lines: bool) -> Response:
    """A response with an object for each row: in an array, or each on a line of its own."""
    blocks = begin_copy(JSON_LINES)
    if lines:
        return _response(json_lines(blocks), blocks, "application/x-ndjson")
    return _response(json_array(blocks), blocks, "application/json")


def stream_csv(begin_copy: BeginCopy, filename: str, safe_formulas: bool) -> Response:
    """A response with a CSV file that the browser saves."""
    disposition = _attachment(filename)
    blocks = begin_copy(CSV, safe_formulas=safe_formulas)
    response = _response(csv_file(blocks), blocks, "text/csv")
    response.headers["Content-Disposition"] = disposition
    return response


def _response(body: Iterator[bytes], blocks: CopyStream, mimetype: str) -> Response:
    return current_app().response_class(ClosingIterator(body, blocks.close), mimetype=mimetype)


# Control characters, what separates folders, and halves of characters.
_IN_NO_FILENAME = re.compile("[\\x00-\\x1f\\x7f-\\x9f/\\\\\\ud800-\\udfff]")


def _attachment(filename: str) -> str:
    """The header that has a browser save under *filename*: RFC 6266, with RFC 8187's text."""
    name = _IN_NO_FILENAME.sub("_", filename)
    plain = "".join(c if c.isascii() else "_" for c in name).replace('"', "'")
    header = f'attachment; filename="{plain}"'
    if plain != name:
        header += f"; filename*=UTF-8''{quote(name, safe='')}"
    return header
