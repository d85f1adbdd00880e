"""What a server is logged in to with, beside its address."""

from __future__ import annotations


class Login:
    """What a source gave.

    :param expiry: when it ends, in seconds since 1970; None for never.
    """

    __slots__ = ("expiry", "password", "user")

    def __init__(self, password: str, user: str | None = None, expiry: float | None = None) -> None:
        self.password: str = password
        self.user: str | None = user
        self.expiry: float | None = expiry

    def __repr__(self) -> str:
        return "<Login>"

    def kwargs(self) -> dict[str, str]:
        """The arguments for psycopg."""
        if self.user is None:
            return {"password": self.password}
        return {"user": self.user, "password": self.password}
