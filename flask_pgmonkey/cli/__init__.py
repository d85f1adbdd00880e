"""``flask pgmonkey …``, the command line: one file here for each command or pair of commands.

Flask loads this module for every ``flask --help``, so the commands are imported only when named.
"""

from __future__ import annotations

import errno
import re
from importlib import import_module
from typing import Any

import click
import psycopg

from ..errors import ConfigError, PGMonkeyError

COMMANDS = {
    "test": "test_connections:test_connections",
    "create-config": "create_config:create_config",
    "show-config": "show_config:show_config",
    "generate-code": "generate_code:generate_code",
    "server-config": "server_config:server_config",
    "import-csv": "csv:import_csv",
    "export-csv": "csv:export_csv",
    "psql": "psql:psql",
}
"""The module of this package, and the name in it, of each command, in the order of the help."""


class WrongUsage(click.ClickException):
    """What the user has to write differently: one line on stderr, exit code 2."""

    exit_code = 2


class WorkFailed(click.ClickException):
    """Work that was asked for properly and failed: one line on stderr, exit code 1."""

    exit_code = 1


class CommandGroup(click.Group):
    """Imports a command when it is named, and shows its errors in one line.

    A plain click group rather than Flask's ``AppGroup``, whose commands cannot run without an app.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module_name, _, attribute = COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(f"{__name__}.{module_name}"), attribute)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            path = (error.ctx or ctx).command_path
            message = without_uris(error.format_message())
            raise WrongUsage(f"{message} (see {path} --help)") from error
        except ConfigError as error:
            raise WrongUsage(one_line(error)) from error
        except (PGMonkeyError, psycopg.Error) as error:
            raise WorkFailed(one_line(error)) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # The reader of our stdout left; click ends quietly.
                raise
            raise WorkFailed(one_line(error)) from error


def one_line(error: BaseException) -> str:
    """The text of *error* without its line breaks; its type where it has no text."""
    return " ".join(str(error).split()) or type(error).__name__


def without_uris(text: str) -> str:
    """*text* with only the scheme of each URI in it: what was typed may hold a password."""
    return re.sub(r"://\S+?(?=['\")]*\.?(?:\s|$))", "://…", text)


@click.group(cls=CommandGroup, short_help="Test, configure and fill PostgreSQL databases.")
def pgmonkey() -> None:
    """Test, configure and fill the PostgreSQL databases of a Flask app.

    Every command works on the databases of the app (--bind picks one) or, without any app, on a
    config file (--config).

    \b
      flask --app shop pgmonkey test
      flask pgmonkey test --config db.yaml
    """
