"""Logins that a callable or a program gives, because they change while the app runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from time import monotonic, time
from typing import Any

from ..errors import ConfigError
from ..per_process import PerProcess
from .interpolation import KeyPath, References, dotted, unresolved_reference
from .login import Login
from .values import Setting, seconds, text

# A login that expires is asked for anew when this part of its time is over: connections that are
# opened shortly before its end would not be worth their while.
_CACHED_PART_OF_LIFE = 0.8


class _Cache:
    """The last login of a source in one process."""

    def __init__(self) -> None:
        # The callable could, by mistake, connect with the login that it is asked for.
        self.lock = threading.RLock()
        self.login: Login | None = None
        self.until: float = 0.0


class LoginSource:
    """What gives the login of a config: ``password`` as a callable, or ``from_command``.

    :param kind: ``callable`` or ``command``.
    :param ask: gives the password, or a mapping with ``password``, ``user`` and ``expiry``.
    :param place: how errors name it.
    :param identity: equal for sources that are the same.
    :param ttl: seconds for which an answer serves.
    """

    def __init__(
        self,
        kind: str,
        ask: Callable[[], object],
        place: str,
        identity: tuple[Any, ...],
        ttl: float = 0.0,
    ) -> None:
        self.kind = kind
        self.identity = identity
        self._ask = ask
        self._place = place
        self._ttl = ttl
        self._caches: PerProcess[_Cache] = PerProcess(_Cache)

    def __repr__(self) -> str:
        return f"<LoginSource {self._place}>"

    def get(self) -> Login:
        """A login, asked for now or within ``ttl``. Blocks while it is asked for.

        :raises ConfigError: for an answer that is no login, or none.
        """
        if not self._ttl:
            return self._ask_now()
        cache = self._caches.here()
        with cache.lock:
            if cache.login is None or monotonic() >= cache.until:
                asked_at = monotonic()
                login = self._ask_now()
                lifetime = self._ttl
                if login.expiry is not None:
                    lifetime = min(lifetime, (login.expiry - time()) * _CACHED_PART_OF_LIFE)
                cache.login, cache.until = login, asked_at + lifetime
            return cache.login

    def get_another(self, refused: Login) -> Login | None:
        """A login in place of one that the server refused; None if the source has no other."""
        cache = self._caches.here()
        with cache.lock:
            if cache.login is refused:
                cache.login = None
        login = self.get()
        return login if login.kwargs() != refused.kwargs() else None

    def _ask_now(self) -> Login:
        from .login_answers import read_login  # few programs need it

        return read_login(self._ask(), self._place)


def login_source(
    password: object, section: str, origin: str, references: References | None
) -> LoginSource | None:
    """The source that stands in the place of the password of *section*; None if none does.

    :raises ConfigError: for one that can never give a login.
    """
    path: KeyPath = (section, "password")
    place = f"{origin}: {dotted(path)}"
    if callable(password):
        if asyncio.iscoroutinefunction(password):
            raise ConfigError(
                f"{place} is a coroutine function; give a plain one, which may block: async "
                "connections call it in a thread."
            )
        return LoginSource("callable", password, place, _identity_of(password))
    if not isinstance(password, Mapping) or "from_command" not in password:
        return None
    if references is None:
        raise unresolved_reference(place)
    if password.keys() - {"from_command", "ttl"}:
        raise ConfigError(f"{place}: from_command goes with ttl, and with nothing else.")
    ttl = 0.0
    if password.get("ttl") is not None:
        ttl = seconds(Setting(f"{place}.ttl", password["ttl"], ""), zero=True)
    words = password["from_command"]
    place += ".from_command"
    if not isinstance(words, (list, tuple)) or not words:
        raise ConfigError(
            f"{place} must be a list with the program and its arguments, such as [pass, show, db]; "
            "no shell runs it."
        )
    path = (*path, "from_command")
    for word in words:
        text(Setting(f"{place}, each of its words,", word, ""))
        references.check(word, path)

    def ask() -> object:
        from .login_answers import answer_of_command

        command = [str(references.resolve(word, path)) for word in words]
        return answer_of_command(command, references.folder, place)

    identity = (str(references.folder.absolute()), *map(str, words), ttl)
    return LoginSource("command", ask, place, identity, ttl)


def _identity_of(source: Callable[[], object]) -> tuple[Any, ...]:
    """What makes two callables the same for as long as both live."""
    owner = getattr(source, "__self__", None)
    if owner is not None:  # Each access to a method makes another object of it.
        return id(owner), getattr(source, "__qualname__", "")
    return (id(source),)
