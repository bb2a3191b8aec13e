"""``zgatectl flows``: open flows, the last denials, and both as they happen."""

from __future__ import annotations

import click
from pydantic import ValidationError
from rich.text import Text
from zgate_gateway.api import schemas

from .client import GatewayClient
from .completion import complete_client
from .errors import BadInput
from .options import Invocation, gateway_command
from .output import cell, console, duration_text, print_json, table
from .protocols import protocol_name

_KIND_STYLE = {
    schemas.FlowNewsKind.ALLOWED: "green",
    schemas.FlowNewsKind.DENIED: "red",
    schemas.FlowNewsKind.LOST: "yellow",
}

#: The default action has let it in, or it is the gateway's own DNS.
_NO_RULE = "no rule"


@click.command()
@click.option("--client", shell_complete=complete_client, help="Of this client only.")
@click.option("--denied", is_flag=True, help="Denials only.")
@click.option("--follow", "-f", is_flag=True, help="New flows and denials as they happen.")
@click.option(
    "--limit", type=click.IntRange(1, 100_000), default=1000, show_default=True,
    help="At most so many, the newest; without --follow.",
)  # fmt: skip
@gateway_command
def flows(
    invocation: Invocation, *, client: str | None, denied: bool, follow: bool, limit: int
) -> None:
    """The flows that are open, with the rules that let them in.

    With --denied, the last denials. With --follow, news until Ctrl-C; with --json too, an object a
    line. A terminal that does not keep up loses news, and is told how many.
    """
    try:
        query = schemas.FlowQuery(client=client, denied=denied, limit=limit)
    except ValidationError as error:
        raise BadInput(
            "--client takes a name of 1 to 64 printable characters",
            "zgatectl clients lists those that the gateway knows",
        ) from error
    with GatewayClient(invocation.socket_path) as gateway:
        if follow:
            _follow(gateway, invocation, query)
            return
        answer = gateway.flows(query)
    if invocation.as_json:
        print_json(answer)
    elif denied:
        _print_denials(answer.denials)
    else:
        _print_flows(answer)


def _follow(gateway: GatewayClient, invocation: Invocation, query: schemas.FlowQuery) -> None:
    out = console()
    wanted = schemas.FlowEventQuery(client=query.client, denied=query.denied)
    try:
        for news in gateway.follow_flows(wanted):
            if invocation.as_json:
                click.echo(news.model_dump_json(exclude_none=True))
            else:
                out.print(news_line(news), soft_wrap=True)
    except KeyboardInterrupt:
        return


def _print_denials(denials: list[schemas.FlowNews]) -> None:
    if not denials:
        click.echo("Nothing was denied since the gateway started.")
    out = console()
    for news in reversed(denials):  # the newest last, as in a log
        out.print(news_line(news), soft_wrap=True)


def news_line(news: schemas.FlowNews) -> Text:
    """Return one event as one line."""
    text = cell(f"{news.ts:%H:%M:%S}Z ")
    text.append_text(cell(news.kind.value, _KIND_STYLE[news.kind]))
    if news.kind is schemas.FlowNewsKind.LOST:
        return text.append_text(cell(f" {news.lost} events: this terminal is too slow"))
    service = protocol_name(news.protocol or 0)
    if news.icmp_type is not None:
        service += f" type {news.icmp_type} code {news.icmp_code}"
    ends = (
        f"{_end(news.source, news.source_port)} -> {_end(news.destination, news.destination_port)}"
    )
    text.append_text(cell(f" {news.client or '-'} {service} {ends} {_cause(news)}"))
    if news.suppressed:
        text.append_text(cell(f" (and {news.suppressed} not shown before it)", "yellow"))
    return text


def _cause(news: schemas.FlowNews) -> str:
    rule = "" if news.rule_id is None else f"rule {news.rule_id}"
    if news.rule_line is not None:
        rule += f" (line {news.rule_line})"
    if news.kind is schemas.FlowNewsKind.ALLOWED:
        rule = rule or _NO_RULE
    said = " ".join(filter(None, (news.reason, rule)))
    return f"{said}, revision {news.revision}"


def _print_flows(answer: schemas.FlowList) -> None:
    if not answer.flows:
        click.echo("No flow is open.")
        return
    shown = table("client", "protocol", "from", "to", "state", "idle", "rule", right=["idle"])
    for flow in answer.flows:
        shown.add_row(cell(flow.client), *map(cell, flow_cells(flow)))
    console().print(shown)
    if answer.total > len(answer.flows):
        click.echo(f"{answer.total - len(answer.flows)} more are open (--limit).")


def flow_cells(flow: schemas.FlowView) -> tuple[str, ...]:
    """Protocol, both ends, state, idle time and rule of a flow."""
    rule = _NO_RULE if flow.rule_id is None else flow.rule_id
    return (
        protocol_name(flow.protocol),
        _end(flow.client_address, flow.client_port),
        _end(flow.remote_address, flow.remote_port),
        flow.stage.value,
        duration_text(flow.idle_s),
        rule if flow.rule_line is None else f"{rule} (line {flow.rule_line})",
    )


def _end(address: str | None, port: int | None) -> str:
    if port is None:
        return str(address)
    return f"[{address}]:{port}" if ":" in str(address) else f"{address}:{port}"
