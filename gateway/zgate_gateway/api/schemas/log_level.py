"""How much the gateway logs."""

from __future__ import annotations

from pydantic import AwareDatetime, Field
from zgate_config.logs import LogLevel

from .base import Answer, Request

__all__ = ["MAX_LOG_LEVEL_S", "LogLevel", "LogLevelRequest", "LogLevelState"]

#: A week: what has to be told longer belongs into the configuration.
MAX_LOG_LEVEL_S = 7 * 86_400


class LogLevelState(Answer):
    """``GET /v1/log-level``, and what became of ``PUT``."""

    level: LogLevel = Field(description="in force, in all processes of the gateway")
    configured: LogLevel = Field(description="of the configuration: at the next start, or SIGHUP")
    until: AwareDatetime | None = Field(
        None, description="when the configured one is back by itself; null: not before that"
    )


class LogLevelRequest(Request):
    """The body of ``PUT /v1/log-level``."""

    level: LogLevel
    for_s: float | None = Field(
        None, gt=0, le=MAX_LOG_LEVEL_S, description="then the configured one is back; null: no end"
    )
