"""``flask pgmonkey show-config``: the config in use, and where each value comes from."""

from __future__ import annotations

import json

import click

from ..config.provenance import ShownValue, shown_values
from .targets import Target, database_options
from .terminal import print_table


@click.command("show-config")
@database_options
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def show_config(target: Target, as_json: bool) -> None:
    """Show the config of a database as it is used, and where each value comes from.

    Values come from the file, the environment, a service, the app, our defaults or libpq's.
    Passwords and other secrets are redacted.

    \b
      flask --app shop pgmonkey show-config --bind reports
      flask pgmonkey show-config --config database.yaml --resolve-env
      flask pgmonkey show-config --config database.yaml --json
    """
    values = shown_values(target.config)
    for name, cls in (target.classes or {}).items():
        values.append(ShownValue(f"types.{name}", cls.__qualname__ if cls else None, "app"))
    if as_json:
        click.echo(json.dumps([value._asdict() for value in values], indent=2))
        return
    rows = [(value.key, displayed(value.value), value.origin) for value in values]
    print_table(["Key", "Value", "Origin"], rows)


def displayed(value: object) -> str:
    """Write a value as it would stand in the file."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
