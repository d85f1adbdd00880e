"""The type of options that are a number of seconds."""

from __future__ import annotations

import math
from typing import Any

import click


class Seconds(click.FloatRange):
    """More than 0 s and at most a day, and a number."""

    name = "seconds"

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True, max=86_400)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        try:
            float(value)
        except ValueError:
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        seconds: float = super().convert(value, param, ctx)
        if math.isnan(seconds):  # Lies outside no range, by every comparison.
            self.fail(f"{value!r} is not a number of seconds.", param, ctx)
        return seconds
