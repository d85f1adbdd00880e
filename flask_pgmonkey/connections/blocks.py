"""The open ``with`` blocks of one connection object, found by the frame that runs them.

A stack for each thread or context would hand a block the connection of another one as soon as
two generators take turns or a block ends in another thread. The frame that runs the ``with``
statement is the same at its start and at its end, wherever that is.
"""

from __future__ import annotations

import inspect
from threading import get_ident
from types import FrameType
from typing import Generic, TypeVar

T = TypeVar("T")

_ENDS_ITS_OWN_BLOCKS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Blocks(Generic[T]):
    """What each open block holds, innermost last."""

    def __init__(self) -> None:
        self._held: dict[FrameType, list[tuple[T, int]]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, frame: FrameType) -> bool:
        return frame in self._held

    def enter(self, frame: FrameType, held: T) -> None:
        """Note that a block of *frame* holds *held*."""
        self._held.setdefault(frame, []).append((held, get_ident()))

    def leave(self, frame: FrameType) -> T | None:
        """What the innermost block of *frame* holds, taken out; None if there is no such block."""
        owner = frame if frame in self._held else self._delegating_frame(frame)
        if owner is None:
            return None
        stack = self._held[owner]
        held, _ = stack.pop()
        if not stack:
            del self._held[owner]
        return held

    def drop(self, frame: FrameType, held: T) -> None:
        """Take the block of *frame* out that holds *held*, wherever it stands."""
        stack = self._held.get(frame, [])
        for position, (candidate, _) in enumerate(stack):
            if candidate is held:
                del stack[position]
                break
        if not stack:
            self._held.pop(frame, None)

    def current(self, frame: FrameType | None) -> T | None:
        """What the innermost block around *frame* holds: its own, or that of its nearest caller."""
        while frame is not None and self._held:
            if stack := self._held.get(frame):
                return stack[-1][0]
            frame = frame.f_back
        return None

    def _delegating_frame(self, frame: FrameType) -> FrameType | None:
        """The frame of a block that was opened by calling ``__enter__`` by hand.

        Its frame has returned, so it is none of those on the stack, and no generator's. Of several
        in this thread the last opened is meant.
        """
        running = set()
        caller: FrameType | None = frame
        while caller is not None:
            running.add(caller)
            caller = caller.f_back
        thread = get_ident()
        for candidate in reversed(self._held):
            if (
                candidate not in running
                and not candidate.f_code.co_flags & _ENDS_ITS_OWN_BLOCKS
                and self._held[candidate][-1][1] == thread
            ):
                return candidate
        return None
