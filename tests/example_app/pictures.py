"""Takes the pictures of the example app that the README and the docs show.

``python -m tests.example_app.pictures`` writes them into ``docs/images``.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flask import Flask
from werkzeug.serving import make_server

from example_app import create_app
from example_app.database import init_db
from flask_pgmonkey.testing import fresh_database

from ..browser import Browser, open_browser

IMAGES = Path(__file__).parents[2] / "docs" / "images"
# Name → page, width, height, dark.
PICTURES = {
    "example-orders-light.png": ("/", 1024, 640, False),
    "example-orders-dark.png": ("/", 1024, 640, True),
    "example-order-light.png": ("/orders/200", 1024, 640, False),
    "example-order-dark.png": ("/orders/200", 1024, 640, True),
    "example-phone-light.png": ("/", 390, 760, False),
    "example-phone-dark.png": ("/", 390, 760, True),
}


@contextmanager
def served(app: Flask) -> Iterator[str]:
    """The address at which a web server shows the app."""
    http = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=http.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{http.port}"
    finally:
        http.shutdown()
        thread.join()
        http.server_close()


def take(browser: Browser, address: str, folder: Path) -> None:
    """Write each picture into *folder*."""
    for name, (page, width, height, dark) in PICTURES.items():
        browser.look(width, height, dark)
        browser.go(address + page)
        (folder / name).write_bytes(browser.screenshot())


def main(folder: Path) -> None:
    app = create_app()
    with fresh_database(app, init_db), served(app) as address, open_browser() as browser:
        take(browser, address, folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
