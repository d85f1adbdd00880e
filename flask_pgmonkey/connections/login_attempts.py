"""Who may log in while the server refuses logins: one at a time, and those who wait hear of it.

A wrong password fails every request of every process. Were each to try it, and several at once, the
server's log would fill, and a server that locks accounts would lock this one.
"""

from __future__ import annotations

import os
from time import monotonic

from ..config import Config
from .connect_errors import copy_for_waiter, is_login_refused

PAUSE = 0.02
"""Seconds after which who may not begin yet asks again."""


class _Refusals:
    """What is remembered of a config while logins with it are refused.

    :ivar trying: the one attempt that may go on, under a single key.
    """

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.at = monotonic()
        self.trying: dict[None, LoginAttempt] = {}


# By process and config; only of configs whose last login was refused.
_refusals: dict[tuple[int, str], _Refusals] = {}


class LoginAttempt:
    """One attempt to log in with a config. Neither waits nor blocks."""

    def __init__(self, config: Config) -> None:
        self._key = os.getpid(), config.key
        self._wanted_at = monotonic()
        self._has_asked_again = False

    def may_begin(self) -> bool:
        """Whether it may begin now; otherwise ask again after :data:`PAUSE`.

        :raises psycopg.OperationalError: that of another attempt which has been refused meanwhile.
        """
        refusals = _refusals.get(self._key)
        if refusals is None:
            return True
        if refusals.at > self._wanted_at:
            raise copy_for_waiter(refusals.error)
        return refusals.trying.setdefault(None, self) is self

    def may_ask_again(self, error: Exception) -> bool:
        """Whether another login may be asked for after *error*: once, and after a refusal."""
        if self._has_asked_again or not is_login_refused(error):
            return False
        self._has_asked_again = True
        return True

    def end(self, error: BaseException | None = None) -> None:
        """To be called when it has ended, with its error if it failed."""
        refusals = _refusals.get(self._key)
        if isinstance(error, Exception) and is_login_refused(error):
            # A copy, without the frames of this attempt and the passwords in them.
            refusal = copy_for_waiter(error)
            refusals = refusals or _refusals.setdefault(self._key, _Refusals(refusal))
            refusals.error, refusals.at = refusal, monotonic()
        elif refusals is not None and (error is None or isinstance(error, Exception)):
            _refusals.pop(self._key, None)
        if refusals is not None and refusals.trying.get(None) is self:
            del refusals.trying[None]
