"""The open ``with`` blocks of one connection object, found by the frame that runs them.

A stack for each thread or context would hand a block the connection of another one as soon as
two generators take turns or a block ends in another thread. The frame that runs the ``with``
statement is the same at its start and at its end, wherever that is.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
from types import FrameType
from typing import Generic, TypeVar

T = TypeVar("T")


def calling_frame() -> FrameType:
    """The caller of the method that calls this; the method itself where no Python code called it,
    but a greenlet's start or an exit handler."""
    method = sys._getframe(1)
    return method.f_back or method


def entering_frame() -> FrameType:
    """What enters the calling generator, one of contextlib's managers."""
    manager = sys._getframe(2)
    return manager.f_back or manager


def is_of_contextlib(frame: FrameType) -> bool:
    """Whether a manager of contextlib runs in *frame*: its ``with`` statement ends elsewhere."""
    return frame.f_globals is vars(contextlib)


def may_be_dropped(frame: FrameType) -> bool:
    """Whether a block that *frame* entered can end otherwise than by running on from there: it is
    an async generator, or a manager that somebody keeps."""
    return not frame.f_code.co_flags & inspect.CO_COROUTINE or is_of_contextlib(frame)


async def let_dropped_generators_end() -> None:
    """Give way to asyncio, which ends an async generator that was dropped in a task of its own:
    that needs two passes of the loop to begin."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)


class Blocks(Generic[T]):
    """What each open block holds.

    Whoever enters a block keeps its frame until it has left, so that no other gets the same id.
    """

    def __init__(self) -> None:
        # One thread at a time runs a frame, so no two change the same list.
        self._of_frame: dict[int, list[T]] = {}

    def __contains__(self, frame: FrameType) -> bool:
        return id(frame) in self._of_frame

    def enter(self, frame: FrameType, held: T) -> None:
        """Note that a block of *frame* holds *held*."""
        self._of_frame.setdefault(id(frame), []).append(held)

    def leave(self, frame: FrameType, held: T | None = None) -> T | None:
        """What a block of *frame* holds, taken out: the one that holds *held*, or else the
        innermost; None if there is no such block."""
        of_frame = self._of_frame.get(id(frame))
        if of_frame is None:
            return None
        if held is None:
            held = of_frame[-1]
        of_frame.remove(held)
        if not of_frame:
            del self._of_frame[id(frame)]
        return held

    def current(self, frame: FrameType | None) -> T | None:
        """What the innermost block around *frame* holds: its own, or that of its nearest caller."""
        if not self._of_frame:
            return None
        while frame is not None:
            if of_frame := self._of_frame.get(id(frame)):
                return of_frame[-1]
            frame = frame.f_back
        return None
