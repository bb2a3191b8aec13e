"""``zgatectl log-level``: how much the gateway logs, while it runs."""

from __future__ import annotations

import click
from zgate_gateway.api import schemas
from zgate_gateway.api.schemas.log_level import MAX_LOG_LEVEL_S

from .client import GatewayClient
from .durations import Duration
from .options import Invocation, gateway_command
from .output import print_json, time_text


@click.command("log-level")
@click.argument("level", required=False, type=click.Choice([one.value for one in schemas.LogLevel]))
@click.option(
    "--for", "for_s", type=Duration(MAX_LOG_LEVEL_S), metavar="DURATION",
    help="Then the configured level comes back by itself: 90s, 10m, 2h.  [default: no end]",
)  # fmt: skip
@gateway_command
def log_level(invocation: Invocation, *, level: str | None, for_s: float | None) -> None:
    """Say how much the gateway logs; with LEVEL, change it at once, in all its processes.

    Without --for it stays until the gateway's next start, or until SIGHUP (systemctl reload):
    these make it what the configuration says. debug tells connection IDs and addresses of clients.
    """
    if level is None and for_s is not None:
        raise click.UsageError("--for needs a LEVEL.")
    with GatewayClient(invocation.socket_path) as gateway:
        if level is None:
            answer = gateway.log_level()
        else:
            request = schemas.LogLevelRequest(level=schemas.LogLevel(level), for_s=for_s)
            answer = gateway.set_log_level(request)
    if invocation.as_json:
        print_json(answer)
    else:
        click.echo(_told(answer))


def _told(answer: schemas.LogLevelState) -> str:
    if answer.level is answer.configured:
        return f"{answer.level}, as configured"
    until = "SIGHUP or the next start" if answer.until is None else time_text(answer.until)
    return f"{answer.level} until {until}; configured: {answer.configured}"
