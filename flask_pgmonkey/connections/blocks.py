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
from threading import get_ident
from types import FrameType
from typing import Generic, TypeVar

T = TypeVar("T")

_ENDS_ITS_OWN_BLOCKS = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def calling_frame() -> FrameType:
    """The caller of the method that calls this; the method itself where no Python code called it,
    but a greenlet's start or an exit handler."""
    method = sys._getframe(1)
    return method.f_back or method


def frame_of_block(maker: FrameType) -> FrameType:
    """Where the block is current that the calling generator, one of contextlib's managers, opens.

    That is in *maker*, which made the manager, but for a function that it decorates: in each call.
    """
    entering = sys._getframe(2).f_back
    if entering is None or entering.f_globals is not vars(contextlib):
        return maker
    return entering if entering.f_code.co_name == "inner" else maker


class Blocks(Generic[T]):
    """What each open block holds, innermost last."""

    def __init__(self) -> None:
        # Ordered; whatever is done to it is atomic, as threads do it at the same time.
        self._open: dict[_Block[T], None] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, frame: FrameType) -> bool:
        return any(block.frame_id == id(frame) for block in list(self._open))

    def enter(self, frame: FrameType, held: T, *, knows_its_end: bool = False) -> None:
        """Note that a block of *frame* holds *held*.

        :param knows_its_end: the block will :meth:`drop` what it holds, and never :meth:`leave`.
            Until then it has to keep *frame* itself: kept here, a frame that has returned would
            keep its variables, and so a context manager that was dropped without its end.
        """
        self._open[_Block(frame, held, knows_its_end)] = None

    def leave(self, frame: FrameType) -> T | None:
        """What the innermost block of *frame* holds, taken out; None if there is no such block."""
        for block in reversed(list(self._open)):
            if block.frame is frame:
                break
        else:
            delegated = self._delegated_blocks(frame)
            if len(delegated) > 1:
                # The object that entered the block, an ExitStack for example, leaves it.
                myself = frame.f_locals.get("self")
                delegated = [b for b in delegated if b.opener is myself]
            if not delegated:
                return None
            block = delegated[0]
        del self._open[block]
        return block.held

    def leave_newest(self) -> T | None:
        """What the block of this thread or task that was opened last holds, taken out; that of
        another, where this has none and none runs in another thread. None if there is none.

        For an object that one holder has at a time, where something else than the frame that
        entered the block leaves it.
        """
        here, running = _thread_or_task(), _frames_of_other_threads()
        waiting = [
            block
            for block in reversed(list(self._open))
            if block.frame is not None and block.frame not in running
        ]
        waiting.sort(key=lambda block: block.entered_by != here)
        if not waiting:
            return None
        del self._open[waiting[0]]
        return waiting[0].held

    def drop(self, frame: FrameType, held: T) -> None:
        """Take the block of *frame* out that holds *held*, wherever it stands."""
        for block in list(self._open):
            if block.frame_id == id(frame) and block.held is held:
                del self._open[block]
                break

    def current(self, frame: FrameType) -> T | None:
        """What the innermost block around *frame* holds: its own, or that of its nearest caller."""
        innermost = {block.frame_id: block for block in list(self._open)}
        if not innermost:
            return None
        caller: FrameType | None = frame
        while caller is not None:
            if block := innermost.get(id(caller)):
                return block.held
            caller = caller.f_back
        delegated = self._delegated_blocks(frame)
        return delegated[0].held if delegated else None

    def _delegated_blocks(self, frame: FrameType) -> list[_Block[T]]:
        """Blocks that were opened by calling ``__enter__`` by hand.

        Their frames have returned, so they are none of those on the stack, and no generator's. The
        ones of this thread or task, the last opened first.
        """
        running = set()
        caller: FrameType | None = frame
        while caller is not None:
            running.add(caller)
            caller = caller.f_back
        here = _thread_or_task()
        return [
            block
            for block in reversed(list(self._open))
            if block.frame is not None
            and block.frame not in running
            and not block.frame.f_code.co_flags & _ENDS_ITS_OWN_BLOCKS
            and block.entered_by == here
        ]


class _Block(Generic[T]):
    __slots__ = ("entered_by", "frame", "frame_id", "held")

    def __init__(self, frame: FrameType, held: T, knows_its_end: bool) -> None:
        self.frame_id = id(frame)
        self.frame = None if knows_its_end else frame
        self.held = held
        self.entered_by = _thread_or_task()

    @property
    def opener(self) -> object:
        return self.frame.f_locals.get("self") if self.frame is not None else None


def _frames_of_other_threads() -> set[FrameType]:
    frames = set()
    for thread, innermost in sys._current_frames().items():
        frame: FrameType | None = innermost if thread != get_ident() else None
        while frame is not None:
            frames.add(frame)
            frame = frame.f_back
    return frames


def _thread_or_task() -> object:
    # Tasks of one loop share its thread; a coroutine that is not on the stack of its task is over.
    task = asyncio.current_task() if asyncio._get_running_loop() is not None else None
    return task or get_ident()
