"""``zgatectl status``."""

from __future__ import annotations

import click
from rich.text import Text
from zgate_gateway.api import schemas

from .client import GatewayClient
from .options import Invocation, gateway_command
from .output import cell, console, duration_text, facts, print_json, table, time_text

_STATE_STYLE = {schemas.GatewayState.READY: "green", schemas.GatewayState.STOPPED: "red"}


@click.command()
@gateway_command
def status(invocation: Invocation) -> None:
    """The gateway at a glance."""
    with GatewayClient(invocation.socket_path) as gateway:
        answer = gateway.status()
    if invocation.as_json:
        print_json(answer)
        return
    out = console()
    out.print(facts(_rows(answer)))
    drops = {reason: count for reason, count in answer.drops.items() if count}
    if drops:
        dropped = table("dropped", "packets", right=["packets"])
        for reason, count in sorted(drops.items(), key=lambda item: -item[1]):
            dropped.add_row(cell(reason), cell(count))
        out.print()
        out.print(dropped)


def _rows(answer: schemas.Status) -> list[tuple[str, Text | str]]:
    state = cell(answer.state.value, _STATE_STYLE.get(answer.state, "yellow"))
    rows: list[tuple[str, Text | str]] = [("state", state)]
    rows += [("", cell(reason, "yellow")) for reason in answer.not_ready_because]
    rows += [
        ("ALERT", cell(f"{alert.text} (since {time_text(alert.since)})", "bold red"))
        for alert in answer.alerts
    ]
    rows += [
        ("version", f"{answer.version}, {answer.engine} engine, pid {answer.pid}"),
        ("up", f"{duration_text(answer.uptime_s)} since {time_text(answer.started_at)}"),
        ("listens on", ", ".join(f"{address}/udp" for address in answer.listen)),
        ("interface", f"{answer.tun_name}, MTU {answer.tun_mtu_bytes}"),
        *_workers(answer.workers),
        ("sessions", _sessions(answer)),
        ("services", _services(answer)),
        ("policy", _policy(answer.policy)),
    ]
    if answer.policy.not_in_force_because is not None:
        refused = f"the file as it is now is not in force: {answer.policy.not_in_force_because}"
        rows.append(("", cell(refused, "red")))
    rows += [(f"pool IPv{pool.family}", _pool(pool)) for pool in answer.pools]
    rows += [
        (f"map {name}", f"{use.used} of {use.size}") for name, use in answer.kernel_maps.items()
    ]
    rows.append(("flow events", _events(answer.kernel_events)))
    if answer.audit is not None:
        rows.append(("audit", _audit(answer.audit)))
    if answer.edge is not None:
        rows += _edge(answer.edge)
    if answer.dns is not None:
        rows.append(("names", _dns(answer.dns)))
    return rows


def _workers(workers: list[schemas.Worker]) -> list[tuple[str, Text | str]]:
    rows: list[tuple[str, Text | str]] = []
    for one in workers:
        state = f"pid {one.pid}" if one.pid is not None else "ended, being started again"
        text = f"{state}, {one.sessions} sessions, {one.restarts} restarts"
        if one.misdirected_packets:
            text += f", {one.misdirected_packets} packets of other workers"
        troubled = one.pid is None or one.restarts or one.misdirected_packets
        rows.append((f"worker {one.worker}", cell(text, "yellow" if troubled else "")))
    return rows


def _sessions(answer: schemas.Status) -> str:
    refused = ", ".join(f"{count} {reason}" for reason, count in answer.sessions_refused.items())
    text = f"{answer.sessions} of {answer.sessions_max}, {answer.sessions_total} since start"
    return f"{text}; refused: {refused}" if refused else text


def _services(answer: schemas.Status) -> str:
    parts = [
        f"{answer.services}, of which {answer.services_up} up",
        f"{answer.connectors} connectors",
        f"{answer.networks} networks behind them",
    ]
    return ", ".join(parts)


def _policy(policy: schemas.PolicySummary) -> str:
    what = policy.source if policy.source is not None else "no file: everything is denied"
    return (
        f"revision {policy.revision}, {what} ({policy.clients} clients, {policy.groups} groups, "
        f"{policy.rules} rules, default {policy.default_action.value})"
    )


def _pool(pool: schemas.PoolUse) -> str:
    return f"{pool.network}: {pool.leased} of {pool.capacity} leased, {pool.connected} connected"


def _edge(edge: schemas.EdgeState) -> list[tuple[str, Text | str]]:
    if edge.interface is None:
        rows: list[tuple[str, Text | str]] = [("edge", cell(f"off: {edge.note}", "yellow"))]
    else:
        dropped = {reason: count for reason, count in edge.dropped.items() if count}
        counts = f"{sum(edge.passed.values())} passed, {sum(dropped.values())} dropped"
        blocked = f", {edge.blocked} networks blocked" if edge.blocked else ""
        rows = [("edge", f"{edge.mode} XDP on {edge.interface}: {counts}{blocked}")]
        if edge.note is not None:
            rows.append(("", edge.note))
        if dropped:
            most = sorted(dropped.items(), key=lambda item: -item[1])
            rows.append(("", ", ".join(f"{count} {reason}" for reason, count in most)))
    if edge.blocklist_problem is not None:
        rows.append(("", cell(f"blocklist not in force: {edge.blocklist_problem}", "red")))
    if edge.retry_active:
        rows.append(("", cell("new clients have to prove their address (Retry)", "yellow")))
    return rows


def _dns(dns: schemas.DnsState) -> Text:
    text = cell(f"*.{dns.domain}: {sum(dns.queries.values())} questions")
    if dns.problem is not None:
        text.append_text(cell(f"; not answered everywhere: {dns.problem}", "red"))
    return text


def _events(events: schemas.EventState) -> Text:
    text = f"{events.received} received, {events.suppressed} suppressed, {events.lost} lost"
    return cell(text, "yellow" if events.lost else "")


def _audit(audit: schemas.AuditState) -> Text:
    text = f"{audit.path}: {audit.written} written, {audit.lost} lost"
    if audit.last_error is not None:
        return cell(f"{text} ({audit.last_error})", "red")
    return cell(text, "yellow" if audit.lost else "")
