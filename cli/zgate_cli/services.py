"""``zgatectl services``."""

from __future__ import annotations

import click
from rich.text import Text
from zgate_gateway.api import schemas

from .client import GatewayClient
from .options import Invocation, gateway_command
from .output import cell, console, print_json, table

STATE_STYLE = {
    schemas.OfferState.UP: "green",
    schemas.OfferState.KEEP: "yellow",
    schemas.OfferState.GONE: "red",
}
_NOT_OFFERED = "not offered"


@click.command()
@gateway_command
def services(invocation: Invocation) -> None:
    """The private services, where they are, and who offers them."""
    with GatewayClient(invocation.socket_path) as gateway:
        answer = gateway.services()
    if invocation.as_json:
        print_json(answer)
        return
    if not answer.services:
        click.echo("No service is known: none is offered, and the policy names none.")
        return
    shown = table("service", "addresses", "state", "offered by", "flows", right=["flows"])
    for one in answer.services:
        offers = sorted(one.offers, key=lambda offer: offer.connector)
        shown.add_row(
            cell("\n".join(filter(None, [one.name, one.dns_name]))),
            cell("\n".join(one.addresses)),
            _state(one),
            cell("\n".join(f"{offer.connector}: {offer.state.value}" for offer in offers)),
            cell("\n".join(str(offer.open_flows) for offer in offers)),
        )
    console().print(shown)


def _state(service: schemas.Service) -> Text:
    text = service.state.value if service.offers else _NOT_OFFERED
    return cell(text, STATE_STYLE[service.state])
