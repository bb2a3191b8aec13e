"""``zgatectl clients``."""

from __future__ import annotations

import click
from rich.text import Text
from zgate_gateway.api import schemas

from .client import GatewayClient
from .options import Invocation, gateway_command
from .output import cell, console, limits_text, print_json, table, time_text


@click.command()
@gateway_command
def clients(invocation: Invocation) -> None:
    """Every client that the gateway knows: connected, seen before, or named by the policy."""
    with GatewayClient(invocation.socket_path) as gateway:
        answer = gateway.clients()
    if invocation.as_json:
        print_json(answer)
        return
    if not answer.clients:
        click.echo("No client is known.")
        return
    is_limited = any(limits_text(one.limits) for one in answer.clients)
    limits = ["limits"] if is_limited else []
    shown = table(
        "client", "groups", "addresses", "rules", *limits, "dropped", "last seen",
        right=["rules", "dropped"],
    )  # fmt: skip
    for one in answer.clients:
        shown.add_row(
            cell(one.name),
            cell("\n".join(one.groups)),
            cell("\n".join(one.addresses)),
            cell(one.rules),
            *([cell(limits_text(one.limits).replace(", ", "\n"))] if is_limited else []),
            cell(one.counters.dropped_packets if one.counters is not None else None),
            _last_seen(one),
        )
    console().print(shown)


def _last_seen(one: schemas.Client) -> Text:
    if one.connected:
        return cell("connected", "green")
    return cell(time_text(one.last_seen_at) if one.last_seen_at is not None else "never")
