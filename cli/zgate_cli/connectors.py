"""``zgatectl connectors`` and ``zgatectl drain``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Protocol

import click
from rich.table import Table
from zgate_gateway.api import schemas

from .client import GatewayClient
from .completion import complete_connector
from .durations import Seconds
from .errors import CommandError
from .gateway_drain import drain_gateway, waiting
from .options import Invocation, gateway_command
from .output import byte_text, cell, console, duration_text, print_json, table, time_text
from .services import STATE_STYLE

#: Connectors say each second how many flows they have.
_POLL_S = 1.0
#: A flow that began just before the drain is in the second answer at the latest.
_ZEROS_NEEDED = 2


@click.command()
@gateway_command
def connectors(invocation: Invocation) -> None:
    """Who offers services or leads to networks, since when, and how they do."""
    with GatewayClient(invocation.socket_path) as gateway:
        answer = gateway.connectors()
    if invocation.as_json:
        print_json(answer)
        return
    if not answer.connectors:
        click.echo("No connector is there.")
        return
    shown = table(
        "connector", "offers", "state", "since", "flows", "to", "from",
        right=["since", "flows", "to", "from"],
    )  # fmt: skip
    for one in answer.connectors:
        _add_connector(shown, one)
    console().print(shown)


def _add_connector(shown: Table, one: schemas.Connector) -> None:
    """A row for the connector as a whole, and one for each thing that it wants."""
    whole = _condition(one)
    sums = [cell(one.open_flows), cell(byte_text(one.bytes_up)), cell(byte_text(one.bytes_down))]
    shown.add_row(
        cell(one.name, "bold"),
        cell(one.peer),
        cell(whole, "" if whole == "connected" else "yellow"),
        cell(_ago(one.since)),
        *sums,
    )
    for offer in one.services:
        shown.add_row(
            "",
            cell("\n".join([offer.name, *offer.ports])),
            cell(_offer_state(offer), STATE_STYLE[offer.state]),
            cell(_ago(offer.changed_at)),
            cell(offer.open_flows),
            cell(byte_text(offer.bytes_up)),
            cell(byte_text(offer.bytes_down)),
        )
    for route in one.routes:
        text = route.state.value if route.active else f"{route.state.value}, stands by"
        since = _ago(route.changed_at) if route.active else None
        shown.add_row("", cell(route.network), cell(text, STATE_STYLE[route.state]), cell(since))
    for refused in one.refused:
        text = f"{refused.code.replace('_', ' ')}: {refused.text}"
        shown.add_row("", cell(refused.name), cell(text, "red"))


def _condition(one: schemas.Connector) -> str:
    parts = ["connected" if one.connected else "not connected"]
    if one.silent:
        parts.append("silent")
    if one.drain is not None:
        deadline = one.drain.deadline_at
        parts.append("drained" if deadline is None else f"drained, until {time_text(deadline)}")
    return "\n".join(parts)


def _offer_state(offer: schemas.ServiceOffer) -> str:
    if offer.health is schemas.OfferHealth.UP:
        return offer.state.value
    reason = f": {offer.reason}" if offer.reason else ""
    return f"{offer.state.value}\n{offer.health.value}{reason}"


def _ago(moment: datetime | None) -> str | None:
    if moment is None:
        return None
    return duration_text(max(0.0, (datetime.now(UTC) - moment).total_seconds()))


@click.command()
@click.argument("connector", required=False, shell_complete=complete_connector)
@click.option("--undo", is_flag=True, help="Take sessions, or give it new flows, again.")
@click.option(
    "--deadline", "deadline_s", type=Seconds(0, schemas.MAX_DRAIN_S), metavar="SECONDS",
    help="Then what is left is closed.  [default for the gateway: 30; for a connector: none]",
)  # fmt: skip
@click.option("--no-wait", is_flag=True, help="Do not wait until all are gone.")
@gateway_command
def drain(
    invocation: Invocation,
    *,
    connector: str | None,
    undo: bool,
    deadline_s: float | None,
    no_wait: bool,
) -> None:
    """Take no new session, and wait until clients have gone to another gateway.

    The gateway stays drained until --undo or its next start: stop it, or start it anew, when the
    command is done. At the deadline the sessions that are left are closed, and the exit code is 1.
    Clients that know no other gateway stay until then. Connectors are left alone.

    With CONNECTOR: give it no new flows, and wait until those that it has are gone. It stays
    drained when it comes back. --json does not wait then. With --deadline, exit code 1 if
    flows were open when it was over. --undo ends the connector's session, for it to begin anew.

    Ctrl-C ends the waiting, not the drain; the exit code is 1 then.
    """
    if undo and deadline_s is not None:
        raise click.UsageError("--undo takes no --deadline.")
    if connector is None:
        drain_gateway(invocation, undo=undo, deadline_s=deadline_s, waits=not no_wait)
        return
    request = schemas.DrainRequest(undo=undo, deadline_s=deadline_s)
    with GatewayClient(invocation.socket_path) as gateway:
        answer = gateway.drain(connector, request)
        if invocation.as_json:
            print_json(answer)
        elif undo:
            click.echo(f"{_shown(connector)} gets new flows again.")
        elif no_wait:
            click.echo(f"{_shown(connector)} gets no new flows; it has {answer.open_flows}.")
        else:
            with waiting(f"zgatectl drain {_shown(connector)} --undo"):
                _wait(gateway, answer)


def _shown(name: str) -> str:
    return cell(name).plain


class _Progress(Protocol):
    def update(self, status: str) -> None:
        """Show this line in place of the one before."""


class _Lines:
    """Progress where there is no terminal: a line when something has changed."""

    def __init__(self) -> None:
        self._last = ""

    def update(self, status: str) -> None:
        if status != self._last:
            self._last = status
            click.echo(status)


@contextmanager
def _progress() -> Iterator[_Progress]:
    out = console()
    if not out.is_terminal:
        yield _Lines()
        return
    with out.status("") as status:
        yield status


def _wait(gateway: GatewayClient, answer: schemas.Drain) -> None:
    name = _shown(answer.connector)
    zeros = 0
    with _progress() as progress:
        while answer.connected and zeros < _ZEROS_NEEDED:
            progress.update(f"{name} gets no new flows; it has {answer.open_flows}")
            time.sleep(_POLL_S)
            left, answer = answer.open_flows, _look(gateway, answer.connector)
            zeros = 0 if answer.open_flows else zeros + 1
            if answer.drain is None:
                raise CommandError(
                    f"{name} is drained no more",
                    "somebody has undone it, or started the gateway anew",
                )
            if answer.drain.is_over:
                _deadline_over(name, left)
                return
    click.echo(f"{name} has no flows any more.")


def _deadline_over(name: str, left: int) -> None:
    if left:
        raise CommandError(
            f"the deadline is over, and {name} still had {left} flows",
            "they choose another connector; give it more time, if they need it",
        )
    click.echo(f"{name} has no flows any more.")


def _look(gateway: GatewayClient, name: str) -> schemas.Drain:
    found = next((one for one in gateway.connectors().connectors if one.name == name), None)
    if found is None:
        return schemas.Drain(connector=name, connected=False, drain=None, open_flows=0)
    return schemas.Drain(
        connector=name, connected=found.connected, drain=found.drain, open_flows=found.open_flows
    )
