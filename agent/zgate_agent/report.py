"""What `zgate-agent status` prints."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import click
from zgate_host.text import size_text, span_text

from zgate_agent.machine import State
from zgate_agent.status import AgentStatus

_COLOURS = {
    State.CONNECTED: "green",
    State.CONNECTING: "yellow",
    State.BACKOFF: "red",
    State.STOPPED: "red",
}


def print_unavailable(why: str, *, as_json: bool) -> None:
    """No agent answers."""
    if as_json:
        click.echo(json.dumps({"state": "not running", "reason": why}))
    else:
        click.echo(f"not running: {why}", err=True)


def print_status(status: AgentStatus, *, as_json: bool) -> None:
    """An agent's answer, for programs or for people."""
    if as_json:
        click.echo(status.model_dump_json(indent=2))
        return
    lines = status_lines(status, datetime.now(UTC))
    width = max(len(label) for label, _ in lines)
    for label, value in lines:
        colour = _COLOURS[status.state] if label == "state" else None
        click.echo(f"{label:{width}}  {click.style(value, fg=colour)}")


def status_lines(status: AgentStatus, now: datetime) -> list[tuple[str, str]]:
    """Label and value of each line; what there is nothing to say of is left out."""
    lines = [("state", f"{status.state}, for {span_text(now - status.since)}")]
    if status.reason:
        lines.append(("why", status.reason))
    if status.next_attempt_s is not None:
        lines.append(("next attempt", f"in {status.next_attempt_s:.0f} s"))
    lines.append(("gateway", _gateway(status)))
    if len(status.gateways) > 1:
        lines.append(("gateways", ", ".join(status.gateways)))
    if status.is_draining:
        lines.append(("draining", "the gateway is to stop soon"))
    if status.renewal_problem:
        lines.append(("not renewed", status.renewal_problem))
    if status.observed_address is not None:
        lines.append(("seen at", status.observed_address))
    several = {
        "virtual IP": status.addresses,
        "routes": status.routes,
        "pinned": status.pinned,
    }
    lines += [(label, ", ".join(values)) for label, values in several.items() if values]
    if status.dns.domains:
        domains, server = ", ".join(status.dns.domains), status.dns.servers[0]
        lines.append(("names", f"{domains} from {server}, by {status.dns.method}"))
    mtu = f", MTU {status.mtu_bytes}" if status.mtu_bytes else ""
    lines.append(("interface", f"{status.tun} ({status.mode} tunnel){mtu}"))
    if status.engine:
        lines.append(("engine", status.engine))
    lines.append(("reconnects", f"{status.reconnects}, moves {status.rebinds}"))
    lines += _traffic(status)
    lines += [("note", note) for note in status.notes]
    return lines


def _gateway(status: AgentStatus) -> str:
    text = status.gateway
    if status.gateway_address not in (None, status.gateway):
        text += f" at {status.gateway_address}"
    return text + (f", from {status.local_address}" if status.local_address else "")


def _traffic(status: AgentStatus) -> list[tuple[str, str]]:
    counters = status.counters
    lines = []
    for way in ("up", "down"):
        packets, size = counters.get(f"packets_{way}"), counters.get(f"bytes_{way}")
        if packets is not None and size is not None:
            lines.append((way, f"{packets:.0f} packets, {size_text(size)}"))
    if status.drops:
        drops = ", ".join(f"{reason} {count}" for reason, count in sorted(status.drops.items()))
        lines.append(("dropped", drops))
    return lines
