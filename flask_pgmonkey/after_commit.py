"""What is called after a COMMIT: the functions given to ``tx.on_commit()``, in their order.

A connection's record has them while its transaction is open. A block that rolls back to its
savepoint takes those away that were added in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from inspect import isawaitable, iscoroutinefunction
from typing import Any, TypeAlias

logger: logging.Logger = logging.getLogger("flask_pgmonkey")

Callbacks: TypeAlias = "list[Callable[[], Any]]"


def name_of(fn: object) -> str:
    """What log lines and errors call a function: not its repr, which may show arguments."""
    return getattr(fn, "__qualname__", type(fn).__name__)


def add(callbacks: Callbacks | None, fn: Callable[[], Any], takes_coroutines: bool) -> None:
    """Add *fn* to those of a transaction.

    :param callbacks: None where none of our blocks began it.
    :raises TypeError: for what cannot be called, and for a coroutine function where nobody would
        await it.
    :raises RuntimeError: where no block would see the COMMIT.
    """
    if not callable(fn):
        raise TypeError(
            "on_commit() takes a function without parameters, not an object of type"
            f" {type(fn).__name__}: put a call into 'lambda: …' or functools.partial()"
        )
    if not takes_coroutines and iscoroutinefunction(fn):
        raise TypeError(
            f"on_commit() takes a plain function here, and {name_of(fn)} is a coroutine function:"
            " have a plain one call db.background.submit(…)"
        )
    if callbacks is None:
        raise RuntimeError(
            "on_commit() within a transaction that was begun by hand, whose COMMIT nobody here"
            " sees: begin it with 'with db.transaction() as tx:'"
        )
    callbacks.append(fn)


def call_all(callbacks: Callbacks | None) -> None:
    """Call them, also those after one that fails, which is logged."""
    for fn in callbacks or ():
        try:
            fn()
        except Exception:
            _log_failure(fn)


async def call_and_await_all(callbacks: Callbacks | None) -> None:
    """:func:`call_all`, for coroutine functions too: each is awaited before the next is called."""
    for fn in callbacks or ():
        try:
            awaitable = fn()
            if isawaitable(awaitable):
                await awaitable
        except Exception:
            _log_failure(fn)


def _log_failure(fn: object) -> None:
    logger.exception(
        "A function given to on_commit() failed: %s. The transaction is committed all the same.",
        name_of(fn),
    )
