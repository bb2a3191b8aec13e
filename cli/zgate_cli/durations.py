"""Durations on the command line: ``90s``, ``10m``, ``2h``, ``1d``; or plain seconds."""

from __future__ import annotations

import math
import re
from typing import Any

import click

_UNITS_S = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)([smhd]?)")


class Seconds(click.FloatRange):
    """Seconds between two bounds. NaN is between all of them, for a float range."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """See `click.ParamType.convert`."""
        seconds = float(super().convert(value, param, ctx))
        if math.isnan(seconds):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return seconds


class Duration(click.ParamType[float]):
    """Seconds, above 0 and at most so many."""

    name = "duration"

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """See `click.ParamType.convert`."""
        if isinstance(value, int | float):
            return float(value)
        found = _DURATION.fullmatch(str(value))
        seconds = float(found[1]) * _UNITS_S[found[2]] if found else 0.0
        if not 0 < seconds <= self._most_s:
            most = f"at most {self._most_s / 86_400:g} days"
            self.fail(f"{value!r} is no duration such as 90s, 10m or 2h, {most}.", param, ctx)
        return seconds
