"""``zgatectl sessions`` and ``zgatectl kick``."""

from __future__ import annotations

import click
from pydantic import ValidationError
from zgate_gateway.api import schemas

from .client import GatewayClient
from .completion import complete_client
from .errors import BadInput
from .options import Invocation, gateway_command
from .output import byte_text, cell, console, duration_text, print_json, table


@click.command()
@gateway_command
def sessions(invocation: Invocation) -> None:
    """The sessions that are up."""
    with GatewayClient(invocation.socket_path) as gateway:
        answer = gateway.sessions()
    if invocation.as_json:
        print_json(answer)
        return
    if not answer.sessions:
        click.echo("No session is up.")
        return
    shown = table("client", "addresses", "from", "up", "rx", "tx", right=["up", "rx", "tx"])
    for one in answer.sessions:
        shown.add_row(
            cell(one.client),
            cell("\n".join(address.partition("/")[0] for address in one.addresses)),
            cell(one.peer),
            cell(duration_text(one.age_s)),
            cell(byte_text(one.counters.up_bytes)),
            cell(byte_text(one.counters.down_bytes)),
        )
    console().print(shown)


@click.command()
@click.argument("client", shell_complete=complete_client)
@click.option("--reason", default="", help="Told to the client, and kept in the audit log.")
@gateway_command
def kick(invocation: Invocation, *, client: str, reason: str) -> None:
    """Close the sessions of CLIENT. It keeps its address, and may connect again.

    To keep it out, revoke its certificate: zgatectl pki revoke CLIENT.
    """
    try:
        request = schemas.KickRequest(reason=reason)
    except ValidationError as error:
        raise BadInput(
            "--reason is one line of at most 200 characters",
            "shorten it, and leave control characters out",
        ) from error
    with GatewayClient(invocation.socket_path) as gateway:
        answer = gateway.kick(client, request)
    if invocation.as_json:
        print_json(answer)
        return
    count = "1 session" if answer.sessions_closed == 1 else f"{answer.sessions_closed} sessions"
    click.echo(f"Closed {count} of {answer.client} ({', '.join(answer.addresses)}).")
