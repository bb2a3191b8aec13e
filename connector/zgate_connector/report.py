"""What `zgate-connector status` prints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime

import click
from zgate_host.text import size_text, span_text

from zgate_connector.status import ConnectorStatus, GatewayStatus, ServiceState, State

_COLOURS = {
    State.CONNECTED: "green",
    State.CONNECTING: "yellow",
    State.BACKOFF: "red",
    State.STOPPED: "red",
}


def print_unavailable(why: str, *, as_json: bool) -> None:
    """No connector answers."""
    if as_json:
        click.echo(json.dumps({"state": "not running", "reason": why}))
    else:
        click.echo(f"not running: {why}", err=True)


def print_status(status: ConnectorStatus, *, as_json: bool) -> None:
    """A connector's answer, for programs or for people."""
    if as_json:
        click.echo(status.model_dump_json(indent=2))
        return
    now = datetime.now(UTC)
    for gateway in status.gateways:
        click.secho(gateway.gateway, bold=True)
        for label, value in gateway_lines(gateway, now):
            colour = _COLOURS[gateway.state] if label == "state" else None
            click.echo(f"  {label:12}  {click.style(value, fg=colour)}")
    for label, values in (("networks", status.networks), ("note", status.notes)):
        for value in values:
            click.echo(f"{label:14}  {value}")


def gateway_lines(status: GatewayStatus, now: datetime) -> Iterator[tuple[str, str]]:
    """Label and value of each line; what there is nothing to say of is left out."""
    draining = ", draining" if status.is_draining else ""
    yield "state", f"{status.state}, for {span_text(now - status.since)}{draining}"
    if status.reason:
        yield "why", status.reason
    if status.next_attempt_s is not None:
        yield "next attempt", f"in {status.next_attempt_s:.0f} s"
    if status.gateway_address not in (None, status.gateway):
        yield "address", str(status.gateway_address)
    if status.observed_address is not None:
        yield "seen at", status.observed_address
    services = {one.name: one for one in status.services}
    for answer in status.answers:
        state = services.get(answer.name) if answer.kind == "service" else None
        what = answer.name
        if not answer.is_accepted:
            what += f": refused: {answer.code}: {answer.text}"
        elif answer.service_addresses:
            what += f" at {', '.join(answer.service_addresses)}"
        yield answer.kind, what + (f"; {_service(state)}" if state else "")
    if status.renewal_problem:
        yield "not renewed", status.renewal_problem
    yield "reconnects", str(status.reconnects)
    if status.drops:
        drops = (f"{reason} {count}" for reason, count in sorted(status.drops.items()))
        yield "dropped", ", ".join(drops)


def _service(state: ServiceState) -> str:
    health = f"{state.health} ({state.reason})" if state.reason else state.health
    traffic = f"{size_text(state.bytes_up)} up, {size_text(state.bytes_down)} down"
    return f"{health}, {state.open_flows} of {state.total_flows} flows open, {traffic}"
