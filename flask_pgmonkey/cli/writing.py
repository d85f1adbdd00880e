"""Writing the files that commands make."""

from __future__ import annotations

from pathlib import Path

from ..files import new_file
from .errors import WorkFailed
from .terminal import say_aside


def write_new_file(path: Path, content: str, *, mode: int | None = None, force: bool) -> None:
    """Write *content* to *path*, whole or not at all, and say so.

    :param force: whether a file that is there is replaced.
    :raises WorkFailed: if it is there and may not be.
    """
    try:
        with new_file(path, mode=mode, replace=force) as file:
            file.write(content.encode())
    except FileExistsError as error:
        raise WorkFailed(f"{path} exists already; --force replaces it.") from error
    say_aside(f"Wrote {path}.")
