"""The ``log`` section that every daemon's configuration has."""

from __future__ import annotations

from typing import Literal

from zgate_config.model import StrictModel


class LogSettings(StrictModel):
    """The daemon's own log.

    :ivar level: lines below it are left out. Read again at SIGHUP.
    :ivar format: ``json``: an object a line on standard output; ``journal``: journald's fields;
        ``auto``: the journal where standard output leads there, else JSON.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "journal"] = "auto"
