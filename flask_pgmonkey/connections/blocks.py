"""The open ``with`` blocks of one connection object, found by the frame that runs them.

A stack for each thread or context would hand a block the connection of another one as soon as
two generators take turns or a block ends in another thread. The frame that runs the ``with``
statement is the same at its start and at its end, wherever that is.
"""

from __future__ import annotations

import asyncio
import inspect
from threading import get_ident
from types import FrameType
from typing import Generic, TypeVar

T = TypeVar("T")

_ENDS_ITS_OWN_BLOCKS = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


class Blocks(Generic[T]):
    """What each open block holds, innermost last."""

    def __init__(self) -> None:
        self._held: dict[FrameType, list[_Block[T]]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, frame: FrameType) -> bool:
        return frame in self._held

    def enter(self, frame: FrameType, held: T, *, knows_its_end: bool = False) -> None:
        """Note that a block of *frame* holds *held*.

        :param knows_its_end: the block will :meth:`drop` what it holds, and never :meth:`leave`.
        """
        self._held.setdefault(frame, []).append(_Block(held, knows_its_end))

    def leave(self, frame: FrameType) -> T | None:
        """What the innermost block of *frame* holds, taken out; None if there is no such block."""
        block = self._innermost(frame)
        if block is None:
            delegated = self._delegated_blocks(frame)
            if len(delegated) > 1:
                # The object that entered the block, an ExitStack for example, leaves it.
                myself = frame.f_locals.get("self")
                delegated = [d for d in delegated if d[0].f_locals.get("self") is myself]
            if not delegated:
                return None
            frame, block = delegated[0]
        self.drop(frame, block.held)
        return block.held

    def drop(self, frame: FrameType, held: T) -> None:
        """Take the block of *frame* out that holds *held*, wherever it stands."""
        stack = self._held.get(frame, [])
        for position, block in enumerate(stack):
            if block.held is held:
                del stack[position]
                break
        if not stack:
            self._held.pop(frame, None)

    def current(self, frame: FrameType) -> T | None:
        """What the innermost block around *frame* holds: its own, or that of its nearest caller."""
        caller: FrameType | None = frame
        while caller is not None and self._held:
            if stack := self._held.get(caller):
                return stack[-1].held
            caller = caller.f_back
        delegated = self._delegated_blocks(frame) if self._held else []
        return delegated[0][1].held if delegated else None

    def _innermost(self, frame: FrameType) -> _Block[T] | None:
        """The last block of *frame* that waits for :meth:`leave`."""
        for block in reversed(list(self._held.get(frame, ()))):
            if not block.knows_its_end:
                return block
        return None

    def _delegated_blocks(self, frame: FrameType) -> list[tuple[FrameType, _Block[T]]]:
        """Blocks that were opened by calling ``__enter__`` by hand, and their frames.

        Those have returned, so they are none of those on the stack, and no generator's. The ones
        of this thread or task, the last opened first.
        """
        running = set()
        caller: FrameType | None = frame
        while caller is not None:
            running.add(caller)
            caller = caller.f_back
        here = _thread_or_task()
        return [
            (candidate, block)
            for candidate in reversed(list(self._held))  # other threads enter and leave meanwhile
            if candidate not in running
            and not candidate.f_code.co_flags & _ENDS_ITS_OWN_BLOCKS
            and (block := self._innermost(candidate)) is not None
            and block.entered_by == here
        ]


class _Block(Generic[T]):
    __slots__ = ("entered_by", "held", "knows_its_end")

    def __init__(self, held: T, knows_its_end: bool) -> None:
        self.held = held
        self.knows_its_end = knows_its_end
        self.entered_by = _thread_or_task()


def _thread_or_task() -> object:
    # Tasks of one loop share its thread; a coroutine that is not on the stack of its task is over.
    task = asyncio.current_task() if asyncio._get_running_loop() is not None else None
    return task or get_ident()
