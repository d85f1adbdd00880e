"""``flask pgmonkey …``, the command line: one file here for each command.

Flask loads this module for every ``flask --help``, so the commands are imported only when named.
"""

from __future__ import annotations

import errno
from importlib import import_module
from typing import Any

import click
import psycopg

from ..errors import ConfigError, PGMonkeyError
from ..printable import one_line
from .errors import WorkFailed, WrongUsage, refusal, without_uris

COMMANDS = {
    "test": "try_connections",
    "create-config": "create_config",
    "show-config": "show_config",
    "generate-code": "generate_code",
    "inspect": "inspect",
    "server-config": "server_config",
    "import-csv": "import_csv",
    "export-csv": "export_csv",
    "top": "top",
    "migrate": "migrate",
    "psql": "psql",
    "exec": "exec_",
    "url": "url",
}
"""The module of this package, and the function in it, of each command, in the order of the help."""


class CommandGroup(click.Group):
    """Imports a command when it is named, and shows its errors in one line.

    A plain click group rather than Flask's ``AppGroup``, whose commands cannot run without an app.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        name = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"{__name__}.{name}"), name)
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
        except psycopg.Error as error:
            raise refusal(error) from error
        except PGMonkeyError as error:
            raise WorkFailed(one_line(error)) from error
        except OSError as error:
            if error.errno == errno.EPIPE:  # The reader of our stdout left; click ends quietly.
                raise
            raise WorkFailed(one_line(error)) from error


@click.group(cls=CommandGroup, short_help="Test, configure and fill PostgreSQL databases.")
def pgmonkey() -> None:
    """Test, configure and fill the PostgreSQL databases of a Flask app.

    Every command works on the databases of the app (--bind picks one) or, without any app, on a
    config file (--config).

    \b
      flask --app shop pgmonkey test
      flask pgmonkey test --config db.yaml
    """
