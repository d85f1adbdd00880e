"""What the docs say about secrets, held against the frames in which they are."""

from __future__ import annotations

import asyncio
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import psycopg
import pytest

from flask_pgmonkey import PGConnectionManager
from flask_pgmonkey.config import CONNECTION_TYPES, read_config
from flask_pgmonkey.connections import login_steps

PLANTED = "planted-password"
DOCS = Path(__file__).parents[2] / "docs"


class TimeIsUpError(Exception):
    """What Celery's soft time limit, or a worker's end, is to whoever connects."""


@pytest.fixture
def silent_port() -> Iterator[int]:
    """The port of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def fail_to_connect(type_: str, port: int, ends_attempt: Callable[[], object]) -> BaseException:
    uri = f"postgresql://app:{PLANTED}@127.0.0.1:{port}/shop"
    config = read_config({"connection_settings": {"uri": uri}})
    manager = PGConnectionManager()

    async def connect() -> None:
        ends_attempt()
        connecting = manager.connection_for(config, type_)
        if type_.startswith("async"):
            await connecting

    with pytest.raises((psycopg.OperationalError, TimeIsUpError, asyncio.CancelledError)) as caught:
        asyncio.run(connect())
    return caught.value


def secrets_in(error: BaseException | None) -> Iterator[tuple[str, str]]:
    """The function and the name of each local variable that shows a tool the password."""
    while error is not None:
        assert PLANTED not in repr(error)
        traceback = error.__traceback__
        while traceback is not None:
            frame = traceback.tb_frame
            if frame.f_globals["__name__"] != __name__:
                for name, value in frame.f_locals.items():
                    if PLANTED in repr(value):
                        yield frame.f_code.co_name, name
            traceback = traceback.tb_next
        error = error.__cause__ or error.__context__


def cancel_soon() -> None:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().call_later(0.1, task.cancel)


def test_the_docs_name_the_frames_in_which_a_tool_finds_passwords(
    silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(number: int, frame: FrameType | None) -> None:
        raise TimeIsUpError

    def end_soon() -> None:
        signal.setitimer(signal.ITIMER_REAL, 0.1)

    def end_in_its_midst() -> Any:
        def ended() -> float:
            raise TimeIsUpError

        monkeypatch.setattr(login_steps, "monotonic", ended)

    before = signal.signal(signal.SIGALRM, end)
    found = set()
    try:
        for type_ in CONNECTION_TYPES:
            found |= {*secrets_in(fail_to_connect(type_, 1, lambda: None))}
            found |= {*secrets_in(fail_to_connect(type_, silent_port, end_soon))}
            if type_.startswith("async"):
                found |= {*secrets_in(fail_to_connect(type_, silent_port, cancel_soon))}
        for type_ in CONNECTION_TYPES:
            found |= {*secrets_in(fail_to_connect(type_, silent_port, end_in_its_midst))}
    finally:
        signal.signal(signal.SIGALRM, before)

    page = (DOCS / "configuration.md").read_text(encoding="utf-8")
    (paragraph,) = re.findall(r"(?ms)^Tools that collect errors.*?\n\n", page)
    named = set(re.findall(r"`(\w+)`", paragraph)) - {"pgconn"}
    assert {part for pair in found for part in pair} == named
