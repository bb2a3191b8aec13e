"""``zgatectl sessions`` and ``zgatectl kick``."""

from __future__ import annotations

import click
from pydantic import ValidationError
from zgate_gateway.api import schemas

from .client import GatewayClient
from .completion import complete_client
from .errors import BadInput, check_client_name
from .options import Invocation, gateway_command
from .output import byte_text, cell, console, duration_text, print_json, table


@click.command()
@click.option(
    "--sort", "-s", type=click.Choice([one.value for one in schemas.SessionSort]),
    default=schemas.SessionSort.CLIENT.value, show_default=True, help="What comes first.",
)  # fmt: skip
@click.option("--reverse", "-r", is_flag=True, help="The other way round.")
@click.option("--filter", "-f", "part", default="", help="Part of a name, group or address.")
@click.option("--limit", type=click.IntRange(1, 100_000), help="At most so many.")
@gateway_command
def sessions(
    invocation: Invocation, *, sort: str, reverse: bool, part: str, limit: int | None
) -> None:
    """The sessions that are up."""
    try:
        query = schemas.SessionQuery(
            sort=schemas.SessionSort(sort), reverse=reverse, filter=part, limit=limit
        )
    except ValidationError as error:
        raise BadInput("--filter takes at most 200 characters", "shorten it") from error
    with GatewayClient(invocation.socket_path) as gateway:
        answer = gateway.sessions(query)
    if invocation.as_json:
        print_json(answer)
        return
    if not answer.sessions:
        click.echo("No session is up." if not answer.total else "No session fits the filter.")
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
    if answer.matched > len(answer.sessions):
        click.echo(f"{answer.matched - len(answer.sessions)} more are up (--limit).")


@click.command()
@click.argument("client", shell_complete=complete_client)
@click.option("--reason", default="", help="Told to the client, and kept in the audit log.")
@gateway_command
def kick(invocation: Invocation, *, client: str, reason: str) -> None:
    """Close the sessions of CLIENT. It keeps its address, and may connect again.

    To keep it out, revoke its certificate: zgatectl pki revoke CLIENT.
    """
    check_client_name(client)
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
