"""A receiver of the signals that keeps what it hears."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from blinker import NamedSignal

from flask_pgmonkey.events import Event, QueryEvent
from flask_pgmonkey.signals import query_executed


class Heard(list[Any]):
    """The events that were heard, and their senders.

    :ivar senders: the sender of each.
    """

    def __init__(self) -> None:
        super().__init__()
        self.senders: list[Any] = []

    def hear(self, sender: Any, event: Event) -> None:
        self.senders.append(sender)
        self.append(event)

    @property
    def texts(self) -> list[str]:
        """The SQL texts of the queries."""
        return [event.sql for event in self if isinstance(event, QueryEvent)]

    def only(self) -> Any:
        """The one event."""
        (event,) = self
        return event


@contextmanager
def listening(*signals: NamedSignal) -> Iterator[Heard]:
    """A block whose events are heard: those of ``query_executed`` without *signals*."""
    heard = Heard()
    for signal in signals or (query_executed,):
        signal.connect(heard.hear)
    try:
        yield heard
    finally:
        for signal in signals or (query_executed,):
            signal.disconnect(heard.hear)
