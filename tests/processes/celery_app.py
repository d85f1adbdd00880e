"""A Celery app as the docs show it: each task within an app context."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, Task  # type: ignore[import-untyped]
from flask import Flask

from flask_pgmonkey import PGMonkey

PID = "SELECT pg_backend_pid()"

flask_app = Flask(__name__)
flask_app.config.from_prefixed_env()
db = PGMonkey(flask_app)


class ContextTask(Task):  # type: ignore[misc]
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with flask_app.app_context():
            return self.run(*args, **kwargs)


celery = Celery("tests", task_cls=ContextTask)
folder = os.environ["CELERY_FOLDER"]
celery.conf.update(
    broker_url="filesystem://",
    broker_transport_options={"data_folder_in": folder, "data_folder_out": folder},
    result_backend=f"file://{folder}",
)

with flask_app.app_context():
    queried_at_import = db.fetch_value(PID)


@celery.task  # type: ignore[untyped-decorator]
def record(number: int) -> None:
    """Fails for every fifth number, after it has written it."""
    with db.transaction():
        db.execute(
            "INSERT INTO records VALUES (%s, %s, pg_backend_pid(), %s)",
            [number, os.getpid(), queried_at_import],
        )
        db.execute("SELECT pg_sleep(0.02)")
        if number % 5 == 0:
            raise ValueError("one of the fifth")
