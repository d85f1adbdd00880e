"""``flask pgmonkey …``, the command line: one file here for each command.

Flask loads this module for every ``flask --help``, so it imports nothing but click: the commands
are imported when named, and what knows the words for errors when there is one.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


class _Place(NamedTuple):
    module: str
    """That of this package, and the function in it."""
    summary: str


COMMANDS = {
    "test": _Place("try_connections", "Test every connection type of every database."),
    "create-config": _Place("create_config", "Write a commented config file."),
    "show-config": _Place("show_config", "Show the config in use, and where each value is from."),
    "generate-code": _Place("generate_code", "Print a complete program that queries."),
    "inspect": _Place("inspect", "Show tables, or the columns of one; write dataclasses."),
    "server-config": _Place("server_config", "Recommend settings for the server, or audit them."),
    "import-csv": _Place("import_csv", "Append the rows of a CSV file to a table."),
    "export-csv": _Place("export_csv", "Write a table, or a query's rows, to a CSV file."),
    "top": _Place("top", "Show what the server's sessions do, and who waits."),
    "migrate": _Place("migrate", "Change the schema by SQL files."),
    "psql": _Place("psql", "Open psql on the database."),
    "exec": _Place("exec_", "Run a program with what leads it to the database."),
    "url": _Place("url", "Print the URL of the database."),
}
"""In the order of the help."""


class CommandGroup(click.Group):
    """Imports a command when it is named, and shows its errors in one line.

    A plain click group rather than Flask's ``AppGroup``, whose commands cannot run without an app.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, summary = COMMANDS[cmd_name]
        command: click.Command = getattr(import_module(f"{__name__}.{module}"), module)
        command.short_help = summary
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            from .errors import WrongUsage

            raise WrongUsage(
                f"{error.option_name} goes after the command, if it has that:"
                f" {ctx.command_path} COMMAND {error.option_name} … (see {ctx.command_path} --help)"
            ) from error

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not ctx.resilient_parsing:
            from difflib import get_close_matches

            near = get_close_matches(args[0].lower().replace("_", "-"), COMMANDS, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}."
            ctx.fail(f"There is no command {args[0]!r}; {remedy}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, place.summary) for name, place in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        return [
            *(
                CompletionItem(name, help=place.summary)
                for name, place in COMMANDS.items()
                if name.startswith(incomplete)
            ),
            *click.Command.shell_complete(self, ctx, incomplete),
        ]

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            from .errors import put_in_words

            shown = put_in_words(error, ctx)
            if shown is error:
                raise
            raise shown from error


@click.group(cls=CommandGroup, short_help="Test, configure and fill PostgreSQL databases.")
def pgmonkey() -> None:
    """Test, configure and fill the PostgreSQL databases of a Flask app.

    Every command works on the databases of the app (--bind picks one) or, without any app, on a
    config file (--config).

    \b
      flask --app shop pgmonkey test
      flask pgmonkey test --config database.yaml
    """
