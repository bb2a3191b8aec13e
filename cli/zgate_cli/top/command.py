"""``zgatectl top``: the command line."""

from __future__ import annotations

import sys
import time
from datetime import UTC, datetime

import click
from zgate_gateway.api import schemas

from zgate_cli.answers import TopSnapshot
from zgate_cli.client import GatewayClient
from zgate_cli.durations import Seconds
from zgate_cli.errors import BadInput
from zgate_cli.options import Invocation, gateway_command
from zgate_cli.top.state import MAX_FILTER_CHARS, State

#: So that the first snapshot has rates: it is the second answer.
_FIRST_RATES_S = 1.0


@click.command()
@click.option(
    "--interval", "-i", "interval_s", type=Seconds(0.2, 3600), default=1.0,
    show_default=True, metavar="SECONDS", help="How often the gateway is asked.",
)  # fmt: skip
@click.option(
    "--sort", "-s", type=click.Choice([one.value for one in schemas.SessionSort]),
    default=schemas.SessionSort.RATE.value, show_default=True, help="What comes first.",
)  # fmt: skip
@click.option("--reverse", "-r", is_flag=True, help="The other way round.")
@click.option("--filter", "-f", "part", default="", help="Part of a name, group or address.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=50, show_default=True,
    help="Sessions in a snapshot; the screen shows as many as fit.",
)  # fmt: skip
@click.option(
    "--count", "-c", type=click.IntRange(0), default=1, show_default=True,
    help="Snapshots with --json; 0: until Ctrl-C.",
)  # fmt: skip
@gateway_command
def top(
    invocation: Invocation,
    *,
    interval_s: float,
    sort: str,
    reverse: bool,
    part: str,
    limit: int,
    count: int,
) -> None:
    """The gateway live: who is connected, how much goes through, what is wrong.

    Keys: ? shows them all. With --json, snapshots instead, an object a line if there are more than
    one. The gateway sorts and filters, and is asked for no more sessions than the screen shows.
    """
    if len(part) > MAX_FILTER_CHARS:
        raise BadInput(f"--filter takes at most {MAX_FILTER_CHARS} characters", "shorten it")
    if invocation.as_json:
        query = schemas.SessionQuery(
            sort=schemas.SessionSort(sort), reverse=reverse, filter=part, limit=limit, rates=True
        )
        try:
            _snapshots(invocation, query, interval_s, count)
        except KeyboardInterrupt:
            if count:  # else that is how it ends
                raise
        return
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise BadInput("top needs a terminal", "use --json, or zgatectl status")
    from zgate_cli.top.driver import run

    state = State(
        interval_s=interval_s, sort=schemas.SessionSort(sort), reverse=reverse, filter=part
    )
    code = run(
        invocation.socket_path, state, input_fd=sys.stdin.fileno(), output_fd=sys.stdout.fileno()
    )
    raise SystemExit(code)


def _snapshots(
    invocation: Invocation, query: schemas.SessionQuery, interval_s: float, count: int
) -> None:
    with GatewayClient(invocation.socket_path) as gateway:
        gateway.sessions(query)
        time.sleep(min(interval_s, _FIRST_RATES_S))
        made = 0
        while True:
            snapshot = TopSnapshot(
                at=datetime.now(UTC), status=gateway.status(), sessions=gateway.sessions(query)
            )
            click.echo(snapshot.model_dump_json(indent=2 if count == 1 else None))
            made += 1
            if made == count:
                return
            time.sleep(interval_s)
