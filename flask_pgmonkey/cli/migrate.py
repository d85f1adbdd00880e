"""``flask pgmonkey migrate``: the schema, by plain SQL files."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import click

from ..extension import DEFAULT
from ..migrations import (
    Migrations,
    files_in,
    find_tool,
    folder_of,
    in_transaction,
    new_migration,
    up_block,
)
from .errors import WorkFailed, WrongUsage
from .targets import Target, database_options, extension_of
from .terminal import print_table, say

ACTIONS = ("up", "new", "down", "status", "check", "dump", "lint")


@click.command()
@database_options
@click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the files are; without it, what PGMONKEY_MIGRATIONS says, or migrations.",
)
@click.option("--json", "as_json", is_flag=True, help="With status: print JSON.")
@click.argument("action", type=click.Choice(ACTIONS), default="up", metavar="[ACTION]")
@click.argument("name", required=False)
def migrate(
    target: Target, folder: Path | None, as_json: bool, action: str, name: str | None
) -> None:
    """Apply the migrations that the database does not have yet, or what ACTION says.

    Needs the extra migrations, which brings dbmate.

    \b
      up          apply what is pending; this is done without any ACTION too
      new NAME    make an empty file for the next migration
      down        roll the last one back
      status      list all
      check       exit code 1 if any is pending
      dump        write the schema to schema.sql beside the folder
      lint        look for what locks too much, with squawk

    \b
      flask --app shop pgmonkey migrate new add_orders
      flask --app shop pgmonkey migrate
      flask --app shop pgmonkey migrate status --bind reports
    """
    if (action == "new") != (name is not None):
        raise WrongUsage("migrate new goes with a NAME, and no other ACTION does.")
    if as_json and action != "status":
        raise WrongUsage("--json goes with migrate status.")
    folder = folder or folder_for(target)
    if action == "new":
        say(new_migration(folder, name or ""))
        return
    if action == "lint":
        click.get_current_context().exit(lint(folder))
    with ending_by_signals():
        run(Migrations(target.config, folder), action, as_json, name_of_dump(target))


def run(migrations: Migrations, action: str, as_json: bool, dump: str) -> None:
    if action == "up":
        if not migrations.up(say):
            say("Nothing is pending.")
    elif action == "down":
        if not migrations.down(say):
            say("No migration is applied.")
    elif action == "dump":
        # Not among the migrations, all of which test kits run.
        path = migrations.folder.parent / dump
        migrations.dump(path)
        say(path)
    elif action == "check":
        pending = migrations.pending()
        for name in pending:
            say(name)
        if pending:
            raise WorkFailed("What is listed is pending: flask pgmonkey migrate applies it.")
    elif as_json:
        click.echo(json.dumps([vars(migration) for migration in migrations.status()], indent=2))
    else:
        print_table(["State", "File"], [(m.state, m.name) for m in migrations.status()])


def name_of_dump(target: Target) -> str:
    is_bind = target.app is not None and target.name != DEFAULT
    return f"schema_{target.name}.sql" if is_bind else "schema.sql"


def folder_for(target: Target) -> Path:
    if target.app is None:
        return Path("migrations")
    with target.app.app_context():
        return folder_of(extension_of(target.app).bind(target.name))


@contextmanager
def ending_by_signals() -> Iterator[None]:
    """Within the block SIGTERM and SIGHUP end it properly: with dbmate, and with the passfile."""

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def lint(folder: Path) -> int:
    """The exit code of squawk, which is told what we see to anyway."""
    program = find_tool("squawk")
    if program is None:
        raise WorkFailed("migrate lint needs the program squawk: pip install squawk-cli")
    seen_to = "require-lock-timeout,require-statement-timeout"
    code = 0
    for path in files_in(folder).values():
        options = ["--exclude", seen_to, "--stdin-filepath", str(path)]
        if in_transaction(path, "up"):
            options.append("--assume-in-transaction")
        linted = subprocess.run([program, *options], input=up_block(path), encoding="utf-8")
        code = max(code, linted.returncode)
    return code
